package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/quota"
	"github.com/vextrus/saga-operator/internal/supervise"
)

// Relay is what publishes to sinks.
type Relay interface {
	// Begin says that there is a sink, which may not be ready to be set: what is committed from now on waits for it.
	Begin(ctx context.Context, id, name string) error
	// Set has a sink published to, in the place of the one with its ID. The publisher is the relay's from then on, which closes it.
	Set(ctx context.Context, s outbox.Sink) error
	// Remove ends that. What waits for the sink is kept.
	Remove(id string)
	// Statuses says where all sinks stand that were ever set and are not forgotten.
	Statuses(ctx context.Context) ([]outbox.Status, error)
	// Forget drops what is kept of a sink that is gone for good, and reports whether it did: not while somebody publishes to it.
	Forget(ctx context.Context, id string) (bool, error)
}

const (
	// sinkConcurrency is how many sinks are looked at at once: a destination that does not answer takes its check's whole time.
	sinkConcurrency = 16
	// relayTimeout bounds a call of the relay, which goes to the database.
	relayTimeout = 10 * time.Second
	// maxCheckTimeout bounds the check of a destination.
	maxCheckTimeout = 15 * time.Second
)

// sinkPace is how often things are looked at.
type sinkPace struct {
	// look is how often Secrets are read again, which nobody watches: the operator may only get them. mend is the first pause if something is wrong with a sink; it doubles up
	// to look.
	look, mend time.Duration
	// recheck is how often a destination that is ready is checked; one that is not is checked after firstCheck, doubled up to recheck.
	firstCheck, recheck time.Duration
	// refresh is how often the numbers of the statuses are looked up, and forget how often it is looked for sinks that are gone.
	refresh, forget time.Duration
}

var usualSinkPace = sinkPace{
	look: 30 * time.Second, mend: 10 * time.Second, firstCheck: 5 * time.Second, recheck: time.Minute, refresh: 10 * time.Second, forget: time.Minute,
}

// SinkReconciler has what Sinks and ClusterSinks say published to. It runs on every replica, because each relays a share; only the one that leads checks the destinations
// and writes statuses.
type SinkReconciler struct {
	// Relay publishes; required.
	Relay Relay
	// Dial makes the connections of all publishers. It is where the egress policy is asked; required.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Namespace is the operator's own, where the Secrets of ClusterSinks are.
	Namespace string
	// UserAgent is what HTTP destinations see.
	UserAgent string
	// Client reads from the cache and writes to the API server; Live reads from the API server.
	Client client.Client
	Live   client.Reader
	Logger *slog.Logger
	// Clock tells the time; the system's by default.
	Clock func() time.Time
	// Watches reports whether a namespace is this operator's business; nil for all.
	Watches func(namespace string) bool
	// Quotas has the quotas of all namespaces; nil means no quotas.
	Quotas *quota.Table
	// Elected is closed when this process leads; the manager's by default.
	Elected <-chan struct{}
	// AnyName lets several controllers live in one process, as tests want it.
	AnyName bool

	pace       sinkPace
	around     func(outbox.Publisher) outbox.Publisher // tests look at publishers by it
	queue      atomic.Pointer[sinkQueue]
	namespaces namespaceLabels
	order      sinkOrder
	standings  atomic.Pointer[map[string]outbox.Status] // by ID; nil before the first look
	self       atomic.Pointer[string]                   // how kubectl names the operator; nil until it was needed

	mu      sync.Mutex
	entries map[reconcile.Request]*sinkEntry
}

type sinkQueue = workqueue.TypedRateLimitingInterface[reconcile.Request]

//+kubebuilder:rbac:groups=saga.vextrus.io,resources=sinks;clustersinks,verbs=get;list;watch
//+kubebuilder:rbac:groups=saga.vextrus.io,resources=sinks/status;clustersinks/status,verbs=update;patch
//+kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch

// SetupWithManager adds the controller to a manager.
func (r *SinkReconciler) SetupWithManager(mgr manager.Manager) error {
	if r.Relay == nil || r.Dial == nil {
		return errors.New("setting up the sink controller: Relay and Dial are required")
	}
	r.setDefaults(mgr)
	const forGood = 10 * 365 * 24 * time.Hour // sagas go on where the kinds of sinks are not installed
	c, err := controller.NewTyped("sink", mgr, controller.TypedOptions[reconcile.Request]{
		Reconciler:              r,
		MaxConcurrentReconciles: sinkConcurrency,
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minBackoff, maxBackoff),
		RecoverPanic:            new(true),
		NeedLeaderElection:      new(false),
		CacheSyncTimeout:        forGood,
		SkipNameValidation:      new(r.AnyName),
	})
	if err != nil {
		return err
	}
	all := mgr.GetCache()
	for _, s := range []source.TypedSource[reconcile.Request]{
		source.TypedFunc[reconcile.Request](func(_ context.Context, q sinkQueue) error { r.queue.Store(&q); return nil }),
		r.namespaceSource(all), r.orderSource(all), sinkSource(all, r.Logger, &v1.Sink{}), sinkSource(all, r.Logger, &v1.ClusterSink{}),
	} {
		if err := c.Watch(s); err != nil {
			return err
		}
	}
	r.Quotas.OnChange(r.lookAtAll)
	return supervise.Add(mgr, r.Logger, &sinkTender{r: r})
}

