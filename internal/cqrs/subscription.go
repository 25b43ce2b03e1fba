package cqrs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/panics"
	"github.com/vextrus/saga-operator/internal/projection"
)

const (
	// MaxHandlerTimeout bounds SubscriptionOptions.Timeout: a transaction is open meanwhile, and the database ends one that does nothing for longer (30 s).
	MaxHandlerTimeout = 20 * time.Second
	// namePrefix stands before a subscription's name where it has its checkpoint, beside those of the projections.
	namePrefix = "subscription_"
	// pageTime is how long handlers are called for the events of one page. What is left of it then is parked untried, due at once.
	pageTime = 5 * time.Second
	// maxDeadStreams bounds the streams with a dead letter. Beyond them the fault is hardly the events', and the subscription reads no further.
	maxDeadStreams = 10_000
)

// SubscriptionOptions are what a durable subscription works with. Pool, Store, Name and Categories are required.
type SubscriptionOptions struct {
	Pool *pgxpool.Pool
	// Store is read from; it has to be on the same database.
	Store eventstore.Store
	// Name is the subscription's for good, of lower-case letters, digits and _, up to 50: its checkpoint and its dead letters go by it.
	Name string
	// Categories are those of the streams whose events are handled.
	Categories []string
	// FromNow has a new subscription begin with what is committed from its first Run on, instead of with the first event that there is.
	FromNow bool
	// Attempts is how often an event is tried before it becomes a dead letter; 8 by default.
	Attempts int
	// Backoff is the pause between them; by default up to 1 s at first and 5 minutes at most.
	Backoff Backoff
	// Timeout bounds one call of a handler; 10 s by default, MaxHandlerTimeout at most.
	Timeout time.Duration
	// Retriers is how many events that have failed are tried again at a time by this process; 2 by default. Each takes a connection of the pool while it does.
	Retriers int
	// MaxWaiting is about how many streams may wait for an event to be tried again before the subscription reads no further; 1000 by default.
	MaxWaiting int
	// Page is how many events are handled between two checkpoints at most, and so about how many come again after a crash; 100 by default.
	Page int
	// Lease is how long a replica that has died holds the subscription up; 10 s by default.
	Lease   time.Duration
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Subscription brings events of the store to handlers, at least once and the events of a stream in their order, wherever it was when a process died. Any number of replicas may run it: a lease in the
// database decides who reads on, and the checkpoint of one that has lost it is refused there.
//
// The handlers of a subscription are called one after the other. An event that fails is parked, and with it what comes later in its stream; other streams go on. The parked event is tried
// again with growing pauses, and after its attempts is a dead letter, which waits for a person: DeadLetters, RetryDead, DropDead.
//
// A handler's effect and the checkpoint are not one transaction. It may see an event twice, above all after a crash, and has to do no harm then: let it derive an idempotency key of the event's
// ID. What only writes to the same database belongs into a projection, which has each event once.
type Subscription struct {
	options SubscriptionOptions
	events  *Events
	runner  *projection.Runner
	source  *source
	log     *slog.Logger
	metrics eventMetrics
	parked  chan struct{} // says that this process has parked an event
}

var subscriptionName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,49}$`)

// NewSubscription returns a subscription for the handlers that the table has by now: one for each type of event, since an event is tried again as a whole.
func NewSubscription(events *Events, o SubscriptionOptions) (*Subscription, error) {
	doing := fmt.Sprintf("making subscription %q", o.Name)
	if !subscriptionName.MatchString(o.Name) || o.Pool == nil || o.Store == nil || len(o.Categories) == 0 {
		return nil, fmt.Errorf("%s: it needs a name of up to 50 lower-case letters, digits and _, a pool, a store, and the categories of streams that it reads", doing)
	}
	if len(events.reactions) == 0 {
		return nil, fmt.Errorf("%s: it has no handler; register some with cqrs.On first", doing)
	}
	if o.Timeout > MaxHandlerTimeout {
		return nil, fmt.Errorf("%s: its handlers may take %s, and %s is the most", doing, o.Timeout, MaxHandlerTimeout)
	}
	s := &Subscription{options: o.withDefaults(), events: &Events{registry: events.registry, reactions: map[string][]*reaction{}}, parked: make(chan struct{}, 1)}
	s.log = s.options.Logger.With("subscription", o.Name)
	def := projection.Define(namePrefix+o.Name, 1, o.Categories...)
	for typ, reactions := range events.reactions {
		if len(reactions) > 1 {
			return nil, fmt.Errorf("%s: %s and %s both handle %s, and would be repeated together; give each a subscription of its own", doing, reactions[0].handler, reactions[1].handler, typ)
		}
		s.events.reactions[typ] = reactions
		def.On(typ, s.take)
	}
	s.source = &source{Store: o.Store, types: events.types(), report: s.reportLag}
	var err error
	s.runner, err = projection.NewRunner(projection.Options{
		Pool: o.Pool, Store: s.source, Lease: s.options.Lease, Page: s.options.Page, Patience: pageTime + s.options.Timeout + 10*time.Second, Logger: s.options.Logger,
	}, def)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	s.metrics, err = newEventMetrics(o.Metrics)
	return s, err
}

func (o SubscriptionOptions) withDefaults() SubscriptionOptions {
	standard := func(n *int, value int) {
		if *n <= 0 {
			*n = value
		}
	}
	standard(&o.Attempts, 8)
	standard(&o.Retriers, 2)
	standard(&o.MaxWaiting, 1000)
	standard(&o.Page, 100)
	o.Backoff = o.Backoff.or(time.Second, 5*time.Minute)
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Lease <= 0 {
		o.Lease = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Wake tells the subscription that something has been appended, so that it need not wait for its next poll. It never blocks.
func (s *Subscription) Wake() { s.runner.Wake() }

// Run handles events until ctx is done. What passes by itself, such as a database that is away, is tried again.
func (s *Subscription) Run(ctx context.Context) error {
	for s.options.FromNow && ctx.Err() == nil {
		err := s.beginNow(ctx)
		if err == nil {
			break
		}
		s.log.Warn("a subscription cannot begin and tries again", "error", err)
		_ = wait(ctx, time.Second)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = panics.Restart(ctx, s.log, "feeding a subscription", s.runner.Run) })
	wg.Go(func() {
		_ = panics.Restart(ctx, s.log, "looking after a subscription", func(ctx context.Context) error { s.tend(ctx); return nil })
	})
	for range s.options.Retriers {
		wg.Go(func() {
			_ = panics.Restart(ctx, s.log, "retrying parked events", func(ctx context.Context) error { s.retry(ctx); return nil })
		})
	}
	wg.Wait()
	return nil
}

// beginNow makes the checkpoint of a new subscription that begins now.
func (s *Subscription) beginNow(ctx context.Context) error {
	_, err := s.options.Pool.Exec(ctx, `INSERT INTO projections (name, generation, version, status, epoch, done, floor)
		SELECT $1, 1, 1, 'live', (SELECT max(epoch) FROM store_clusters), pg_current_snapshot(), coalesce((SELECT max(position) FROM event_store), 0)
		ON CONFLICT DO NOTHING`, namePrefix+s.options.Name)
	return err
}

// take handles an event that the subscription has come to, within the transaction in which the checkpoint moves past it.
func (s *Subscription) take(ctx context.Context, tx *projection.Tx, e eventstore.Recorded) error {
	var follows bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM event_handlers_parked WHERE subscription = $1 AND stream = $2)`, s.options.Name, e.Stream).Scan(&follows)
	if err != nil {
		return err
	}
	if follows || s.source.pageAge() > pageTime {
		return s.park(ctx, tx, &e, nil)
	}
	r := s.events.reactions[e.Type][0]
	began := time.Now()
	err = s.events.handle(ctx, r, Envelope{Recorded: e, Attempt: 1}, s.options.Timeout)
	if err == nil {
		s.metrics.handled(s.options.Name, r, outcomeHandled, began)
		return nil
	}
	if ctx.Err() != nil { // the process stops; it is not the handler's fault
		return ctx.Err()
	}
	s.failed(r, &e, 1, began, err)
	return s.park(ctx, tx, &e, err)
}

