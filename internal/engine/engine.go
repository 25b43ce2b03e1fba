package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/tracecontext"
)

// DefaultWorkers is how many attempts run at once when Options does not say.
const DefaultWorkers = 512

// DefaultKeyRetention is how long participants have to remember idempotency keys at least, as the IETF's draft on the header and common
// payment providers have it.
const DefaultKeyRetention = 24 * time.Hour

// maxConcurrentLoads limits how many streams are loaded concurrently. One stream can take several
// megabytes.
const maxConcurrentLoads = 8

// MaxLabels is how many labels of a saga its messages carry. Each message has them, and each row of the outbox.
const MaxLabels = 64

// maxRounds bounds how often one Advance loads again after losing a compare-and-set. Losing more often means that somebody else moves this
// saga; the key comes back by itself.
const maxRounds = 5

// Key names one saga. The uid identifies it; namespace and name tell where its object is.
type Key struct {
	Namespace, Name, UID string
}

func (k Key) String() string { return k.Namespace + "/" + k.Name + " (uid " + k.UID + ")" }

// Observation is what the caller sees of a saga from outside.
type Observation struct {
	// Definition and Input are what to start when the saga has no event yet. With a nil Definition it is not started.
	Definition *saga.Definition
	Input      json.RawMessage
	// CreatedBy is the user who made the saga.
	CreatedBy string
	// NamespaceUID is the uid of the namespace that the saga's object is in.
	NamespaceUID string
	// TraceParent is the W3C trace context that its start belongs to. What is none is left out.
	TraceParent string
	// Labels are those of its object, at most MaxLabels of them.
	Labels map[string]string
	// Suspend, Cancel and Delete are what the user wants now.
	Suspend, Cancel, Delete bool
	// Generation is the metadata.generation of the object that this comes from.
	Generation int64
}

// Result is where a saga stands after Advance.
type Result struct {
	// State is the fold of what is committed. With Version 0 the saga has not started.
	State saga.State
	// Wake is when to advance the saga again at the latest; zero for not before something happens.
	Wake time.Time
}

// Options are what an engine works with.
type Options struct {
	Store        eventstore.Store
	Participants participant.Registry
	// Notify queues a key again because an outcome is waiting for it. It must not block.
	Notify func(Key)
	// Clock and Random are the time and the chance that decisions are given; the system's by default.
	Clock  func() time.Time
	Random func() uint64
	// NewID makes the ids of events, UUIDs of version 7; uuid.NewV7 by default.
	NewID func() (uuid.UUID, error)
	// Plans keeps compiled definitions, and may be shared by several engines; the engine has its own by default.
	Plans *Plans
	// Workers bounds the attempts that run at once; DefaultWorkers by default.
	Workers int
	// Limits are what an administrator allows new sagas; everything by default.
	Limits saga.Limits
	// AttemptRate returns how many attempts the sagas of a namespace may start per second; negative for
	// any number. Without it all may.
	AttemptRate func(namespace string) int64
	// KeyRetention is how long participants remember idempotency keys. An effect that may have happened is not sent again under an older
	// one. DefaultKeyRetention by default; a negative one means for ever.
	KeyRetention time.Duration
	// Memory limits the memory of states, requests and responses. Its zero value means the
	// defaults.
	Memory Memory
	Logger *slog.Logger
	// Metrics, where given, gets the engine's metrics.
	Metrics prometheus.Registerer
}

// Engine drives sagas. It is safe for concurrent use; calls for one saga take turns.
type Engine struct {
	Options
	pool       *pool // of attempts
	computing  *pool // of renderings and evaluations; see compute
	compiling  *pool // of definitions that take long to compile; see planOf
	replies    *pool // of evaluations of replies
	budgets    *budgets
	plansInUse *plansInUse
	throttle   *throttle
	loadSlots  chan struct{} // a semaphore with maxConcurrentLoads places
	metrics    *metrics

	mu     sync.Mutex
	sagas  map[string]*running
	closed bool
	// closing ends when the engine begins to shut down.
	closing context.Context
	close   context.CancelFunc
	// advancing are the calls of Advance under way: what they record as started is sent, or recorded as not sent, before a shutdown ends.
	advancing sync.WaitGroup
	until     time.Time // when the time of the shutdown is over, if it has one
}

