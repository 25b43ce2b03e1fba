package controllers

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/quota"
	"github.com/vextrus/saga-operator/internal/supervise"
)

// DefaultConcurrency is how many sagas are reconciled at once when nothing else is asked for. A reconcile mostly waits for PostgreSQL and
// for the API server, so it is many more than there are cores.
const DefaultConcurrency = 64

// How long a key that fails waits before it is tried again: doubled each time, without a common bucket that would let the failures of many
// sagas hold up the others.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// SagaReconciler moves sagas forward. Its keys carry the uid: an object that is made again under the name of another is another saga.
type SagaReconciler struct {
	// Client reads from the cache and writes to the API server; Live reads from the API server.
	Client client.Client
	Live   client.Reader
	// Engine drives the sagas. Its Options.Notify has to be the reconciler's Enqueue.
	Engine *engine.Engine
	// Events has a Kubernetes event made for each change of phase.
	Events bool
	Logger *slog.Logger
	// Clock and Random are the time and the chance that pauses are drawn from; the system's by default.
	Clock  func() time.Time
	Random func() uint64
	// Concurrency is how many sagas are reconciled at once; DefaultConcurrency by default.
	Concurrency int
	// Watches reports whether a namespace is this operator's business; nil for all.
	Watches func(namespace string) bool
	// Quotas has the quotas of all namespaces; nil means no quotas. QuotasRead is closed when the quotas
	// have been read; nil means that they are complete from the start.
	Quotas     *quota.Table
	QuotasRead <-chan struct{}
	// Creators decides whether the annotation that names the creator of a saga is recorded; nil means
	// that it never is.
	Creators Creators
	// AnyName lets several controllers live in one process, as tests want it.
	AnyName bool

	limiter workqueue.TypedRateLimiter[engine.Key] // how long a key that fails waits
	queue   atomic.Pointer[queue]
	started chan struct{} // closed when there is a queue
	notes   notes
	// unfinished counts the sagas that have started; nil without Quotas.
	unfinished *quota.Sagas[engine.Key]
	events     *eventWriter
	lost       signal // the event store does not answer
	writes     latency
}

// Creators reports whether the cluster protects the annotation that names the creator of an object that
// was created at a time; it is a creators.Check.
type Creators interface {
	Protected(ctx context.Context, created time.Time) bool
}

type queue = workqueue.TypedRateLimitingInterface[engine.Key]

// Drive prepares the reconciler for a driver that stands in the place of a manager, as in a simulation. Keys to be reconciled go to q,
// and the driver calls Reconcile with them; the handlers that are returned have to be told of every change of an object. Client, Live
// and Engine have to be set.
func (r *SagaReconciler) Drive(q workqueue.TypedRateLimitingInterface[engine.Key]) handler.TypedFuncs[*v1.Saga, engine.Key] {
	r.setDefaults()
	r.queue.Store(&q)
	return r.handlers()
}

// Recover queues every saga that is recorded and not finished. A manager does so by itself; a driver calls it when its process begins
// to lead, and from time to time.
func (r *SagaReconciler) Recover(ctx context.Context) error { return r.queueUnfinished(ctx) }

// What the reconciler may do at the API server is in config/rbac/role.yaml, written by hand: the tests of the whole operator run with that role and no other.

// SetupWithManager adds the controller and its recovery to a manager.
func (r *SagaReconciler) SetupWithManager(mgr manager.Manager) error { return r.setup(mgr, r) }

