package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func TestTheTroubleOfParkedMessagesIsSaidUntilOneGoesThrough(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var failed, back atomic.Bool
	p := &memory.Publisher{Fault: func(context.Context, *outbox.Message) error {
		switch {
		case !failed.Swap(true):
			return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "not this one")
		case !back.Load():
			return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "nobody there")
		}
		return nil
	}}
	s := to(p)
	s.Wants = func(m *outbox.Message) bool { return m.Key == "a" }
	r.relay(outbox.Options{Shards: 1}, s)
	r.commit(r.message("a"))
	r.eventually("the status says so", func() bool { return r.status().Reason == outbox.ReasonConnectionFailed })
	r.commit(r.message("b")) // which it does not want
	r.eventually("its checkpoint is behind that", func() bool {
		return r.int(`SELECT count(*) FROM outbox_readers WHERE floor >= (SELECT last_value FROM outbox_position)`) == 1
	})
	if s := r.status(); s.Reason != outbox.ReasonConnectionFailed {
		t.Errorf("the status is %+v, and nothing has gone through", s)
	}
	back.Store(true)
	r.await(p, 1)
	r.eventually("the trouble is over", func() bool { return r.status().Reason == "" })
}

func TestMessagesWaitWhileItCannotBeSaidWhoWantsThem(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var known atomic.Bool
	p := &memory.Publisher{}
	s := to(p)
	s.Wants = func(*outbox.Message) bool { return known.Load() }
	s.Prepare = func(_ context.Context, all []outbox.Message) error {
		if !known.Load() {
			return errors.New("nobody answers")
		}
		return nil
	}
	r.relay(outbox.Options{}, s)
	r.commit(r.message("a"), r.message("b"), r.message("a"))
	r.eventually("the status says so", func() bool { return r.status().Reason == outbox.ReasonUndecided })
	known.Store(true)
	r.await(p, 3)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
	r.eventually("the trouble is over", func() bool { return r.status().Reason == "" })
}

func TestASinkThatHasBegunGetsWhatCameBeforeItWasSet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{}
	relay, _ := r.relay(outbox.Options{})
	if err := relay.Begin(r.ctx, "sink-1", "shop/events"); err != nil {
		t.Fatal(err)
	}
	r.commit(r.message("a"), r.message("b"), r.message("a"))
	if s := r.status(); s.Backlog != 3 || s.Name != "shop/events" {
		t.Errorf("the status is %+v", s)
	}
	r.set(relay, to(p))
	r.await(p, 3)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
}

// TestOfTwoReplicasWithDifferentShardsOneDecides has one that makes the readers of a sink wait for another that has begun to.
func TestOfTwoReplicasWithDifferentShardsOneDecides(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	relay := r.newRelay(outbox.Options{Shards: 5})
	tx := r.begin()
	if _, err := tx.Exec(r.ctx, `INSERT INTO outbox_readers (sink, shard, shards, name, epoch, done, floor) SELECT 'sink-1', i, 2, 'shop/events', 1, pg_current_snapshot(), 0 FROM generate_series(0, 1) i`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- relay.Begin(r.ctx, "sink-1", "shop/events") }()
	r.eventually("the other waits", func() bool {
		return r.int(`SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%outbox_readers%' AND datname = current_database()`) > 0
	})
	if err := errors.Join(tx.Commit(r.ctx), <-done); err != nil {
		t.Fatal(err)
	}
	if n := r.int(`SELECT count(*) FROM outbox_readers`); n != 2 {
		t.Errorf("there are %d readers, want 2", n)
	}
}

func TestAPauseThatADestinationAsksForIsKeptAndBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const asked = 2 * time.Second
	var mu sync.Mutex
	var times []time.Time
	p := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "for-ever" {
			return &outbox.Error{Kind: outbox.Failed, Reason: outbox.ReasonBusy, RetryAfter: 1000 * time.Hour, Err: errors.New("much later")}
		}
		mu.Lock()
		defer mu.Unlock()
		if times = append(times, time.Now()); len(times) == 1 {
			return &outbox.Error{Kind: outbox.Unavailable, Reason: outbox.ReasonBusy, RetryAfter: asked, Err: errors.New("later")}
		}
		return nil
	}}
	r.relay(outbox.Options{Shards: 1}, to(p))
	r.commit(r.message("soon"))
	r.await(p, 1)
	mu.Lock()
	if got := times[1].Sub(times[0]); got < asked {
		t.Errorf("it was tried again after %s, asked for was %s", got, asked)
	}
	mu.Unlock()
	r.commit(r.message("for-ever"))
	r.eventually("it is parked", func() bool { return len(r.parked(outbox.Selection{})) == 1 })
	if in := time.Until(r.parked(outbox.Selection{})[0].DueAt); in < time.Minute || in > time.Hour {
		t.Errorf("it is tried again in %s", in)
	}
}

func TestARetriedDeadLetterHasAllItsAttemptsAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var tries atomic.Int32
	p := &memory.Publisher{Fault: func(context.Context, *outbox.Message) error {
		tries.Add(1)
		return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "no")
	}}
	r.relay(outbox.Options{}, to(p))
	r.commit(r.message("a"))
	for round := range int32(2) {
		r.eventually("it is a dead letter", func() bool { return len(r.parked(outbox.Selection{Dead: true})) == 1 })
		if n := tries.Load(); n != 3*(round+1) {
			t.Errorf("it was tried %d times in round %d", n, round)
		}
		if dead := r.parked(outbox.Selection{Dead: true})[0]; dead.Attempts != 3 {
			t.Errorf("the dead letter is %+v", dead)
		}
		if n, err := outbox.RetryParked(r.ctx, r.pool, outbox.Selection{}); err != nil || n != 1 {
			t.Fatalf("retrying: %d, %v", n, err)
		}
	}
}

func TestADeadLetterIsLoggedAlsoWhereTheFirstAttemptIsTheLast(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var log lockedLog
	relay := r.newRelay(outbox.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	r.set(relay, to(&memory.Publisher{Fault: func(context.Context, *outbox.Message) error {
		return outbox.Errorf(outbox.Rejected, outbox.ReasonTooLarge, "too large by far")
	}}))
	r.commit(r.message("a"))
	stop := r.run(relay)
	r.eventually("it is a dead letter", func() bool { return len(r.parked(outbox.Selection{Dead: true})) == 1 })
	stop()
	if text := log.String(); !strings.Contains(text, "dead letter") || !strings.Contains(text, "too large by far") {
		t.Errorf("the log is\n%s", text)
	}
}

// lockedLog is a log that is written and read at once.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestTheGaugesOfAForgottenSinkAreGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	reg := prometheus.NewRegistry()
	said := func() int {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "saga_outbox_backlog" {
				return len(f.GetMetric())
			}
		}
		return 0
	}
	relay, _ := r.relay(outbox.Options{Metrics: reg}, to(&memory.Publisher{}))
	r.eventually("the backlog is said", func() bool { return said() == 1 })
	relay.Remove("sink-1")
	r.eventually("it is forgotten", func() bool {
		forgotten, err := outbox.Forget(r.ctx, r.pool, "sink-1")
		if err != nil {
			t.Fatal(err)
		}
		return forgotten
	})
	r.eventually("nothing is said of it any more", func() bool { return said() == 0 })
}