func (r *SinkReconciler) setDefaults(mgr manager.Manager) {
	r.entries = map[reconcile.Request]*sinkEntry{}
	if r.Client == nil {
		r.Client = mgr.GetClient()
	}
	if r.Live == nil {
		r.Live = mgr.GetAPIReader()
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.Clock == nil {
		r.Clock = time.Now
	}
	if r.Watches == nil {
		r.Watches = func(string) bool { return true }
	}
	if r.Elected == nil {
		r.Elected = mgr.Elected()
	}
	if r.around == nil {
		r.around = func(p outbox.Publisher) outbox.Publisher { return p }
	}
	if r.pace == (sinkPace{}) {
		r.pace = usualSinkPace
	}
}

// Reconcile is everything that happens to a sink, in order. Two reconciles of one sink never run at once, so that what is remembered of it needs no lock.
func (r *SinkReconciler) Reconcile(ctx context.Context, key reconcile.Request) (reconcile.Result, error) {
	s, err := r.read(ctx, key)
	if err != nil {
		return reconcile.Result{}, err
	}
	e := r.entry(key, s)
	if s == nil {
		return reconcile.Result{}, nil
	}
	if err := r.look(ctx, s, e); err != nil {
		return reconcile.Result{}, err
	}
	if r.leads() {
		r.check(ctx, s, e)
		if err := r.report(ctx, s, e); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{RequeueAfter: r.again(e)}, nil
}

// leads reports whether this process leads.
func (r *SinkReconciler) leads() bool {
	select {
	case <-r.Elected:
		return true
	default:
		return false
	}
}

// sinkObject is a Sink or a ClusterSink.
type sinkObject struct {
	client.Object
	// title is its name for people, which no other sink has.
	title string
	spec  *v1.SinkSpec
	// cluster is the spec of a ClusterSink, nil for a Sink.
	cluster *v1.ClusterSinkSpec
	status  *v1.SinkStatus
	// secrets is the namespace of its Secrets.
	secrets string
}

func (s *sinkObject) id() string { return string(s.GetUID()) }

// copied returns the object once more, with its status.
func (s *sinkObject) copied() (client.Object, *v1.SinkStatus) {
	switch o := s.Object.(type) {
	case *v1.Sink:
		c := o.DeepCopy()
		return c, &c.Status
	default:
		c := o.(*v1.ClusterSink).DeepCopy()
		return c, &c.Status
	}
}

// read returns what the cache has of a sink; nil where there is none, or none that is this operator's business.
func (r *SinkReconciler) read(ctx context.Context, key reconcile.Request) (*sinkObject, error) {
	var s sinkObject
	if key.Namespace == "" {
		o := &v1.ClusterSink{}
		s = sinkObject{Object: o, title: key.Name, spec: &o.Spec.SinkSpec, cluster: &o.Spec, status: &o.Status, secrets: r.Namespace}
	} else {
		if !r.Watches(key.Namespace) {
			return nil, nil
		}
		o := &v1.Sink{}
		s = sinkObject{Object: o, title: key.Namespace + "/" + key.Name, spec: &o.Spec, status: &o.Status, secrets: key.Namespace}
	}
	err := r.Client.Get(ctx, key.NamespacedName, s.Object)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading sink %s: %w", key.NamespacedName, err)
	}
	return &s, nil
}

// entry returns what is remembered of a sink. Where that is gone, or is another one under the same name, it is no longer published to.
func (r *SinkReconciler) entry(key reconcile.Request, s *sinkObject) *sinkEntry {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[key]
	if e != nil && (s == nil || e.id != s.id()) {
		r.stop(e)
		delete(r.entries, key)
		e = nil
	}
	if e == nil && s != nil {
		e = &sinkEntry{id: s.id()}
		r.entries[key] = e
	}
	return e
}

// stop has nothing published to a sink.
func (r *SinkReconciler) stop(e *sinkEntry) {
	if e.publisher != nil {
		r.Relay.Remove(e.id)
	}
	e.publisher, e.made = nil, ""
}

// again returns when a sink is to be looked at the next time; 0 for when something happens.
func (r *SinkReconciler) again(e *sinkEntry) time.Duration {
	next := e.lookAt
	if e.publisher != nil && r.leads() && (next.IsZero() || e.checkAt.Before(next)) {
		next = e.checkAt
	}
	if next.IsZero() {
		return 0
	}
	return max(next.Sub(r.Clock()), minBackoff)
}
