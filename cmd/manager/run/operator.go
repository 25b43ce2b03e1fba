package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/controllers"
	"github.com/vextrus/saga-operator/internal/creators"
	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/panics"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/quota"
	"github.com/vextrus/saga-operator/internal/steadyclock"
	"github.com/vextrus/saga-operator/internal/supervise"
)

// stopMargin is what stopping may take beyond the grace that attempts have.
const stopMargin = 5 * time.Second

// storeFlushers is how many transactions the event store has under way at once: while one commits, the next is filled.
const storeFlushers = 2

// operator runs the operator until ctx is done. A database that is away is waited for, and readiness says so: the process does not end for it.
// wall is the machine's clock.
func operator(ctx context.Context, c Config, log *slog.Logger, wall func() time.Time) error {
	log.Info("starting the saga operator", "version", Version)
	restConfig, err := kubeConfig(c)
	if err != nil {
		return err
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: string(c.DatabaseURL), MaxConns: int32(c.DatabaseConnections)})
	if err != nil {
		return err
	}
	defer pool.Close()
	clock := newClock(wall, pool)
	mgr, err := newManager(c, restConfig)
	if err != nil {
		return err
	}
	var models *readModels
	relay, err := newRelay(c, pool, log, func() { models.committed() }) // it answers to nobody before it runs
	if err != nil {
		return err
	}
	news := make(chan struct{}, 1)
	if models, err = newReadModels(pool, log, func() { relay.Wake(); nudge(news) }); err != nil {
		return err
	}
	store := storepg.NewGathering(pool, storeFlushers, storepg.OnCommit(models.committed))
	defer closeStore(ctx, store, log)
	servers, err := newAPIServers(restConfig, os.LookupEnv, mgr.GetAPIReader(), log)
	if err != nil {
		return err
	}
	policy, err := egressPolicy(c, servers)
	if err != nil {
		return err
	}
	tokens := &engine.Callbacks{Store: store, Clock: clock.Now}
	machine, err := wire(c, log, mgr, tokens, relay, policy, news)
	if err != nil {
		return err
	}
	if err := errors.Join(wireAPI(c, log, mgr, pool, tokens, machine), wireMetrics(c, log, mgr)); err != nil {
		return err
	}
	if err := errors.Join(
		supervise.Add(mgr, log, servers), supervise.Add(mgr, log, models),
		supervise.Add(mgr, log, &retention{store: store, after: c.HistoryRetention, clock: clock.Now, log: log}),
		supervise.Add(mgr, log, &callbackSweep{store: store, clock: clock.Now, log: log}), wireClock(clock, mgr, log),
	); err != nil {
		return err
	}
	// Readiness outlives the context: while the operator stops it says why it is not ready.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	if err := newHealth(ctx, c, log, mgr, pool, store, clock).serve(serving, c.HealthAddress); err != nil {
		return err
	}
	awaitSchema(ctx, c, pool, log)
	clock.Await(ctx, log)
	servers.await(ctx)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the manager: %w", err)
	}
	log.Info("stopped")
	return nil
}

// closeStore waits for the last appends. Those that are not answered in time may have been committed all the same; the next start looks.
func closeStore(ctx context.Context, store *storepg.Gathering, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopMargin)
	defer cancel()
	if err := store.Close(ctx); err != nil {
		log.Warn("the event store was closed before its last appends were answered", "error", err)
	}
}

func kubeConfig(c Config) (cfg *rest.Config, err error) {
	if c.Kubeconfig != "" {
		cfg, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	} else {
		cfg, err = ctrl.GetConfig() // KUBECONFIG, else the cluster's own, else the user's
	}
	if err != nil {
		return nil, fmt.Errorf("finding the cluster: %w", err)
	}
	cfg.QPS, cfg.Burst = float32(c.KubeQPS), c.KubeBurst
	cfg.UserAgent = "saga-operator/" + Version
	return cfg, nil
}

