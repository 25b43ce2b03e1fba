package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// world is everything that a saga which is an object needs: an API server, PostgreSQL, participants, and the operator as a process of its own.
type world struct {
	dir      string
	binary   string
	cluster  *cluster.Cluster
	server   *throwaway.Server
	dsn      string
	parts    *participants
	clients  []client.Client
	watcher  client.WithWatch
	operator *exec.Cmd
	logPath  string
}

// clientConnections is how many clients with connections of their own there are; more share them.
const clientConnections = 8

func startWorld(ctx context.Context) (w *world, err error) {
	w = &world{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if w.dir, err = os.MkdirTemp("", "saga-bench-"); err != nil {
		return w, fmt.Errorf("making a directory: %w", err)
	}
	w.binary, w.logPath = filepath.Join(w.dir, "manager"), filepath.Join(os.TempDir(), "saga-bench-operator.log")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", w.binary, "./cmd/manager").CombinedOutput(); err != nil {
		return w, fmt.Errorf("building the operator: %w: %s", err, out)
	}
	if w.server, err = throwaway.Start(ctx, throwaway.Options{Durable: true}); err != nil {
		return w, err
	}
	if w.dsn, _, err = w.server.NewDatabase(ctx); err != nil {
		return w, err
	}
	if w.cluster, err = cluster.Start(ctx, cluster.Options{Durable: true, Manifests: admission()}); err != nil {
		return w, err
	}
	if w.parts, err = startParticipants(); err != nil {
		return w, err
	}
	if err := w.connect(); err != nil {
		return w, err
	}
	return w, w.awaitAdmission(ctx)
}

// awaitAdmission waits until the API server applies the policy: it learns the types that a policy writes a while after they were installed.
func (w *world) awaitAdmission(ctx context.Context) error {
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		probe := objectSaga(metav1.NamespaceDefault, "probe", w.parts.url)
		err := w.clients[0].Create(ctx, probe, client.DryRunAll)
		return err == nil && len(probe.Finalizers) > 0, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the admission policy to take effect: %w", err)
	}
	return nil
}

// admission lists the policies as they are deployed: they put the finalizer on at creation, also in the measurement of the limit.
func admission() []string {
	files, _ := filepath.Glob("config/admission/*_policy.yaml") // the pattern is well formed
	return files
}

func (w *world) connect() (err error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1.AddToScheme(scheme)); err != nil {
		return err
	}
	if w.clients, err = newClients(w.cluster.Config, scheme, clientConnections); err != nil {
		return err
	}
	cfg := rest.CopyConfig(w.cluster.Config)
	cfg.WarningHandler = rest.NoWarnings{}
	w.watcher, err = client.NewWithWatch(cfg, client.Options{Scheme: scheme})
	return err
}

func (w *world) stop() error {
	errs := []error{w.stopOperator()}
	if w.parts != nil {
		errs = append(errs, w.parts.stop())
	}
	if w.cluster != nil {
		errs = append(errs, w.cluster.Stop())
	}
	if w.server != nil {
		errs = append(errs, w.server.Stop(context.Background()))
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// startOperator starts the operator as it is deployed, and waits until it is ready.
func (w *world) startOperator(ctx context.Context) error {
	if w.operator != nil {
		return nil
	}
	kubeconfig, err := cluster.Kubeconfig(w.cluster.Config)
	if err != nil {
		return err
	}
	path := filepath.Join(w.dir, "kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	health, err := freeAddress()
	if err != nil {
		return err
	}
	log, err := os.Create(w.logPath)
	if err != nil {
		return fmt.Errorf("making the operator's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(w.binary, "--kubeconfig", path, "--egress-allow", "127.0.0.0/8", "--leader-elect=false",
		"--health-address", health, "--metrics-address", "0")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+w.dsn)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the operator: %w", err)
	}
	w.operator = cmd
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		return ready(ctx, "http://"+health+"/readyz"), nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the operator to be ready: %w; its log: %s", err, w.logPath)
	}
	return nil
}

func ready(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (w *world) namespace(ctx context.Context, name string) error {
	err := w.clients[0].Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil {
		return fmt.Errorf("making namespace %s: %w", name, err)
	}
	return nil
}
