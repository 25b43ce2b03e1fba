// Package cluster runs a small Kubernetes for tests, benchmarks and the demo:
// etcd, kube-apiserver and, where wanted, kube-controller-manager, on loopback,
// from the binaries that `make controlplane` builds. There are no nodes: pods
// are stored but never run.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/vextrus/saga-operator/internal/guard"
	"github.com/vextrus/saga-operator/internal/ports"
)

const (
	// A machine may have much else to do. Nothing waits that long where all is well.
	startTimeout = 10 * time.Minute
	stopTimeout  = 5 * time.Minute
	// startTries is how often kube-apiserver is started: it gives itself half a
	// minute to write what every cluster has, and ends where that is too little.
	startTries   = 5
	pollInterval = 100 * time.Millisecond
	logTail      = 4000 // bytes of a program's log in an error

	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	etcd              = "etcd"
)

// Options say what the cluster is made of.
type Options struct {
	// CRDs are files or directories of custom resource definitions. Nil means
	// config/crd/bases of this repository; empty means none.
	CRDs []string
	// Manifests are files of further objects, applied after the CRDs.
	Manifests []string
	// ControllerManager runs kube-controller-manager with the controllers that
	// make deletion work: namespaces are emptied and removed, dependents of a
	// deleted owner are collected.
	ControllerManager bool
	// Durable has etcd wait for the disk, as production does. For benchmarks.
	Durable bool
	// LogDir keeps the programs' logs; by default they go with the cluster.
	LogDir string
}

// Cluster is a running cluster. Its methods may be called concurrently, except
// for those that stop and start something.
type Cluster struct {
	// Config is the administrator's, without a client-side rate limit.
	Config *rest.Config

	assets     string
	logs       string
	kubeconfig string
	guard      *guard.Guard
	plane      envtest.ControlPlane
	manager    *program // kube-controller-manager, if it was wanted
	ports      []*ports.Port
}

// Start starts a cluster. The caller must Stop it. If the caller dies without
// doing so, its processes and files are removed all the same.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	root, err := checkout()
	if err != nil {
		return nil, err
	}
	assets, err := assetsDir(ctx, root, o.ControllerManager)
	if err != nil {
		return nil, err
	}
	crds := o.CRDs
	if crds == nil {
		crds = []string{filepath.Join(root, "config", "crd", "bases")}
	}
	g, err := guard.New("cluster")
	if err != nil {
		return nil, fmt.Errorf("preparing a cluster: %w", err)
	}
	c := &Cluster{assets: assets, guard: g, logs: g.Dir(), kubeconfig: filepath.Join(g.Dir(), "kubeconfig")}
	if o.LogDir != "" {
		c.logs = o.LogDir
	}
	if err := c.start(ctx, o, crds); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// New starts a cluster for one test, stopped when that ends.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := Start(ctx, o)
	if err != nil {
		t.Fatalf("starting a cluster: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Errorf("stopping the cluster: %v", err)
		}
	})
	return c
}

func (c *Cluster) start(ctx context.Context, o Options, crds []string) error {
	if err := c.describe(ctx, o); err != nil {
		return err
	}
	if err := c.startPrograms(ctx); err != nil {
		return err
	}
	if err := c.install(ctx, crds); err != nil {
		return err
	}
	text, err := Kubeconfig(c.Config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.kubeconfig, text, 0o600); err != nil {
		return fmt.Errorf("writing the administrator's kubeconfig: %w", err)
	}
	for _, file := range o.Manifests {
		manifest, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading a manifest: %w", err)
		}
		if err := c.Apply(ctx, manifest); err != nil {
			return fmt.Errorf("applying %s: %w", file, err)
		}
	}
	// After the CRDs: the garbage collector looks for new kinds only twice a
	// minute.
	if o.ControllerManager {
		return c.startControllerManager(ctx)
	}
	return nil
}

