package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestAfterACrashTheSameAttemptIsSentAgainUnderTheSameKey(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	hangs := &scripted{do: func(ctx context.Context, _ participant.Call) participant.Result {
		<-ctx.Done()
		return participant.Result{Kind: saga.Unknown}
	}}
	first := newBench(t, store, hangs, Observation{})
	if _, err := first.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
		t.Fatal(err)
	}
	first.engine.Forget(k) // the crash: nothing that the process held is left, and nothing is recorded

	p := &scripted{}
	second := newBench(t, store, p, Observation{}).run() // nobody queues the key: it is found in the store
	if r := second.await(); r.State.Phase != saga.Completed {
		t.Fatalf("it is %s", r.State.Phase)
	}
	calls := p.seen()
	if len(calls) != 1 || calls[0].Attempt.Number != 1 || calls[0].Key != k.UID+"/a/action" || calls[0].With["order"] != "42" {
		t.Errorf("calls after the crash: %+v", calls)
	}
	if got := history(t, store, k); fmt.Sprint(got) != "[SagaStarted AttemptStarted AttemptResent AttemptSucceeded SagaCompleted]" {
		t.Errorf("stream %v", got)
	}
}

// TestWhatWasDoneBeforeACrashIsUndoneAlthoughTheParticipantIsGoneAfterwards has a participant act just before the operator dies. After that nobody can reach it until it is to undo.
func TestWhatWasDoneBeforeACrashIsUndoneAlthoughTheParticipantIsGoneAfterwards(t *testing.T) {
	t.Parallel()
	store, k, acted := memory.New(), newKey(t), make(chan struct{})
	acts := &scripted{do: func(ctx context.Context, _ participant.Call) participant.Result {
		close(acted)
		<-ctx.Done()
		return participant.Result{Kind: saga.Unknown}
	}}
	first, def := newBench(t, store, acts, Observation{}), definition("a")
	def.Steps[0].Do.AttemptTimeout = time.Second // until then the first call may be under way, and is not undone
	if _, err := first.engine.Advance(t.Context(), k, start(def)); err != nil {
		t.Fatal(err)
	}
	<-acted
	first.engine.Forget(k) // the crash

	var recorded []string
	p := &scripted{do: func(_ context.Context, c participant.Call) participant.Result {
		if c.Attempt.Direction == saga.Compensation {
			return participant.Result{Kind: saga.Succeeded}
		}
		if recorded == nil {
			recorded = history(t, store, k)
		}
		return participant.Result{Kind: saga.Retryable, Reason: "ConnectionFailed"}
	}}
	if r := newBench(t, store, p, Observation{}).run().await(); r.State.Phase != saga.Compensated || r.State.Step("a").Compensation.Status != saga.Done {
		t.Errorf("it is %s, and what was done before the crash has not been undone: %v", r.State.Phase, history(t, store, k))
	}
	if len(recorded) < 3 || fmt.Sprint(recorded[:3]) != "[SagaStarted AttemptStarted AttemptResent]" {
		t.Errorf("when the attempt was sent again the stream held %v", recorded)
	}
}

func TestTwoEnginesOnOneStoreAreHarmless(t *testing.T) {
	t.Parallel()
	store := memory.New()
	effects := sync.Map{} // an idempotent participant: by key
	p := &scripted{do: func(_ context.Context, c participant.Call) participant.Result {
		effects.Store(c.Key, true)
		return participant.Result{Kind: saga.Succeeded}
	}}
	obs := start(definition("a", "b", "c"))
	one, two := newBench(t, store, p, obs).run(), newBench(t, store, p, obs).run()
	keys := make([]Key, 100)
	for i := range keys {
		keys[i] = newKey(t)
		one.queue.Enqueue(keys[i])
		two.queue.Enqueue(keys[i])
	}
	for range keys {
		one.await()
		two.await()
	}
	for _, k := range keys {
		got := slices.DeleteFunc(history(t, store, k), func(typ string) bool { return typ == "AttemptResent" }) // by the engine that did not start it
		if len(got) != 8 {
			t.Errorf("stream of %s: %v", k, got)
		}
		for _, s := range []string{"a", "b", "c"} {
			if _, ok := effects.Load(k.UID + "/" + s + "/action"); !ok {
				t.Errorf("step %s of %s was not done", s, k)
			}
		}
	}
}

