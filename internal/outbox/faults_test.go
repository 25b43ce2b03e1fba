package outbox_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

// trouble has statements fail as those of a database do that is away for a moment: their contexts are over.
type trouble struct{ fails func(sql string) bool }

func (f *trouble) start(ctx context.Context, sql string) context.Context {
	if !f.fails(sql) {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

func (f *trouble) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	return f.start(ctx, d.SQL)
}
func (*trouble) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (f *trouble) TraceBatchStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	return f.start(ctx, d.Batch.QueuedQueries[0].SQL)
}
func (*trouble) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*trouble) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// troubled gives the relays of the rig a pool of their own, in which statements fail.
func (r *rig) troubled(fails func(sql string) bool) {
	r.t.Helper()
	config, err := pgxpool.ParseConfig(r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	config.MaxConns = 20
	config.ConnConfig.Tracer = &trouble{fails}
	if r.relays, err = pgxpool.NewWithConfig(context.WithoutCancel(r.ctx), config); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.relays.Close)
}

func TestADatabaseInTroubleLosesNothingAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var failures atomic.Int64 // after some the trouble is over
	r.troubled(func(string) bool { return failures.Load() < 40 && rand.IntN(12) == 0 && failures.Add(1) > 0 })
	const keys, each = 60, 40
	var refused atomic.Int64
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 4, Parallel: 2}, Fault: func(ctx context.Context, _ *outbox.Message) error {
		_ = pause(ctx, time.Duration(rand.IntN(4))*time.Millisecond)
		if rand.IntN(40) == 0 {
			refused.Add(1)
			return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "not this time")
		}
		return nil
	}}
	s := to(p)
	s.Retry.MaxAttempts = 1_000_000
	r.set(r.newRelay(outbox.Options{Shards: 2}), s) // the readers begin here, without trouble
	r.flood(keys, each)
	ctx, stop := context.WithCancel(context.WithoutCancel(r.ctx))
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.inTrouble(ctx, s, moment)
	}()
	r.eventually("all is published, and nothing is parked any more", func() bool {
		return arrived(p.Taken()) == keys*each && len(r.parked(outbox.Selection{})) == 0 && r.status().Backlog == 0
	})
	stop()
	<-done
	if err := complete(p.Taken(), flooded(keys, each), 1_000_000); err != nil {
		t.Error(err)
	}
	if refused.Load() == 0 {
		t.Error("nothing was ever parked")
	}
}

// arrived is how many different messages there are.
func arrived(taken []outbox.Message) int {
	all := map[string]bool{}
	for _, m := range taken {
		all[m.ID.String()] = true
	}
	return len(all)
}

// moment is a lease for those that may not be able to give it back.
const moment = 2 * time.Second

// inTrouble runs a relay on the pool in trouble.
func (r *rig) inTrouble(ctx context.Context, s outbox.Sink, lease time.Duration) {
	relay := r.newRelay(outbox.Options{Pool: r.relays, Page: 50, Lease: lease})
	for ctx.Err() == nil {
		if relay.Set(ctx, s) == nil {
			break
		}
	}
	if err := relay.Run(ctx); err != nil {
		r.t.Error(err)
	}
}

func TestALeaseThatCannotBeCheckedSkipsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var checks atomic.Int64
	r.troubled(func(sql string) bool { // a renewal would be a check, too
		return renewal(sql) || strings.HasPrefix(sql, "SELECT commands") && checks.Add(1)%2 == 1
	})
	const keys, each = 30, 10
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 5, Parallel: 1}, Fault: func(ctx context.Context, m *outbox.Message) error {
		if m.Key == "key-1" { // in every round something takes longer than the lease is taken for granted
			_ = pause(ctx, 120*time.Millisecond)
		}
		return nil
	}}
	s := to(p)
	r.set(r.newRelay(outbox.Options{Shards: 1}), s)
	r.flood(keys, each)
	ctx, stop := context.WithCancel(context.WithoutCancel(r.ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.inTrouble(ctx, s, forGood)
	}()
	r.eventually("all is published", func() bool { return arrived(p.Taken()) == keys*each && r.status().Backlog == 0 })
	stop()
	<-done
	if err := complete(p.Taken(), flooded(keys, each), 1_000_000); err != nil {
		t.Error(err)
	}
	if checks.Load() == 0 {
		t.Error("the lease was never checked")
	}
}

func TestWhatCouldNotBeParkedBeforeAStopIsNotPassedOver(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var failing, tried atomic.Bool
	failing.Store(true)
	r.troubled(func(sql string) bool {
		parks := strings.HasPrefix(sql, "INSERT INTO outbox_parked")
		if parks {
			tried.Store(true)
		}
		return parks && failing.Load()
	})
	var mended atomic.Bool
	p := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "a" && !mended.Load() {
			return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "not now")
		}
		return nil
	}}
	s := to(p)
	s.Retry.MaxAttempts = 1_000_000
	ctx, stop := context.WithCancel(context.WithoutCancel(r.ctx))
	done := make(chan struct{})
	r.set(r.newRelay(outbox.Options{Shards: 1}), s)
	go func() {
		defer close(done)
		r.inTrouble(ctx, s, moment)
	}()
	r.commit(r.message("a"), r.message("a"), r.message("b"))
	r.eventually("it wants to park", tried.Load)
	stop()
	<-done
	failing.Store(false)
	mended.Store(true)
	q := &memory.Publisher{}
	r.relay(outbox.Options{}, to(q))
	r.eventually("all has arrived", func() bool { return arrived(append(p.Taken(), q.Taken()...)) == 3 })
	// What is not put down is published again: as often as the lease was taken until it was to stop, and after that.
	if err := complete(append(p.Taken(), q.Taken()...), r.counts, 1_000_000); err != nil {
		t.Error(err)
	}
}