// setup does so with a reconciler that may stand around this one.
func (r *SagaReconciler) setup(mgr manager.Manager, outer reconcile.TypedReconciler[engine.Key]) error {
	if r.Engine == nil {
		return errors.New("setting up the saga controller: Engine is required")
	}
	r.setDefaults()
	if r.Client == nil {
		r.Client = mgr.GetClient()
	}
	if r.Live == nil {
		r.Live = mgr.GetAPIReader()
	}
	c, err := controller.NewTyped("saga", mgr, controller.TypedOptions[engine.Key]{
		Reconciler:              outer,
		MaxConcurrentReconciles: r.Concurrency,
		RateLimiter:             r.limiter,
		RecoverPanic:            new(true),
		NewQueue:                r.newQueue,
		SkipNameValidation:      new(r.AnyName),
	})
	if err != nil {
		return err
	}
	if err := c.Watch(source.TypedFunc[engine.Key](r.noteStart)); err != nil {
		return err
	}
	if err := c.Watch(r.sagas(mgr.GetCache())); err != nil {
		return err
	}
	if r.Events {
		r.events = newEventWriter(r.Client, r.Logger)
		if err := supervise.Add(mgr, r.Logger, r.events); err != nil {
			return err
		}
	}
	return supervise.Add(mgr, r.Logger, &recovery{r: r})
}

func (r *SagaReconciler) setDefaults() {
	r.started, r.lost = make(chan struct{}), make(signal, 1)
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.Clock == nil {
		r.Clock = time.Now
	}
	if r.Random == nil {
		r.Random = rand.Uint64
	}
	if r.Concurrency <= 0 {
		r.Concurrency = DefaultConcurrency
	}
	if r.limiter == nil {
		r.limiter = workqueue.NewTypedItemExponentialFailureRateLimiter[engine.Key](minBackoff, maxBackoff)
	}
	if r.Quotas != nil {
		r.unfinished = quota.NewSagas(r.Quotas.Of, r.add)
		r.Quotas.OnChange(r.unfinished.Reconsider)
	}
	if r.Watches == nil {
		r.Watches = func(string) bool { return true }
	}
}

// Reconcile is everything that happens to a saga, in order. It never waits for a participant: an outcome queues the key again.
func (r *SagaReconciler) Reconcile(ctx context.Context, key engine.Key) (reconcile.Result, error) {
	s, err := r.observe(ctx, key)
	if err != nil {
		return reconcile.Result{}, err
	}
	switch {
	case s.settled:
		r.count(s)
		return r.expire(ctx, s)
	case s.unshown:
		r.awaitCache(s)
		return s.again(r.Clock()), nil
	}
	if err := r.define(ctx, s); err != nil {
		return reconcile.Result{}, unlessPreparing(err)
	}
	if err := r.holdObject(ctx, s); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.advance(ctx, s); err != nil {
		return reconcile.Result{}, unlessPreparing(err)
	}
	if r.count(s); s.uncounted && s.unstarted {
		return s.again(r.Clock()), nil
	}
	r.mirror(ctx, s)
	if err := r.letGo(ctx, s); err != nil {
		return reconcile.Result{}, err
	}
	return s.again(r.Clock()), nil
}

// unlessPreparing drops the error of a saga whose definition is being compiled: its key is queued after that.
func unlessPreparing(err error) error {
	if errors.Is(err, engine.ErrPreparing) {
		return nil
	}
	return err
}

// Enqueue queues a saga for which an outcome is waiting, ahead of the others of its namespace. It never
// blocks. Before the controller has started there is nothing to queue it in, and no need: recovery finds it.
func (r *SagaReconciler) Enqueue(k engine.Key) {
	q := r.queue.Load()
	if q == nil {
		return
	}
	if fair, ok := (*q).(*fairQueue); ok {
		fair.AddUrgent(k)
		return
	}
	(*q).Add(k)
}

// add queues a key.
func (r *SagaReconciler) add(k engine.Key) {
	if q := r.queue.Load(); q != nil {
		(*q).Add(k)
	}
}

func (r *SagaReconciler) newQueue(name string, limiter workqueue.TypedRateLimiter[engine.Key]) queue {
	var q queue = newFairQueue(name, limiter)
	r.queue.Store(&q)
	return q
}

// noteStart is a source of no keys, which the controller starts when it has a queue.
func (r *SagaReconciler) noteStart(context.Context, queue) error {
	close(r.started)
	return nil
}