// describe describes etcd and kube-apiserver to envtest. Their files are in the
// guard's directory, so that envtest does not remove them on a restart.
func (c *Cluster) describe(ctx context.Context, o Options) error {
	store := &envtest.Etcd{DataDir: filepath.Join(c.guard.Dir(), etcd+"-data"), StartTimeout: startTimeout, StopTimeout: stopTimeout}
	server := c.plane.GetAPIServer()
	server.StartTimeout, server.StopTimeout = startTimeout, stopTimeout
	server.CertDir = filepath.Join(c.guard.Dir(), "certificates")
	for _, dir := range []string{store.DataDir, server.CertDir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("making a directory for the cluster: %w", err)
		}
	}
	var err error
	if store.Path, err = c.guarded(etcd); err != nil {
		return err
	}
	if server.Path, err = c.guarded(apiServer); err != nil {
		return err
	}
	if store.Err, err = c.log(etcd); err != nil {
		return err
	}
	if server.Err, err = c.log(apiServer); err != nil {
		return err
	}
	store.Out, server.Out = store.Err, server.Err
	c.plane.Etcd = store

	if err := c.place(ctx, store, server); err != nil {
		return err
	}
	store.Configure().Set("log-level", "warn").
		// etcd gives a request up after 5 s and twice the first of these. A machine that stands still for so long is no fault of who asks; a start takes hardly longer.
		Set("election-timeout", "3000").Set("heartbeat-interval", "300")
	if o.Durable {
		store.Configure().Set("unsafe-no-fsync", "false")
	}
	server.Configure().
		Set("profiling", "false").
		// Nobody asks for the service "kubernetes", and loopback cannot be its
		// address.
		Set("endpoint-reconciler-type", "none")
	return nil
}

// place gives etcd and kube-apiserver the ports that they keep while they are
// away.
func (c *Cluster) place(ctx context.Context, store *envtest.Etcd, server *envtest.APIServer) error {
	clients, err1 := c.port(ctx)
	peers, err2 := c.port(ctx)
	secure, err3 := c.port(ctx)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	store.URL = &url.URL{Scheme: "http", Host: clients.Address()}
	store.Configure().Set("listen-peer-urls", "http://"+peers.Address())
	server.Address, server.Port = "127.0.0.1", strconv.Itoa(secure.Number)
	return nil
}

// port draws a port, which is the cluster's until that is stopped.
func (c *Cluster) port(ctx context.Context) (*ports.Port, error) {
	p, err := ports.Draw(ctx)
	if err == nil {
		c.ports = append(c.ports, p)
	}
	return p, err
}

// guarded is a program that does as the one called name, under guard: envtest
// does not tell the ids of its processes.
func (c *Cluster) guarded(name string) (string, error) {
	path := filepath.Join(c.guard.Dir(), name)
	script := fmt.Sprintf("#!/bin/sh -e\n[ \"$1\" = --help ] || echo $$ >%s\nexec %s \"$@\"\n",
		quote(c.guard.PIDFile(name)), quote(filepath.Join(c.assets, name)))
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		return "", fmt.Errorf("writing a script to start %s: %w", name, err)
	}
	return path, nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (c *Cluster) logFile(name string) string { return filepath.Join(c.logs, name+".log") }

func (c *Cluster) log(name string) (*os.File, error) {
	f, err := os.OpenFile(c.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a log: %w", err)
	}
	return f, nil
}

// startPrograms starts etcd and kube-apiserver.
func (c *Cluster) startPrograms(ctx context.Context) error {
	started := make(chan error, 1)
	programs := []string{c.plane.Etcd.Path, c.plane.APIServer.Path} // Start writes where they stand
	go func() { started <- again(ctx, c.plane.Start) }()
	select {
	case err := <-started:
		if err != nil {
			return fmt.Errorf("starting etcd and kube-apiserver: %w\n%s\n%s", err,
				guard.Tail(c.logFile(etcd), logTail), guard.Tail(c.logFile(apiServer), logTail))
		}
		return nil
	case <-ctx.Done():
		// envtest knows no context, but gives up without its programs.
		err := errors.Join(os.Remove(programs[0]), os.Remove(programs[1]), c.guard.Close())
		return errors.Join(fmt.Errorf("starting etcd and kube-apiserver: %w", ctx.Err()), err, <-started)
	}
}

// again starts something until that succeeds, as often as it is worth while.
func again(ctx context.Context, start func() error) (err error) {
	for range startTries {
		if err = start(); err == nil || ctx.Err() != nil {
			break
		}
	}
	return err
}

