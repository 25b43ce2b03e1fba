package outbox_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func TestAPanicHoldsUpItsShardUntilItIsOverAndIsSaid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var mended atomic.Bool
	p, q := &memory.Publisher{}, &memory.Publisher{}
	bad := to(p)
	bad.Wants = func(m *outbox.Message) bool {
		if m.Key == "a" && !mended.Load() {
			panic("a selector with an error in it")
		}
		return true
	}
	r.relay(outbox.Options{Shards: 1}, bad, outbox.Sink{ID: "sink-2", Name: "shop/other", Publisher: q})
	r.commit(r.message("a"), r.message("b"), r.message("a"))
	r.await(q, 3)
	r.eventually("the status says so, and the shard is free for others", func() bool {
		s := r.status()
		return s.Reason == outbox.ReasonInternal && s.Trouble != "" && s.Relays == 0
	})
	mended.Store(true)
	r.await(p, 3)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
	r.eventually("the trouble is over", func() bool { return r.status().Reason == "" })
}

func TestAPanicWhileAMessageIsOnItsWayPublishesNoOtherOfItsKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var once atomic.Bool
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 1, Parallel: 1}}
	s := to(panicking{Publisher: p, limits: func() outbox.Limits {
		if !once.Swap(true) {
			panic("limits with an error in them")
		}
		return p.Limits()
	}})
	r.relay(outbox.Options{Shards: 1}, s)
	r.commit(r.message("a"), r.message("a"))
	r.await(p, 2)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
}

func TestAPanicOfAListenerOrOverAnAnswerEndsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{}
	heard := make(chan string, 1)
	var listened, answers atomic.Int32
	s := to(panicking{Publisher: p, limits: p.Limits, listen: func(ctx context.Context, handle func(context.Context, outbox.Incoming) error) error {
		if listened.Add(1) == 1 {
			panic("a listener with an error in it")
		}
		for handle(ctx, outbox.Incoming{Body: []byte("yes")}) != nil {
			continue // it comes again
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	s.Replies = "answers"
	r.relay(outbox.Options{OnReply: func(_ context.Context, _ string, in outbox.Incoming) error {
		if answers.Add(1) == 1 {
			panic("an answer that nobody expected")
		}
		heard <- string(in.Body)
		return nil
	}}, s)
	select {
	case got := <-heard:
		if got != "yes" {
			t.Errorf("heard was %q", got)
		}
	case <-r.ctx.Done():
		t.Fatal("nothing is heard any more")
	}
}

// panicking is a publisher with errors in it.
type panicking struct {
	*memory.Publisher
	limits func() outbox.Limits
	listen func(ctx context.Context, handle func(context.Context, outbox.Incoming) error) error
}

func (p panicking) Limits() outbox.Limits { return p.limits() }

func (p panicking) Close() error {
	_ = p.Publisher.Close()
	panic("a connection with an error in it")
}

func (p panicking) Listen(ctx context.Context, _, _ string, handle func(context.Context, outbox.Incoming) error) error {
	return p.listen(ctx, handle)
}

// groups tells as which group it is listened.
type groups struct {
	*memory.Publisher
	as chan string
}

func (g groups) Listen(ctx context.Context, _, group string, _ func(context.Context, outbox.Incoming) error) error {
	g.as <- group
	<-ctx.Done()
	return ctx.Err()
}

func TestEachSinkIsListenedToAsAGroupOfItsOwnWhichStaysTheSame(t *testing.T) {
	t.Parallel()
	r, other := newRig(t), newRig(t)
	listen := func(r *rig, id string) string {
		g := groups{&memory.Publisher{}, make(chan string, 1)}
		relay := r.newRelay(outbox.Options{OnReply: func(context.Context, string, outbox.Incoming) error { return nil }})
		r.set(relay, outbox.Sink{ID: id, Name: "shop/events", Publisher: g, Replies: "answers"})
		defer relay.Remove(id)
		select {
		case group := <-g.as:
			return group
		case <-r.ctx.Done():
			t.Fatal("nobody listens")
			return ""
		}
	}
	a, b := uuid.NewString(), uuid.NewString()
	first := listen(r, a)
	if again := listen(r, a); again != first {
		t.Errorf("another replica listens as %s, not as %s", again, first)
	}
	if second := listen(r, b); second == first {
		t.Errorf("two sinks share the group %s", first)
	}
	if elsewhere := listen(other, a); elsewhere == first {
		t.Errorf("two operators share the group %s", first)
	}
}