// faulty is a store whose appends fail while a test wants them to.
type faulty struct {
	eventstore.Store
	mu     sync.Mutex
	before func(eventstore.Append) error
	after  func(eventstore.Append) error
}

func (f *faulty) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	f.mu.Lock()
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if err := before(a); err != nil {
			return eventstore.Appended{}, err
		}
	}
	done, err := f.Store.Append(ctx, a)
	if err == nil && after != nil {
		err = after(a)
	}
	return done, err
}

func failures(n int) func(eventstore.Append) error {
	var mu sync.Mutex
	return func(eventstore.Append) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n >= 0 {
			return fmt.Errorf("cut: %w", eventstore.ErrUnavailable)
		}
		return nil
	}
}

func TestAnOutcomeOutlivesAStoreThatIsAway(t *testing.T) {
	t.Parallel()
	store, k := &faulty{Store: memory.New()}, newKey(t)
	p := &scripted{do: func(context.Context, participant.Call) participant.Result {
		store.mu.Lock()
		store.before = failures(5)
		store.mu.Unlock()
		return participant.Result{Kind: saga.Succeeded}
	}}
	b := newBench(t, store, p, start(definition("a"))).run()
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Completed {
		t.Fatalf("it is %s", r.State.Phase)
	}
	if n := len(p.seen()); n != 1 {
		t.Errorf("the participant was called %d times for one outcome", n)
	}
}

func TestAnAppendThatWasCommittedAlthoughItFailedIsFoundAgain(t *testing.T) {
	t.Parallel()
	store, k := &faulty{Store: memory.New(), after: failures(3)}, newKey(t)
	p := &scripted{}
	b := newBench(t, store, p, start(definition("a", "b"))).run()
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Completed {
		t.Fatalf("it is %s", r.State.Phase)
	}
	// Nobody knows that it was this process which appended the intent, so the attempt counts as begun by somebody else.
	want := "[SagaStarted AttemptStarted AttemptResent AttemptSucceeded AttemptStarted AttemptSucceeded SagaCompleted]"
	// How often it is sent again depends on which append's answer is lost.
	if got := slices.Compact(history(t, store, k)); fmt.Sprint(got) != want && fmt.Sprint(got) != strings.Replace(want, "AttemptStarted AttemptSucceeded SagaCompleted", "AttemptStarted AttemptResent AttemptSucceeded SagaCompleted", 1) {
		t.Errorf("stream %v", got)
	}
}

func TestUnfinishedFindsEverySagaThatCanStillMove(t *testing.T) {
	t.Parallel()
	store := memory.New()
	before := newBench(t, store, &scripted{do: rejectStep("never")}, start(definition("a"))).run()
	done := newKey(t)
	before.queue.Enqueue(done)
	before.await()
	before.stop() // it would find the others too, and carry them out
	b := newBench(t, store, &scripted{}, Observation{})
	want := map[Key]bool{}
	suspended := start(definition("a"))
	suspended.Suspend = true
	for range 3 {
		k := newKey(t)
		want[k] = true
		if _, err := b.engine.Advance(t.Context(), k, suspended); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.engine.Unfinished(t.Context(), func(k Key) bool {
		if !want[k] {
			t.Errorf("found %s", k)
		}
		delete(want, k)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}

// TestSuspendedSagaIsNotSentAgainAfterACrash has an attempt under way when its process ends, and the saga suspended when another one goes on.
func TestSuspendedSagaIsNotSentAgainAfterACrash(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	hangs := &scripted{do: func(ctx context.Context, _ participant.Call) participant.Result {
		<-ctx.Done()
		return participant.Result{Kind: saga.Unknown}
	}}
	first := newBench(t, store, hangs, Observation{})
	if _, err := first.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
		t.Fatal(err)
	}
	first.engine.Forget(k) // the crash

	p := &scripted{}
	second := newBench(t, store, p, Observation{})
	advance(t, second, k, true, p, 0)
	advance(t, second, k, false, p, 1)
	_ = second.engine.Shutdown(t.Context())
}

// advance moves a saga that is suspended or not, and counts the calls of its participant.
func advance(t *testing.T, b *bench, k Key, suspended bool, p *scripted, want int) {
	t.Helper()
	if _, err := b.engine.Advance(t.Context(), k, Observation{Suspend: suspended}); err != nil {
		t.Fatal(err)
	}
	if err := b.engine.pool.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(p.seen()); got != want {
		t.Errorf("suspended: %t: the participant was called %d times, want %d", suspended, got, want)
	}
}