// Scheme has the types that the operator reads and writes.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1.AddToScheme, corev1.AddToScheme, eventsv1.AddToScheme, discoveryv1.AddToScheme, admissionregistrationv1.AddToScheme, authenticationv1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func newManager(c Config, cfg *rest.Config) (manager.Manager, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	grace := c.ShutdownGrace + stopMargin
	renew, retry := c.LeaseDuration*2/3, c.LeaseDuration/15
	lock, err := leaseLock(c, cfg, renew)
	if err != nil {
		return nil, err
	}
	options := ctrl.Options{
		Scheme: scheme,
		Cache: cache.Options{
			ByObject: map[client.Object]cache.ByObject{&v1.Saga{}: {Transform: controllers.Transform}},
		},
		// Health is served by this package: controller-runtime's checks keep their reasons to themselves.
		HealthProbeBindAddress: "0",
		// Metrics are served by this project too: controller-runtime's server limits no connections.
		Metrics:                             metricsserver.Options{BindAddress: "0"},
		PprofBindAddress:                    c.PprofAddress,
		LeaderElection:                      c.LeaderElect,
		LeaderElectionResourceLockInterface: lock,
		LeaseDuration:                       &c.LeaseDuration, RenewDeadline: &renew, RetryPeriod: &retry,
		// The lease is given back only after the last attempt has ended.
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       &grace,
	}
	if len(c.Namespaces) > 0 {
		options.Cache.DefaultNamespaces = map[string]cache.Config{}
		for _, ns := range c.Namespaces {
			options.Cache.DefaultNamespaces[ns] = cache.Config{}
		}
	}
	mgr, err := ctrl.NewManager(cfg, options)
	if err != nil {
		return nil, fmt.Errorf("making the manager: %w", err)
	}
	return mgr, nil
}

// wire puts reconciler and engine together. Each needs the other: outcomes queue keys. They use the store
// and the clock of tokens.
func wire(
	c Config, log *slog.Logger, mgr manager.Manager, tokens *engine.Callbacks, r *relay, policy *egress.Policy, news <-chan struct{},
) (_ *engine.Engine, err error) {
	quotas := quota.NewTable(c.Quotas)
	annotations := controllers.NewNamespaceQuotas(quotas, mgr.GetCache(), log)
	if err := errors.Join(supervise.Add(mgr, log, annotations), wireSinks(c, log, mgr, r, policy, quotas)); err != nil {
		return nil, err
	}
	checked, err := wireCreators(log, mgr)
	if err != nil {
		return nil, err
	}
	kinds := participants(c, policy, r, tokens)
	sagas := &controllers.SagaReconciler{
		Logger: log, Clock: tokens.Clock, Concurrency: c.Concurrency, Watches: c.watches, Events: c.Events, Quotas: quotas, QuotasRead: annotations.Read(), Creators: checked,
	}
	sagas.Engine, err = engine.New(engine.Options{
		Store: tokens.Store, Clock: tokens.Clock, Participants: kinds, Notify: sagas.Enqueue, Workers: c.Workers, Limits: c.Limits, AttemptRate: func(namespace string) int64 { return quotas.Of(namespace).AttemptsPerSecond }, KeyRetention: c.KeyRetention, Memory: engine.TotalMemory(c.SagaMemoryBytes),
		Logger: log, Metrics: metrics.Registry,
	})
	if err != nil {
		return nil, err
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "saga_waiting_for_quota", Help: "Sagas that wait to start because of the quotas of their namespaces."},
		panics.Value(log, "counting sagas that wait for a quota", func() float64 { return float64(sagas.WaitingForQuota()) }))
	if err := errors.Join(sagas.SetupWithManager(mgr), metrics.Registry.Register(waiting), metrics.Registry.Register(panics.Total)); err != nil {
		return nil, err
	}
	if err := supervise.Add(mgr, log, &answers{engine: sagas.Engine, tell: sagas.Enqueue, news: news, log: log}); err != nil {
		return nil, err
	}
	return sagas.Engine, supervise.Add(mgr, log, &drain{engine: sagas.Engine, grace: c.ShutdownGrace, log: log})
}