// install makes the administrator and the CRDs, and waits until the server knows
// them. envtest's Environment would do the same, and give up after five seconds.
func (c *Cluster) install(ctx context.Context, crds []string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	admin, err := c.plane.AddUser(envtest.User{Name: "admin", Groups: []string{"system:masters"}}, &rest.Config{QPS: -1})
	if err != nil {
		return fmt.Errorf("adding the administrator: %w", err)
	}
	c.Config = rest.CopyConfig(admin.Config())
	k8s, err := client.New(c.Config, client.Options{})
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	// It comes a moment after the server.
	if err := await(ctx, func() error { return k8s.Get(ctx, client.ObjectKey{Name: "default"}, &corev1.Namespace{}) }); err != nil {
		return fmt.Errorf("waiting for the namespace default: %w", err)
	}
	options := envtest.CRDInstallOptions{Paths: crds, ErrorIfPathMissing: true, PollInterval: pollInterval, MaxTime: 10 * pollInterval}
	if err := envtest.ReadCRDFiles(&options); err != nil {
		return fmt.Errorf("reading the CRDs: %w", err)
	}
	if err := envtest.CreateCRDs(c.Config, options.CRDs); err != nil {
		return fmt.Errorf("installing the CRDs: %w", err)
	}
	if err := await(ctx, func() error { return envtest.WaitForCRDs(c.Config, options.CRDs, options) }); err != nil {
		return fmt.Errorf("waiting for the CRDs to be served: %w", err)
	}
	return nil
}

// await asks until the answer is good.
func await(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pollInterval):
		}
	}
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig }

// StopAPIServer ends kube-apiserver as a crash would; etcd keeps what is stored.
// Asked to end, it would wait up to a minute for those who watch.
func (c *Cluster) StopAPIServer() error {
	text, err := os.ReadFile(c.guard.PIDFile(apiServer))
	if err != nil {
		return fmt.Errorf("stopping kube-apiserver: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("stopping kube-apiserver: reading its process id: %w", err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stopping kube-apiserver: %w", err)
	}
	// envtest asks it to end once more, and then it may be gone already.
	if err := c.plane.APIServer.Stop(); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stopping kube-apiserver: %w", err)
	}
	return nil
}

// StartAPIServer starts kube-apiserver again, on the same port, with the same
// keys: credentials handed out before stay good. It returns once the server is
// ready, or once ctx ends.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	err := again(ctx, c.plane.APIServer.Start)
	if err == nil {
		err = c.awaitReady(ctx)
	}
	if err != nil {
		return fmt.Errorf("starting kube-apiserver again: %w\n%s", err, guard.Tail(c.logFile(apiServer), logTail))
	}
	return nil
}

func (c *Cluster) awaitReady(ctx context.Context) error {
	server, err := discovery.NewDiscoveryClientForConfig(c.Config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	if err := await(ctx, func() error { return server.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error() }); err != nil {
		return fmt.Errorf("it does not get ready: %w", err)
	}
	return nil
}

// RestartAPIServer stops kube-apiserver and starts it again.
func (c *Cluster) RestartAPIServer(ctx context.Context) error {
	if err := c.StopAPIServer(); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

// Stop ends the cluster and removes everything that it stored. It may be called
// again.
func (c *Cluster) Stop() error {
	var errs []error
	if c.manager != nil {
		errs = append(errs, c.manager.stop())
	}
	if c.plane.Etcd != nil {
		errs = append(errs, c.plane.Stop())
		for _, w := range []any{c.plane.Etcd.Err, c.plane.APIServer.Err} {
			if f, ok := w.(*os.File); ok {
				_ = f.Close()
			}
		}
	}
	errs = append(errs, c.guard.Close())
	for _, p := range c.ports {
		p.Release()
	}
	return errors.Join(errs...)
}

// assetsDir is where the binaries are: KUBEBUILDER_ASSETS, or what build.sh
// keeps for the versions of the day.
func assetsDir(ctx context.Context, root string, manager bool) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(root, "hack", "controlplane", "build.sh"), "--dir")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil { // the command only says that it was killed
		return "", fmt.Errorf("asking %s for the control plane: %w", cmd.Path, ctx.Err())
	}
	if err != nil {
		return "", fmt.Errorf("asking %s for the control plane: %w: %s", cmd.Path, err, stderr.String())
	}
	dir := strings.TrimSpace(string(out))
	programs := []string{etcd, apiServer}
	if manager {
		programs = append(programs, controllerManager)
	}
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			if os.Getenv("KUBEBUILDER_ASSETS") != "" {
				return "", fmt.Errorf("KUBEBUILDER_ASSETS has no %s: unset it and run `make controlplane`: %w", name, err)
			}
			return "", fmt.Errorf("the control plane is not built: run `make controlplane`: %w", err)
		}
	}
	return dir, nil
}

// checkout is the root of the repository around the working directory.
func checkout() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "hack", "controlplane", "build.sh")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("finding the repository: %s is not in it", wd)
		}
	}
}
