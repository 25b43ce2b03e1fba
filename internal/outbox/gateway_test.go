package outbox_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

// badGateway is what a gateway says whose destination is away, or was brought down by the message.
func badGateway() error {
	return &outbox.Error{Kind: outbox.Unavailable, Reason: outbox.ReasonConnectionFailed, Open: true, Err: errors.New("502 Bad Gateway")}
}

func TestAMessageThatBringsItsDestinationDownHoldsUpOnlyItsKey(t *testing.T) {
	t.Parallel()
	for name, sizes := range map[string]outbox.Limits{"one after the other": {Batch: 1, Parallel: 1}, "all at once": {Batch: 100, Parallel: 4}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			p := &memory.Publisher{Sizes: sizes, Fault: func(_ context.Context, m *outbox.Message) error {
				if m.Key == "key-7" {
					return badGateway()
				}
				return nil
			}}
			r.relay(outbox.Options{Shards: 1}, to(p))
			r.flood(20, 3)
			r.await(p, 19*3)
			for n := range 20 { // there is something else to take in between
				r.commit(r.message("more-" + strconv.Itoa(n)))
			}
			r.await(p, 19*3+20)
			r.eventually("it is parked", func() bool { return len(r.parked(outbox.Selection{})) == 3 })
		})
	}
}

func TestAMessageThatBringsItsDestinationDownIsADeadLetterWhereOthersGoThrough(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "bad" {
			return badGateway()
		}
		return nil
	}}
	r.relay(outbox.Options{Shards: 1}, to(p))
	r.commit(r.message("bad"))
	r.eventually("the status says so", func() bool { return r.status().Reason != "" })
	n := 0
	r.eventually("it is a dead letter", func() bool {
		n++ // others go through, and it does not
		r.commit(r.message("good"), r.message("bad"))
		r.await(p, n)
		all := r.parked(outbox.Selection{})
		return len(all) > 0 && all[0].Dead
	})
	if all := r.parked(outbox.Selection{Dead: true}); len(all) != 1 || all[0].Key != "bad" || all[0].Attempts != 3 {
		t.Errorf("the dead letters are %+v, want the first message of key bad after three attempts", all)
	}
}

func TestNoAttemptCountsWhileAGatewayTakesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var back atomic.Bool
	var tries atomic.Int64
	p := &memory.Publisher{Fault: func(context.Context, *outbox.Message) error {
		if back.Load() {
			return nil
		}
		tries.Add(1)
		return badGateway()
	}}
	r.relay(outbox.Options{Shards: 1}, to(p)) // whose messages are dead letters after three attempts, milliseconds apart
	const keys = 3
	for n := range keys {
		r.commit(r.message("key-"+strconv.Itoa(n)), r.message("key-"+strconv.Itoa(n)))
		r.eventually("they are put aside, so that others are tried", func() bool { return len(r.parked(outbox.Selection{})) == 2*(n+1) })
	}
	since := tries.Load()
	r.eventually("they are tried again and again", func() bool { return tries.Load() > since+4 })
	for _, m := range r.parked(outbox.Selection{}) {
		if m.Attempts > 0 || m.Dead {
			t.Errorf("an attempt counts: %+v", m)
		}
	}
	if s := r.status(); s.Reason != outbox.ReasonConnectionFailed || s.DeadLetters > 0 {
		t.Errorf("the status is %+v", s)
	}
	back.Store(true)
	r.await(p, 2*keys)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
	r.eventually("the trouble is over", func() bool { s := r.status(); return s.Reason == "" && s.Backlog == 0 })
}

// sized keeps how many messages each call brings, once it is on.
type sized struct {
	*memory.Publisher
	on    atomic.Bool
	mu    sync.Mutex
	calls []int
}

func (s *sized) Publish(ctx context.Context, all []outbox.Message) []error {
	if s.on.Load() {
		s.mu.Lock()
		s.calls = append(s.calls, len(all))
		s.mu.Unlock()
	}
	return s.Publisher.Publish(ctx, all)
}

func (s *sized) seen() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func TestParkedMessagesAreTriedOneAtATimeWhileTheSinkIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &sized{}
	p.Publisher = &memory.Publisher{Sizes: outbox.Limits{Batch: 100, Parallel: 1}, Fault: func(context.Context, *outbox.Message) error {
		if p.on.Load() {
			return badGateway()
		}
		return errors.New("no")
	}}
	sink := to(p)
	sink.Retry.MaxAttempts = 1_000_000 // none is given up here
	r.relay(outbox.Options{Shards: 1}, sink)
	const keys = 50
	r.flood(keys, 1)
	r.eventually("all are parked", func() bool { return len(r.parked(outbox.Selection{Limit: 2 * keys})) == keys })
	p.on.Store(true)
	r.eventually("they are tried again and again", func() bool { return len(p.seen()) > 3 })
	for _, n := range p.seen()[1:] { // the first is how it is found out
		if n != 1 {
			t.Errorf("a call brought %d messages while the sink takes none", n)
		}
	}
}