// New returns an engine that is ready to advance sagas.
func New(o Options) (*Engine, error) {
	if o.Store == nil || o.Notify == nil {
		return nil, errors.New("making an engine: Store and Notify are required")
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Uint64
	}
	if o.NewID == nil {
		o.NewID = uuid.NewV7
	}
	if o.Plans == nil {
		o.Plans = NewPlans()
	}
	if o.Workers <= 0 {
		o.Workers = DefaultWorkers
	}
	if o.KeyRetention == 0 {
		o.KeyRetention = DefaultKeyRetention
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("making an engine: %w", err)
	}
	b := newBudgets(o.Memory)
	closing, closeIt := context.WithCancel(context.Background())
	return &Engine{Options: o, closing: closing, close: closeIt, pool: newPool(o.Workers), computing: newPool(computations()), compiling: newPool(max(1, runtime.GOMAXPROCS(0)/2)), replies: newPool(maxReplies), budgets: b, plansInUse: newPlansInUse(b.plans), throttle: newThrottle(o.AttemptRate, o.Clock, o.Notify), loadSlots: make(chan struct{}, maxConcurrentLoads), metrics: m, sagas: map[string]*running{}}, nil
}

// Advance moves one saga as far as it can go without waiting for a participant: it loads, decides, appends, and starts and stops attempts. It
// never waits for a participant. An error means that nothing is known to have happened; outcomes that were waiting are kept, and advancing the
// key again is always safe. Problem tells what kind of error it is. After ErrPreparing, Notify is called with the key.
func (e *Engine) Advance(ctx context.Context, key Key, obs Observation) (res Result, err error) {
	r, err := e.enter(key)
	if err != nil {
		return Result{}, err
	}
	defer e.advancing.Done()
	r.enter()
	defer r.leave()
	defer func() {
		if p := recover(); p != nil {
			r.dropState()
			e.Logger.Error("panic while advancing a saga", "saga", key, "panic", p, "stack", string(debug.Stack()))
			res, err = Result{}, fmt.Errorf("advancing saga %s: %w", key, &PanicError{Value: p})
		}
	}()
	r.observe(obs)
	for range maxRounds {
		done, err := e.advanceOnce(ctx, r)
		switch {
		case errors.Is(err, eventstore.ErrWrongVersion):
			e.metrics.conflicts.Inc()
			r.dropState() // whoever loses drops what it holds and loads again
		case err != nil:
			r.dropState() // the append may have been committed all the same
			return Result{}, fmt.Errorf("advancing saga %s: %w", key, err)
		case done:
			res := r.result()
			r.dropObservedSpec()
			r.keepOrDropState(e.budgets.maxIdleState)
			r.dropUnheldPlan()
			return res, nil
		}
	}
	return Result{}, fmt.Errorf("advancing saga %s: %w: lost %d times in a row", key, errContended, maxRounds)
}

// advanceOnce does one round of load, decide, append, run. It reports false when what it held turned out to be stale.
func (e *Engine) advanceOnce(ctx context.Context, r *running) (bool, error) {
	cached := r.stream == streamLoaded
	if !cached && r.stream != streamPresumedNew {
		if err := e.load(ctx, r); err != nil {
			return false, err
		}
	}
	if r.state.Phase == saga.Abandoned { // perhaps without a definition that could be read
		r.endAbandoned()
		return true, nil
	}
	start, plan, err := e.planFor(r)
	if err != nil {
		return false, err
	}
	if plan == nil {
		return true, nil // nothing has started and nothing is to start
	}
	answers, err := e.answers(ctx, r, plan)
	if err != nil {
		return false, err
	}
	in := saga.Input{
		Now: e.now(), Random: e.Random(), Start: start,
		Suspend: r.observed.Suspend, Generation: r.observed.Generation, Cancel: r.observed.Cancel, Delete: r.observed.Delete,
		KeyRetention: e.KeyRetention, Draining: !e.accepting(),
	}
	events, next, recorded := e.decide(r, plan, in, answers)
	if n := starts(events); n > 0 {
		if may := e.throttle.take(r.key, n); may < n {
			in.MaxStarts = &may
			events, next, recorded = e.decide(r, plan, in, answers)
		}
	}
	if len(events) == 0 && cached && !r.state.Phase.Terminal() {
		if fresh, err := e.fresh(ctx, r); !fresh {
			return false, err
		}
	}
	if len(events) > 0 {
		if err := e.append(ctx, r, plan, events, next, true); err != nil {
			return false, err
		}
	}
	r.plan = plan
	r.holdPlan()
	if r.recorded(recorded) > 0 && len(events) > 0 {
		e.Notify(r.key) // the rest did not fit
	}
	e.runDifference(r, in.Draining)
	// An answer may have come before the acceptance was recorded. Nobody tells of it again, so it is looked for now.
	return !slices.ContainsFunc(events, func(ev saga.Event) bool { return ev.EventType() == saga.AttemptAccepted{}.EventType() }), nil
}

