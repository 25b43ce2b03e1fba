// Package world starts everything that the shop stands on, for the demo and for tests that break it: a real kube-apiserver with etcd and kube-controller-manager, PostgreSQL, and the operator and the
// services as processes of their own, with the rights that they have in production.
package world

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/ports"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
	"github.com/vextrus/saga-operator/test/operator"
)

const (
	// Namespace is where the orders' sagas are.
	Namespace = "shop"
	// System is where the operator is.
	System = "saga-system"
	// Operator is the name of the operator's process. The others are named as the services.
	Operator = "operator"
	// Services is the name of the services' process where they are one.
	Services = "services"
	// connections is how many each service has to the database.
	connections = 6
)

// Options say how to start it.
type Options struct {
	// Root is the repository.
	Root string
	// Durable has PostgreSQL wait for the disk, as production does.
	Durable bool
	// Separate runs each service as a process of its own; otherwise they are one.
	Separate bool
	// Elect has the operator be elected before it does anything, as in production. One that comes after one that was killed waits for the lease to end then.
	Elect bool
	// Args are further flags of the services' processes.
	Args []string
	// DefaultPorts has the services listen where the sagas of the example are written for, if nobody else does.
	DefaultPorts bool
	// Stage is told of each thing that is started; what it returns is told how that ended. Progress is told of what takes long within it.
	Stage    func(about string) (ended func(error))
	Progress func(line string)
}

// World is everything, while it runs.
type World struct {
	Cluster *cluster.Cluster
	Client  client.WithWatch
	// Database is the operator's, Shop that of the services.
	Database string
	Shop     *pgxpool.Pool
	URLs     ordertocash.URLs
	// API is the URL of the operator's API.
	API string

	options  Options
	workshop *operator.Workshop
	postgres *throwaway.Server
	admin    *rest.Config // of the operator
	ports    []*ports.Port

	mu        sync.Mutex
	processes map[string]*operator.Process
}

// Start starts everything. The caller must Stop it, also after an error.
func Start(ctx context.Context, o Options) (*World, error) {
	if o.Stage == nil {
		o.Stage = func(string) func(error) { return func(error) {} }
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	w := &World{options: o, processes: map[string]*operator.Process{}}
	for _, s := range []struct {
		about string
		do    func(context.Context) error
	}{
		{"building the operator and the services", w.build},
		{"starting PostgreSQL", w.startPostgres},
		{"starting etcd, kube-apiserver and kube-controller-manager", w.startCluster},
		{"starting orders, inventory, payments, shipping and invoicing", w.startServices},
		{"starting the operator, with the rights it has in production", w.startOperator},
	} {
		ended := o.Stage(s.about)
		err := s.do(ctx)
		ended(err)
		if err != nil {
			return w, fmt.Errorf("%s: %w", s.about, err)
		}
	}
	return w, nil
}

// Stop ends everything in the reverse order. What ended by itself, or not cleanly, is an error.
func (w *World) Stop() error {
	var errs []error
	for _, name := range append([]string{Operator, Services}, services.Names...) {
		if p := w.Process(name); p != nil {
			errs = append(errs, p.Stop())
		}
	}
	if w.Shop != nil {
		w.Shop.Close()
	}
	if w.Cluster != nil {
		errs = append(errs, w.Cluster.Stop())
	}
	if w.postgres != nil {
		errs = append(errs, w.postgres.Close())
	}
	if w.workshop != nil {
		errs = append(errs, w.workshop.Close())
	}
	for _, p := range w.ports {
		p.Release()
	}
	return errors.Join(errs...)
}

func (w *World) build(ctx context.Context) (err error) {
	if w.workshop, err = operator.NewWorkshop(ctx); err != nil {
		return err
	}
	return w.workshop.Build(ctx, "github.com/vextrus/saga-operator/examples/order-to-cash/cmd/services", Services)
}

func (w *World) startPostgres(ctx context.Context) (err error) {
	if w.postgres, err = throwaway.Start(ctx, throwaway.Options{Durable: w.options.Durable, Progress: w.options.Progress}); err != nil {
		return err
	}
	if w.Database, _, err = w.postgres.NewEmptyDatabase(ctx); err != nil {
		return err
	}
	shop, _, err := w.postgres.NewEmptyDatabase(ctx)
	if err != nil {
		return err
	}
	w.Shop, err = pgxpool.New(ctx, shop)
	return err
}

// Process is the running process of a name; nil when there was none.
func (w *World) Process(name string) *operator.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.processes[name]
}

// Names are the names of the processes.
func (w *World) Names() []string {
	if w.options.Separate {
		return append([]string{Operator}, services.Names...)
	}
	return []string{Operator, Services}
}

