package cqrs

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// LocalOptions are what a Local bus works with. The zero value has defaults.
type LocalOptions struct {
	// Queue is how many events may wait for each handler; 1024 by default. What comes when it is full, that handler misses.
	Queue int
	// Timeout bounds one call of a handler; 10 s by default.
	Timeout time.Duration
	// Grace bounds how long Run goes on with what is queued after its context is done; 5 s by default.
	Grace   time.Duration
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// Local brings events to handlers of the same process, after they were committed. It is for what may be missed: waking somebody, dropping something from a cache. What is queued when
// the process dies is never handled, and neither is what does not fit into a full queue, since an append waits for no handler. The events come in no certain order, now and then
// one comes twice (an append that was repeated), and each handler has a queue of its own: one that fails or is slow touches no other. For all else there is Subscription.
type Local struct {
	events  *Events
	queues  map[string][]*queue
	timeout time.Duration
	grace   time.Duration
	log     *slog.Logger
	metrics eventMetrics
}

// queue is what waits for one handler.
type queue struct {
	reaction *reaction
	events   chan eventstore.Recorded
}

// NewLocal returns a bus for the handlers that the table has by now.
func NewLocal(events *Events, o LocalOptions) (*Local, error) {
	l := &Local{events: events, queues: map[string][]*queue{}, timeout: o.Timeout, grace: o.Grace, log: o.Logger}
	if o.Queue <= 0 {
		o.Queue = 1024
	}
	if l.timeout <= 0 {
		l.timeout = 10 * time.Second
	}
	if l.grace <= 0 {
		l.grace = 5 * time.Second
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	for typ, reactions := range events.reactions {
		for _, r := range reactions {
			l.queues[typ] = append(l.queues[typ], &queue{reaction: r, events: make(chan eventstore.Recorded, o.Queue)})
		}
	}
	var err error
	l.metrics, err = newEventMetrics(o.Metrics)
	return l, err
}

// Publish queues committed events for their handlers. It never blocks.
func (l *Local) Publish(events ...eventstore.Recorded) {
	for _, e := range events {
		for _, q := range l.queues[e.Type] {
			select {
			case q.events <- e:
			default:
				l.missed(q, &e, "its queue is full")
			}
		}
	}
}

func (l *Local) missed(q *queue, e *eventstore.Recorded, why string) {
	l.metrics.total.WithLabelValues(localBus, q.reaction.handler, outcomeMissed).Inc()
	l.log.Warn("a handler misses an event", "handler", q.reaction.handler, "why", why, "event", e.ID, "type", e.Type, "stream", e.Stream, "version", e.Version)
}

// Run has the handlers called until ctx is done, and then, for a while, with what is queued still.
func (l *Local) Run(ctx context.Context) error {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	for _, queues := range l.queues {
		for _, q := range queues {
			wg.Go(func() { l.work(ctx, working, q) })
		}
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	<-ctx.Done()
	grace := time.NewTimer(l.grace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
		stop()
		<-done
	}
	return nil
}

// work handles what is queued for one handler: until ctx is done as it comes, and after that what is there.
func (l *Local) work(ctx, working context.Context, q *queue) {
	for {
		select {
		case e := <-q.events:
			l.handle(working, q, e)
			continue
		default:
		}
		select {
		case e := <-q.events:
			l.handle(working, q, e)
		case <-ctx.Done():
			if len(q.events) == 0 {
				return
			}
		}
	}
}

func (l *Local) handle(ctx context.Context, q *queue, e eventstore.Recorded) {
	if ctx.Err() != nil {
		l.missed(q, &e, "the process stops")
		return
	}
	began := time.Now()
	err := l.events.handle(ctx, q.reaction, Envelope{Recorded: e, Attempt: 1}, l.timeout)
	if err == nil {
		l.metrics.handled(localBus, q.reaction, outcomeHandled, began)
		return
	}
	l.metrics.handled(localBus, q.reaction, outcomeFailed, began)
	l.log.Error("a handler has failed at an event, and the event is not tried again", failure(q.reaction, &e, err)...)
}

// failure is what a log says of an event that a handler has failed at.
func failure(r *reaction, e *eventstore.Recorded, err error) []any {
	attrs := []any{"handler", r.handler, "event", e.ID, "type", e.Type, "stream", e.Stream, "version", e.Version, "error", err}
	if stack := stackOf(err); stack != "" {
		attrs = append(attrs, "stack", stack)
	}
	return attrs
}

// Store returns a store whose appends are published once they are committed. What is appended past it is not.
func (l *Local) Store(s eventstore.Store) eventstore.Store { return &publishing{Store: s, local: l} }

type publishing struct {
	eventstore.Store
	local *Local
}

// Append implements eventstore.Store.
func (s *publishing) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	done, err := s.Store.Append(ctx, a)
	if err == nil {
		s.local.committed(&a, done)
	}
	return done, err
}

// AppendAll implements eventstore.Store.
func (s *publishing) AppendAll(ctx context.Context, all []eventstore.Append) ([]eventstore.Appended, error) {
	done, err := s.Store.AppendAll(ctx, all)
	if err == nil {
		for i := range all {
			s.local.committed(&all[i], done[i])
		}
	}
	return done, err
}

// committed publishes an append. A repeated one is published too: whoever repeats it did not hear of the first, and nobody else may have.
func (l *Local) committed(a *eventstore.Append, done eventstore.Appended) {
	first := done.Version - int64(len(a.Events)) + 1
	for i, e := range a.Events {
		if len(l.queues[e.Type]) > 0 {
			e.Data = bytes.Clone(e.Data) // the caller may use its own again
			l.Publish(eventstore.Recorded{Event: e, Stream: a.Stream, Version: first + int64(i)})
		}
	}
}