// failed counts and logs an attempt that has failed, and reports whether it was the last.
func (s *Subscription) failed(r *reaction, e *eventstore.Recorded, attempt int, began time.Time, err error) (dead bool) {
	attrs := append(failure(r, e, err), "attempt", attempt)
	if dead = attempt >= s.options.Attempts; dead {
		s.metrics.handled(s.options.Name, r, outcomeDead, began)
		s.log.Error("an event is a dead letter now; its stream waits until somebody has it retried or dropped", attrs...)
		return true
	}
	s.metrics.handled(s.options.Name, r, outcomeFailed, began)
	s.log.Warn("a handler has failed at an event, and it is tried again", attrs...)
	return false
}

func (s *Subscription) reportLag(behind int64) {
	s.metrics.behind.WithLabelValues(s.options.Name).Set(float64(behind))
}

// ErrNoSubscription says that no subscription of that name has ever run.
var ErrNoSubscription = errors.New("there is no such subscription")

// RemoveSubscription forgets a subscription that no program runs any more: its checkpoint, which holds retention up, and its parked events. What was dropped stays on record.
func RemoveSubscription(ctx context.Context, pool *pgxpool.Pool, name string) error {
	var removed int
	err := pool.QueryRow(ctx, `WITH parked AS (DELETE FROM event_handlers_parked WHERE subscription = $1),
			gone AS (DELETE FROM projections WHERE name = $2 RETURNING 1)
		SELECT count(*) FROM gone`, name, namePrefix+name).Scan(&removed)
	if err == nil && removed == 0 {
		err = ErrNoSubscription
	}
	if err != nil {
		return fmt.Errorf("removing subscription %s: %w", name, err)
	}
	return nil
}