// decide returns what is decided, what it leads to, and how many of the waiting outcomes that takes in. Attempts that
// wait for a place are taken back before a rollback or a suspension is recorded, so that it is recorded
// with it that they were not sent.
func (e *Engine) decide(r *running, plan *saga.Plan, in saga.Input, answers []saga.Outcome) ([]saga.Event, saga.State, int) {
	for {
		outcomes := fitting(r.waiting())
		in.Lost, in.Outcomes = e.lost(r, plan), slices.Concat(inOrder(outcomes), answers)
		events, next := plan.Decide(r.state, in)
		unwanted := func(a saga.Attempt) bool { return next.Suspended || !next.Wants(a.Direction) }
		if !r.withdraw(unwanted) {
			return events, next, len(outcomes)
		}
	}
}

// starts returns how many attempts events start.
func starts(events []saga.Event) int {
	n := 0
	for _, ev := range events {
		if _, ok := ev.(saga.AttemptStarted); ok {
			n++
		}
	}
	return n
}

// Limits of the outcomes that one append takes in; the others are recorded in the next.
const (
	maxOutcomes    = 300
	maxOutputBytes = 8 << 20
)

// fitting returns the oldest outcomes that fit into one append, at least one.
func fitting(all []arrival) []arrival {
	size := 0
	for i := range all {
		if size += len(all[i].Output); i > 0 && (i >= maxOutcomes || size > maxOutputBytes) {
			return all[:i]
		}
	}
	return all
}

// planFor returns the plan of a saga, and its first event where it is still to be recorded.
func (e *Engine) planFor(r *running) (*saga.SagaStarted, *saga.Plan, error) {
	if r.state.Version > 0 {
		if r.plan != nil {
			return nil, r.plan, nil
		}
		plan, err := e.planOf(r, r.state.Definition, true)
		return nil, plan, err
	}
	if r.observed.Definition == nil {
		return nil, nil, nil
	}
	plan, err := e.planOf(r, *r.observed.Definition, false)
	if err != nil {
		return nil, nil, err
	}
	parent := r.observed.TraceParent
	if _, ok := tracecontext.Parse(parent); !ok {
		parent = ""
	}
	return &saga.SagaStarted{
		TraceParent: parent,
		UID:         r.key.UID, Namespace: r.key.Namespace, NamespaceUID: r.observed.NamespaceUID, Name: r.key.Name, CreatedBy: r.observed.CreatedBy, Labels: r.observed.Labels,
		Definition: *r.observed.Definition, Encoded: plan.EncodedDefinition(), Input: r.observed.Input,
	}, plan, nil
}

// fresh reports whether a cached state is still the stream's. An append would find out by itself; a decision to do nothing has to ask.
func (e *Engine) fresh(ctx context.Context, r *running) (bool, error) {
	v, err := e.Store.Version(ctx, StreamOf(r.key.UID))
	if err != nil {
		return false, err
	}
	if v != r.state.Version {
		r.dropState()
		return false, nil
	}
	return true, nil
}

// Unfinished calls yield with the key of every saga that is recorded and not finished, in the order of their uids, until yield returns false. Whoever
// drives the engine queues them all when it starts: no object's event has to arrive for a saga to go on.
func (e *Engine) Unfinished(ctx context.Context, yield func(Key) bool) error {
	const page = 500
	after := uuid.Nil
	for {
		rows, err := e.Store.UnfinishedSagas(ctx, after, page)
		if err != nil {
			return fmt.Errorf("looking for unfinished sagas: %w", err)
		}
		for _, row := range rows {
			if !yield(Key{Namespace: row.Namespace, Name: row.Name, UID: row.UID.String()}) {
				return nil
			}
			after = row.UID
		}
		if len(rows) < page {
			return nil
		}
	}
}

// Forget drops what is held of a saga in memory and abandons its attempts. Use it when the saga has ended or is gone.
func (e *Engine) Forget(key Key) {
	e.mu.Lock()
	r := e.sagas[key.UID]
	delete(e.sagas, key.UID)
	e.mu.Unlock()
	e.throttle.forget(key)
	if r != nil {
		r.abandon()
	}
}

// enter returns what is held of a saga, made on first use, and counts a call of Advance: the caller has to call advancing.Done.
func (e *Engine) enter(key Key) (*running, error) {
	if _, err := uuid.Parse(key.UID); err != nil {
		return nil, fmt.Errorf("advancing saga %s: its uid is not a UUID: %w", key, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	r := e.sagas[key.UID]
	if r == nil {
		r = newRunning(key, e.budgets, e.Clock)
		e.sagas[key.UID] = r
	}
	e.advancing.Add(1)
	return r, nil
}
