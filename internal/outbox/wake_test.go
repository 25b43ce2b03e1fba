package outbox_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

// seldom is how often a shard of these tests looks when nobody wakes it. Some messages may be found by the look with which it puts its checkpoint down; not as many as are sent.
const seldom = time.Hour

// oneByOne commits messages, each when the relay has come to rest after the one before.
func (r *rig) oneByOne(p *memory.Publisher, n int) {
	r.t.Helper()
	for i := range n {
		r.commit(r.message("a"))
		r.await(p, i+1)
		r.eventually("the checkpoint is put down", func() bool { return r.status().Published == int64(i+1) })
	}
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		r.t.Error(err)
	}
}

func TestACommitWakesTheRelayOfItsProcess(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{}
	r.relay(outbox.Options{Shards: 1}.Polling(seldom), to(p))
	r.oneByOne(p, 20)
}

func TestACommitWakesTheRelaysOfOtherProcesses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{}
	relay, _ := r.relay(outbox.Options{Shards: 1}.Polling(seldom), to(p))
	there, err := openPool(r.ctx, r.url, "outbox-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(there.Close)
	ctx, stop := context.WithCancel(context.WithoutCancel(r.ctx))
	heard := make(chan struct{}, 100)
	here := storepg.NewAnnouncer(r.pool, slog.New(slog.DiscardHandler), func() {})
	other := storepg.NewAnnouncer(there, slog.New(slog.DiscardHandler), func() {
		relay.Wake()
		select {
		case heard <- struct{}{}:
		default:
		}
	})
	done := make(chan error, 2)
	go func() { done <- here.Run(ctx) }()
	go func() { done <- other.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	<-heard // it listens
	r.mu.Lock()
	r.wake = []func(){here.Announce} // and nobody tells the relay at once
	r.mu.Unlock()
	r.oneByOne(p, 20)
}
