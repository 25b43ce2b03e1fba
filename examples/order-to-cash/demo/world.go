package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
	"github.com/vextrus/saga-operator/test/operator"
)

// world is everything that the demo starts, in the order in which it is started.
type world struct {
	workshop *operator.Workshop
	postgres *throwaway.Server
	database string // the operator's
	shop     *pgxpool.Pool
	cluster  *cluster.Cluster
	client   client.WithWatch
	urls     ordertocash.URLs
	services *operator.Process
	operator *operator.Process
}

// stage is one thing to start, and what to tell of it.
type stage struct {
	about string
	do    func(context.Context) error
}

func (w *world) start(ctx context.Context) error {
	for _, s := range []stage{
		{"building the operator and the services", w.build},
		{"starting PostgreSQL", w.startPostgres},
		{"starting etcd, kube-apiserver and kube-controller-manager", w.startCluster},
		{"starting orders, inventory, payments and shipping", w.startServices},
		{"starting the operator, with the rights it has in production", w.startOperator},
	} {
		began := time.Now()
		fmt.Printf("▸ %s … ", s.about)
		if err := s.do(ctx); err != nil {
			fmt.Println("failed")
			return fmt.Errorf("%s: %w", s.about, err)
		}
		fmt.Printf("%.1f s\n", time.Since(began).Seconds())
	}
	return nil
}

// stop ends everything in the reverse order.
func (w *world) stop() error {
	var errs []error
	for _, p := range []*operator.Process{w.operator, w.services} {
		if p != nil {
			errs = append(errs, p.Stop())
		}
	}
	if w.shop != nil {
		w.shop.Close()
	}
	if w.cluster != nil {
		errs = append(errs, w.cluster.Stop())
	}
	if w.postgres != nil {
		errs = append(errs, w.postgres.Close())
	}
	if w.workshop != nil {
		errs = append(errs, w.workshop.Close())
	}
	return errors.Join(errs...)
}

func (w *world) build(ctx context.Context) (err error) {
	if w.workshop, err = operator.NewWorkshop(ctx); err != nil {
		return err
	}
	return w.workshop.Build(ctx, "github.com/vextrus/saga-operator/examples/order-to-cash/cmd/services", "services")
}

func (w *world) startPostgres(ctx context.Context) (err error) {
	if w.postgres, err = throwaway.Start(ctx, throwaway.Options{Durable: true, Progress: func(line string) { fmt.Printf("%s … ", line) }}); err != nil {
		return err
	}
	if w.database, _, err = w.postgres.NewEmptyDatabase(ctx); err != nil {
		return err
	}
	shop, _, err := w.postgres.NewEmptyDatabase(ctx)
	if err != nil {
		return err
	}
	w.shop, err = pgxpool.New(ctx, shop)
	return err
}

func (w *world) startCluster(ctx context.Context) error {
	manifests, err := deployed()
	if err != nil {
		return err
	}
	if w.cluster, err = cluster.Start(ctx, cluster.Options{ControllerManager: true}); err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1.AddToScheme(scheme)); err != nil {
		return err
	}
	config := rest.CopyConfig(w.cluster.Config)
	config.WarningHandler = rest.NoWarnings{}
	if w.client, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	for _, name := range []string{"saga-system", namespace} {
		if err := w.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return fmt.Errorf("making namespace %s: %w", name, err)
		}
	}
	for _, file := range manifests {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading what is deployed: %w", err)
		}
		if err := w.cluster.Apply(ctx, data); err != nil {
			return fmt.Errorf("applying %s: %w", file, err)
		}
	}
	return w.awaitAdmission(ctx)
}

// deployed lists what is deployed beside the operator itself: its rights, and the admission policies.
func deployed() ([]string, error) {
	var files []string
	for _, dir := range []string{"config/rbac", "config/admission"} {
		found, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			if filepath.Base(f) != "kustomization.yaml" {
				files = append(files, f)
			}
		}
	}
	if len(files) == 0 {
		return nil, errors.New("config/rbac and config/admission are not here: run the demo from the root of the repository, with make demo")
	}
	return files, nil
}

// awaitAdmission waits until the policy that puts the finalizer on is in force.
func (w *world) awaitAdmission(ctx context.Context) error {
	return poll(ctx, "the admission policies", func(ctx context.Context) (bool, string) {
		probe, err := manifest("completes.yaml", ordertocash.DefaultURLs)
		if err != nil {
			return false, err.Error()
		}
		if err := w.client.Create(ctx, probe, client.DryRunAll); err != nil {
			return false, err.Error()
		}
		return len(probe.Finalizers) > 0, "no finalizer was put on"
	})
}

func (w *world) startServices(ctx context.Context) (err error) {
	w.urls = ordertocash.DefaultURLs
	if !free(ctx, w.urls) {
		// Somebody else has the ports that the manifests are written for: take others, and send the sagas there.
		if w.urls, err = otherPorts(ctx); err != nil {
			return err
		}
	}
	at := func(url string) string { return strings.TrimPrefix(url, "http://") }
	w.services, err = w.workshop.Run("services", operator.Command{
		Binary: "services", Health: w.urls.Shipping + "/healthz",
		// The guard that ends this process knows it by the directory in its command line, which its path has.
		Args: []string{"-orders-address", at(w.urls.Orders), "-inventory-address", at(w.urls.Inventory), "-payments-address", at(w.urls.Payments), "-shipping-address", at(w.urls.Shipping)},
		Env:  []string{"DATABASE_URL=" + w.shop.Config().ConnString()},
	})
	if err != nil {
		return err
	}
	return w.services.AwaitReady(ctx)
}

func (w *world) startOperator(ctx context.Context) error {
	config, err := w.cluster.ServiceAccount(ctx, "saga-system", "saga-operator")
	if err != nil {
		return err
	}
	w.operator, err = w.workshop.Start(ctx, operator.Options{
		Config: config, DatabaseURL: w.database, LogFile: filepath.Join(os.TempDir(), "saga-demo-operator.log"),
		Args: []string{"--leader-elect=true", "--lease-namespace", "saga-system"},
	})
	if err != nil {
		return err
	}
	return w.operator.AwaitReady(ctx)
}

func free(ctx context.Context, at ordertocash.URLs) bool {
	for _, url := range []string{at.Orders, at.Inventory, at.Payments, at.Shipping} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			return false
		}
		_ = l.Close()
	}
	return true
}

func otherPorts(ctx context.Context) (at ordertocash.URLs, err error) {
	for _, url := range []*string{&at.Orders, &at.Inventory, &at.Payments, &at.Shipping} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return at, fmt.Errorf("looking for a free port: %w", err)
		}
		defer l.Close() // held until all four are found, so that they differ
		*url = "http://" + l.Addr().String()
	}
	return at, nil
}

// poll asks until something holds, and says what it last heard when it does not.
func poll(ctx context.Context, what string, holds func(context.Context) (bool, string)) error {
	var last string
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (ok bool, _ error) {
		ok, last = holds(ctx)
		return ok, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w; last seen: %s", what, err, last)
	}
	return nil
}