// Run starts the process of a name, once more where it has ended, and returns when it is ready.
func (w *World) Run(ctx context.Context, name string) error {
	var p *operator.Process
	var err error
	if name == Operator {
		p, err = w.workshop.Start(ctx, operator.Options{
			Config: w.admin, DatabaseURL: w.Database, LogFile: w.LogFile(name),
			Args: []string{
				fmt.Sprintf("--leader-elect=%t", w.options.Elect), "--lease-namespace", System, "--api-bind-address", strings.TrimPrefix(w.API, "https://"),
				"--api-tls-cert-file", w.workshop.Path(certFile), "--api-tls-key-file", w.workshop.Path(keyFile), "--callback-url", w.API,
			},
		})
	} else {
		p, err = w.workshop.Run(name, operator.Command{
			Binary: Services, Health: w.health(name), LogFile: w.LogFile(name),
			// The guard that ends this process knows it by the directory in its command line, which its path has.
			Args: w.serviceArgs(name), Env: []string{"DATABASE_URL=" + w.Shop.Config().ConnString()},
		})
	}
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.processes[name] = p
	w.mu.Unlock()
	return p.AwaitReady(ctx)
}

// LogFile is where a process of a name writes its log.
func (w *World) LogFile(name string) string { return w.workshop.Path(name + ".log") }

// TokenFile is the token of the orders service.
func (w *World) TokenFile() string { return w.workshop.Path(tokenFile) }

func (w *World) serviceArgs(name string) []string {
	at := func(url string) string { return strings.TrimPrefix(url, "http://") }
	args := []string{
		"-orders-address", at(w.URLs.Orders), "-inventory-address", at(w.URLs.Inventory), "-payments-address", at(w.URLs.Payments), "-shipping-address", at(w.URLs.Shipping),
		"-invoicing-address", at(w.URLs.Invoicing), "-database-connections", fmt.Sprint(connections),
		"-api-url", w.API, "-api-ca-file", w.workshop.Path(caFile), "-api-token-file", w.workshop.Path(tokenFile), "-namespace", Namespace,
	}
	if name != Services {
		args = append(args, "-service", name)
	}
	return append(args, w.options.Args...)
}

func (w *World) health(name string) string {
	url := map[string]string{
		services.Orders: w.URLs.Orders, services.Inventory: w.URLs.Inventory, services.Payments: w.URLs.Payments, services.Invoicing: w.URLs.Invoicing, services.Shipping: w.URLs.Shipping,
		Services: w.URLs.Shipping,
	}[name]
	return url + "/healthz"
}

func (w *World) startServices(ctx context.Context) (err error) {
	at := ordertocash.DefaultURLs
	if !w.options.DefaultPorts || !w.take(ctx, at) {
		// Somebody else has the ports that the manifests are written for: take others, and send the sagas there.
		if err := w.otherPorts(ctx, &at.Orders, &at.Inventory, &at.Payments, &at.Shipping, &at.Invoicing); err != nil {
			return err
		}
	}
	w.URLs = at
	for _, name := range w.Names() {
		if name == Operator {
			continue
		}
		if err := w.Run(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) startOperator(ctx context.Context) (err error) {
	if w.admin, err = w.Cluster.ServiceAccount(ctx, System, "saga-operator"); err != nil {
		return err
	}
	return w.Run(ctx, Operator)
}

// take takes the ports of some URLs, or none of them.
func (w *World) take(ctx context.Context, at ordertocash.URLs) bool {
	var taken []*ports.Port
	for _, url := range []string{at.Orders, at.Inventory, at.Payments, at.Shipping, at.Invoicing} {
		_, text, _ := strings.Cut(strings.TrimPrefix(url, "http://"), ":")
		number, err := strconv.Atoi(text)
		var p *ports.Port
		if err == nil {
			p, err = ports.Take(ctx, number)
		}
		if err != nil {
			for _, p := range taken {
				p.Release()
			}
			return false
		}
		taken = append(taken, p)
	}
	w.ports = append(w.ports, taken...)
	return true
}

// otherPorts makes http URLs of free ports, which are ours until everything is stopped: processes come back to theirs.
func (w *World) otherPorts(ctx context.Context, urls ...*string) error {
	for _, url := range urls {
		p, err := ports.Draw(ctx)
		if err != nil {
			return err
		}
		w.ports = append(w.ports, p)
		*url = "http://" + p.Address()
	}
	return nil
}

// manifests are the files of a directory of the repository that can be applied.
func (w *World) manifests(dir string) ([]string, error) {
	var files []string
	found, err := filepath.Glob(filepath.Join(w.options.Root, dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if filepath.Base(f) != "kustomization.yaml" {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is nothing in %s: run this from the root of the repository", filepath.Join(w.options.Root, dir))
	}
	return files, nil
}

// patience bounds the wait for something of the cluster's.
const patience = 10 * time.Minute
