package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// TestAdvanceRecordsOutputsThatDoNotFitIntoOneAppend runs 150 steps that end at the same time, each
// with an output of almost the maximum size. Their total exceeds saga.MaxSagaOutputBytes, so the
// saga rolls back.
func TestAdvanceRecordsOutputsThatDoNotFitIntoOneAppend(t *testing.T) {
	t.Parallel()
	store, k, def := memory.New(), newKey(t), &saga.Definition{}
	for i := range 150 {
		s := definition("a").Steps[0]
		s.Name, s.Output = fmt.Sprintf("s%d", i), map[string]string{"all": "${response.body}"}
		def.Steps = append(def.Steps, s)
	}
	large := strings.Repeat("x", 250<<10)
	p := &scripted{do: func(context.Context, participant.Call) participant.Result {
		return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": large}}
	}}
	b := newBench(t, store, p, start(def))
	if _, err := b.engine.compileNow(t.Context(), k.Namespace, *def); err != nil {
		t.Fatal(err)
	}
	if _, err := b.engine.Advance(t.Context(), k, start(def)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := b.engine.pool.drain(ctx); err != nil {
		t.Fatalf("the attempts keep their places: %v", err)
	}
	for rounds := 1; ; rounds++ {
		r, err := b.engine.Advance(t.Context(), k, start(def))
		if err != nil {
			t.Fatalf("after %d rounds: %v", rounds, err)
		}
		unsettled := func(s saga.StepState) bool { return !s.Do.Settled() }
		if r.State.Phase == saga.Compensating && !slices.ContainsFunc(r.State.Steps, unsettled) {
			break
		}
		if rounds > 150 {
			t.Fatal("the outcomes are not recorded")
		}
	}
	_ = b.engine.Shutdown(t.Context())
}

func TestWaitingOutputsHaveLimitOfSaga(t *testing.T) {
	t.Parallel()
	const size, attempts = 250 << 10, 20
	r, dropped := newRunning(Key{}, newBudgets(Memory{}), time.Now), 0
	for i := range attempts {
		a := saga.Attempt{EffectID: saga.EffectID{Step: fmt.Sprint("s", i), Direction: saga.Action}, Number: 1}
		r.begin(a, func(error) {})
		r.end(saga.Outcome{Attempt: a, Kind: saga.Succeeded, Output: make(json.RawMessage, size)})
	}
	for _, o := range r.waiting() {
		if o.Reason == saga.ReasonOutputTooLarge && o.Output == nil {
			dropped++
		}
	}
	if want := attempts - saga.MaxSagaOutputBytes/size; dropped != want || r.outputBytes() > saga.MaxSagaOutputBytes {
		t.Errorf("%d outputs are dropped, want %d; the others have %d bytes", dropped, want, r.outputBytes())
	}
}

func TestFittingKeepsAtLeastOneOutcome(t *testing.T) {
	t.Parallel()
	outcomes := func(sizes ...int) (all []arrival) {
		for _, n := range sizes {
			all = append(all, arrival{Outcome: saga.Outcome{Output: make(json.RawMessage, n)}})
		}
		return all
	}
	for name, c := range map[string]struct {
		all  []arrival
		want int
	}{
		"none":               {nil, 0},
		"one that is huge":   {outcomes(2 * maxOutputBytes), 1},
		"two that just fit":  {outcomes(maxOutputBytes/2, maxOutputBytes/2), 2},
		"a third that is in": {outcomes(maxOutputBytes, 0, 1), 2},
		"too many":           {outcomes(slices.Repeat([]int{0}, maxOutcomes+1)...), maxOutcomes},
	} {
		if got := len(fitting(c.all)); got != c.want {
			t.Errorf("%s: %d fit, want %d", name, got, c.want)
		}
	}
}

// panicking is a store whose appends panic while a test wants them to.
type panicking struct {
	eventstore.Store
	armed atomic.Bool
}

func (p *panicking) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if p.armed.Load() {
		panic("index out of range")
	}
	return p.Store.Append(ctx, a)
}

func TestPanicEndsOneRoundOfOneSaga(t *testing.T) {
	t.Parallel()
	store, k := &panicking{Store: memory.New()}, newKey(t)
	store.armed.Store(true)
	b := newBench(t, store, &scripted{}, start(definition("a")))
	_, err := b.engine.Advance(t.Context(), k, start(definition("a")))
	var panicked *PanicError
	if !errors.As(err, &panicked) {
		t.Fatalf("error %v", err)
	}
	reason, message, transient := Problem(err)
	if reason != ReasonInternalError || transient || strings.Contains(message, "\n") || !strings.Contains(message, "index out of range") {
		t.Errorf("%s %q, transient: %t", reason, message, transient)
	}
	store.armed.Store(false)
	b.run()
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Completed {
		t.Errorf("it is %s", r.State.Phase)
	}
}

// TestPanicAtTheEndDoesNotEndTheProcess has outcomes recorded during a shutdown by a store that panics.
func TestPanicAtTheEndDoesNotEndTheProcess(t *testing.T) {
	t.Parallel()
	store, k := &panicking{Store: memory.New()}, newKey(t)
	b := newBench(t, store, &scripted{}, Observation{})
	if _, err := b.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
		t.Fatal(err)
	}
	if err := b.engine.pool.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	store.armed.Store(true)
	if err := b.engine.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