// wireCreators returns the check of the policy that protects the names of creators.
func wireCreators(log *slog.Logger, mgr manager.Manager) (*creators.Check, error) {
	live, err := client.New(mgr.GetConfig(), client.Options{Scheme: mgr.GetScheme(), HTTPClient: mgr.GetHTTPClient()})
	if err != nil {
		return nil, fmt.Errorf("making the client for admission policies: %w", err)
	}
	check := creators.NewCheck(live, log)
	recorded := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "saga_creators_recorded", Help: "1 if the creators of new sagas are recorded; 0 if the admission policy that protects their names is not installed as shipped."},
		panics.Value(log, "checking the policy of creators", func() float64 {
			if check.Recorded() {
				return 1
			}
			return 0
		}))
	return check, errors.Join(supervise.Add(mgr, log, check), metrics.Registry.Register(recorded))
}

// drain lets attempts end when the operator stops leading. It is a runnable so that the lease is kept meanwhile.
type drain struct {
	engine *engine.Engine
	grace  time.Duration
	log    *slog.Logger
}

// Start implements manager.Runnable.
func (d *drain) Start(ctx context.Context) error {
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.grace)
	defer cancel()
	if err := d.engine.Shutdown(ctx); err != nil {
		d.log.Warn("not every attempt ended in time", "error", err)
	}
	return nil
}

// awaitSchema brings the database to the version that this binary knows, or waits for somebody else to do so, until ctx is done. A database that is newer
// serves an older operator as long as an upgrade takes.
func awaitSchema(ctx context.Context, c Config, pool *pgxpool.Pool, log *slog.Logger) {
	const pause = 2 * time.Second
	for told := ""; ctx.Err() == nil; {
		err := prepareSchema(ctx, c, pool)
		if err == nil || errors.Is(err, postgres.ErrSchemaNewer) {
			return
		}
		if err.Error() != told {
			told = err.Error()
			log.Warn("waiting for the database", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func prepareSchema(ctx context.Context, c Config, pool *pgxpool.Pool) error {
	if err := postgres.CheckSchema(ctx, pool); err == nil || !errors.Is(err, postgres.ErrSchemaOlder) || !c.Migrate {
		return err
	}
	return postgres.Migrate(ctx, string(c.DatabaseURL))
}

func newHealth(ctx context.Context, c Config, log *slog.Logger, mgr manager.Manager, pool *pgxpool.Pool, store eventstore.Store, clock *steadyclock.Clock) *health {
	return &health{log: log, checks: []check{
		{"running", func(context.Context) error {
			if ctx.Err() != nil {
				return errors.New("the operator is stopping")
			}
			return nil
		}},
		{"apiserver", (&remembered{ask: func(ctx context.Context) error { return sagasReadable(ctx, c, mgr.GetAPIReader()) }, clock: time.Now}).why},
		{"caches", func(ctx context.Context) error { return cachesSynced(ctx, mgr) }},
		{"database", store.Ping},
		{"schema", func(ctx context.Context) error { return postgres.CheckSchema(ctx, pool) }},
		{"clock", clock.Ready},
	}}
}

// sagasReadable asks the API server for a saga, as nothing that the operator holds in memory can answer. What a cache holds looks the same however long its server is away.
func sagasReadable(ctx context.Context, c Config, kube client.Reader) error {
	one := &metav1.PartialObjectMetadataList{}
	one.SetGroupVersionKind(v1.GroupVersion.WithKind("SagaList"))
	options := []client.ListOption{client.Limit(1)}
	if len(c.Namespaces) > 0 {
		options = append(options, client.InNamespace(c.Namespaces[0]))
	}
	if err := kube.List(ctx, one, options...); err != nil {
		return fmt.Errorf("reading sagas at the API server: %w", err)
	}
	return nil
}

// cachesSynced also has the cache of a replica that does not lead filled, so that it can take over at once.
func cachesSynced(ctx context.Context, mgr manager.Manager) error {
	informer, err := mgr.GetCache().GetInformer(ctx, &v1.Saga{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("looking for the sagas at the API server: %w", err)
	}
	if !informer.HasSynced() {
		return errors.New("the sagas have not been read from the API server yet")
	}
	return nil
}
