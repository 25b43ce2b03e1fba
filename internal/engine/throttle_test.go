package engine

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/testenv/keyqueue"
)

// parallel returns a definition of n steps that depend on nothing.
func parallel(n int) *saga.Definition {
	def := &saga.Definition{}
	for i := range n {
		s := definition("a").Steps[0]
		s.Name = fmt.Sprint("s", i)
		def.Steps = append(def.Steps, s)
	}
	return def
}

// throttled is an engine in which the namespace shop may start five attempts per second, and that is
// driven by a queue.
type throttled struct {
	*scripted
	queue  *keyqueue.Queue[Key]
	store  *memory.Store
	engine *Engine
}

func newThrottled(t *testing.T, def *saga.Definition) *throttled {
	t.Helper()
	r := &throttled{scripted: &scripted{}, queue: &keyqueue.Queue[Key]{}, store: memory.New()}
	e, err := New(Options{
		Store: r.store, Participants: participant.Registry{"test": r.scripted}, Notify: r.queue.Enqueue,
		AttemptRate: func(namespace string) int64 {
			if namespace == "shop" {
				return 5
			}
			return -1
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.engine = e
	r.queue.Advance = func(ctx context.Context, k Key) (time.Duration, error) {
		_, err := e.Advance(ctx, k, start(def))
		return keyqueue.Never, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.queue.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

// calls returns how many calls a saga's participant has had.
func (r *throttled) callsOf(k Key) int {
	n := 0
	for _, c := range r.seen() {
		if c.Saga.UID == k.UID {
			n++
		}
	}
	return n
}

func TestThrottleLimitsAttemptsOfANamespace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newThrottled(t, parallel(12))
		k, other := newKey(t), newKey(t)
		other.Namespace = "bank"
		r.queue.Enqueue(k)
		synctest.Wait()
		r.queue.Enqueue(other)
		synctest.Wait()
		if n := r.callsOf(other); n != 12 {
			t.Errorf("a namespace without a limit starts %d attempts at once, want 12", n)
		}
		for _, want := range []int{5, 10, 12} {
			if n := r.callsOf(k); n != want {
				t.Errorf("%d attempts have started, want %d", n, want)
			}
			if n := count(history(t, r.store, k), "AttemptStarted"); n != want {
				t.Errorf("%d attempts are recorded as started, want %d: what may not start is not recorded", n, want)
			}
			<-time.After(1100 * time.Millisecond)
			synctest.Wait()
		}
		if h := history(t, r.store, k); h[len(h)-1] != "SagaCompleted" {
			t.Errorf("the saga ends with %s", h[len(h)-1])
		}
	})
}

// TestThrottleHasSagasTakeTurns has a saga of many attempts wait for tokens when another comes.
func TestThrottleHasSagasTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newThrottled(t, parallel(20))
		first, second := newKey(t), newKey(t)
		r.queue.Enqueue(first)
		synctest.Wait()
		r.queue.Enqueue(second)
		<-time.After(2100 * time.Millisecond)
		synctest.Wait()
		if a, b := r.callsOf(first), r.callsOf(second); a != 10 || b != 5 {
			t.Errorf("after two seconds the sagas have started %d and %d attempts, want 10 and 5", a, b)
		}
	})
}

func TestThrottleForgetsASagaThatWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var woken []string
		th := newThrottle(func(string) int64 { return 1 }, time.Now, func(k Key) { woken = append(woken, k.Name) })
		key := func(name string) Key { return Key{Namespace: "shop", Name: name, UID: name} }
		if th.take(key("a"), 1) != 1 || th.take(key("b"), 1) != 0 || th.take(key("c"), 1) != 0 || th.take(key("d"), 1) != 0 {
			t.Fatal("the first saga alone should get the token")
		}
		th.forget(key("b"))
		<-time.After(1100 * time.Millisecond)
		synctest.Wait()
		th.forget(key("c")) // it has been woken, and gives its token back
		<-time.After(1000 * time.Millisecond)
		synctest.Wait()
		if want := []string{"c", "d"}; !slices.Equal(woken, want) {
			t.Errorf("woken: %v, want %v", woken, want)
		}
		if got := th.take(key("d"), 1); got != 1 {
			t.Errorf("the saga that was woken may start %d attempts, want 1", got)
		}
		if got := th.take(key("e"), 1); got != 0 {
			t.Errorf("another may start %d attempts, want none", got)
		}
	})
}

func TestThrottleKeepsTheOrderOfArrival(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	th := newThrottle(func(string) int64 { return 2 }, func() time.Time { return now }, func(Key) {})
	if got := th.take(Key{Namespace: "shop", UID: "first"}, 3); got != 2 {
		t.Fatalf("%d attempts may start, want 2", got)
	}
	now = now.Add(time.Second) // the timer for those that wait has not fired yet
	if got := th.take(Key{Namespace: "shop", UID: "second"}, 1); got != 0 {
		t.Errorf("a saga starts %d attempts before one that has waited longer", got)
	}
}

func TestEngineForgetsASagaThatWaitsForTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newThrottled(t, parallel(12))
		k := newKey(t)
		r.queue.Enqueue(k)
		synctest.Wait()
		r.engine.Forget(k)
		<-time.After(3 * time.Second)
		synctest.Wait()
		if n := r.callsOf(k); n != 5 {
			t.Errorf("%d attempts have started of a saga that was forgotten after 5", n)
		}
	})
}

func TestThrottleFollowsAChangedRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var rate atomic.Int64
		rate.Store(1)
		woken := 0
		th := newThrottle(func(string) int64 { return rate.Load() }, time.Now, func(Key) { woken++ })
		for i := range 4 {
			th.take(Key{Namespace: "shop", UID: fmt.Sprint(i)}, 1)
		}
		rate.Store(-1)
		<-time.After(1100 * time.Millisecond)
		synctest.Wait()
		if woken != 3 {
			t.Errorf("%d sagas are woken when the limit is gone, want 3", woken)
		}
		if got := th.take(Key{Namespace: "shop", UID: "9"}, 100); got != 100 {
			t.Errorf("%d of 100 attempts may start without a limit", got)
		}
		rate.Store(1)
		<-time.After(time.Second)
		if got := th.take(Key{Namespace: "shop", UID: "10"}, 1); got != 1 {
			t.Error("no attempt may start a second after a new limit: it begins with a debt")
		}
	})
}

func count(all []string, what string) int {
	n := 0
	for _, s := range all {
		if s == what {
			n++
		}
	}
	return n
}
