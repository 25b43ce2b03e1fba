package engine

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// engineOf is an engine over an empty store whose participants do as they are told.
func engineOf(t *testing.T, m Memory, do func(context.Context, participant.Call) participant.Result) *Engine {
	t.Helper()
	e, err := New(Options{Store: memory.New(), Participants: participant.Registry{"test": &scripted{do: do}}, Notify: func(Key) {}, Memory: m})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// advances moves a saga until it does not move any more; within a bubble of synctest.
func advances(t *testing.T, e *Engine, k Key, obs Observation) saga.State {
	t.Helper()
	var state saga.State
	for range 5 {
		r, err := e.Advance(t.Context(), k, obs)
		if err != nil {
			t.Fatal(err)
		}
		state = r.State
		synctest.Wait()
	}
	return state
}

// reading is a definition of two steps: the second reads the output of the first, which is the body of its response.
func reading() *saga.Definition {
	def := definition("a", "b")
	def.Steps[0].Output = map[string]string{"all": "${response.body}"}
	def.Steps[1].Do.With = json.RawMessage(`{"read": "${steps.a.output.all}"}`)
	return def
}

// TestAnIdleSagaHoldsNothingLarge has a large output be read twice: by an attempt that waits for a place, and by one after its saga has been idle.
func TestAnIdleSagaHoldsNothingLarge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		large := strings.Repeat("x", 5*smallState)
		var read []string
		accepted := true
		e := engineOf(t, Memory{}, func(_ context.Context, c participant.Call) participant.Result {
			if c.Attempt.Step == "a" {
				return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": large}}
			}
			read = append(read, c.With["read"].(string))
			return participant.Result{Accepted: accepted, AnswerWithin: time.Minute, Kind: saga.Succeeded}
		})
		k, obs := newKey(t), start(reading())
		advances(t, e, k, obs)
		if r := e.sagas[k.UID]; r.stream != streamUnknown || r.state.Version > 0 || r.observed.Input != nil || e.budgets.states.Used() > 0 {
			t.Errorf("while it waits for a reply, %d bytes are held of it", e.budgets.states.Used())
		}
		<-time.After(time.Hour) // there is none, and the step is tried again
		accepted = false
		if s := advances(t, e, k, obs); s.Phase != saga.Running {
			t.Errorf("it is %s", s.Phase)
		}
		<-time.After(time.Hour)
		if s := advances(t, e, k, obs); s.Phase != saga.Completed {
			t.Errorf("it is %s: %+v", s.Phase, s.Failure)
		}
		if len(read) != 2 || read[0] != large || read[1] != large {
			t.Errorf("the output was read %d times", len(read))
		}
		e.Forget(k)
		b := e.budgets
		if used := b.states.Used() + b.requests.Used() + b.answers.Used() + b.evaluation.Used(); used != 0 {
			t.Errorf("%d bytes are taken when there is no saga", used)
		}
	})
}

func TestTheStatesOfSagasThatAreKeptHaveABudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		e := engineOf(t, Memory{States: 40 << 10}, func(context.Context, participant.Call) participant.Result {
			<-release
			return participant.Result{Kind: saga.Succeeded}
		})
		keys := make([]Key, 50)
		for i := range keys {
			keys[i] = newKey(t)
			advances(t, e, keys[i], start(definition("a")))
		}
		if used := e.budgets.states.Used(); used > 20<<10 || used == 0 {
			t.Errorf("%d bytes are held of the sagas of a namespace", used)
		}
		close(release)
		synctest.Wait()
		for _, k := range keys {
			if s := advances(t, e, k, start(definition("a"))); s.Phase != saga.Completed {
				t.Errorf("one is %s", s.Phase)
			}
		}
	})
}

func TestAResponseIsDecodedOnlyIfItIsRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := engineOf(t, Memory{}, func(context.Context, participant.Call) participant.Result {
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": json.RawMessage(`{"n": 10000000000000000000001`)}}
		})
		if s := advances(t, e, newKey(t), start(definition("a"))); s.Phase != saga.Completed {
			t.Errorf("without an output it is %s: %+v", s.Phase, s.Failure)
		}
		def := definition("a")
		def.Steps[0].Output = map[string]string{"n": "${response.body.n}"}
		def.Steps[0].Do.Retry.MaxAttempts = 1
		if s := advances(t, e, newKey(t), start(def)); s.Failure == nil || s.Failure.Reason != reasonOutput {
			t.Errorf("with an output it is %s: %+v", s.Phase, s.Failure)
		}
	})
}

func TestAnAnswerOfTooManyValuesIsUndone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		many := json.RawMessage("[" + strings.Repeat("0,", 100_000) + "0]")
		e := engineOf(t, Memory{Evaluation: 8 << 20}, func(_ context.Context, c participant.Call) participant.Result {
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": many}}
		})
		def := definition("a")
		def.Steps[0].Output = map[string]string{"n": "${size(response.body)}"}
		s := advances(t, e, newKey(t), start(def))
		if s.Phase != saga.Compensated || s.Failure.Reason != saga.ReasonOutputTooLarge || s.Steps[0].Do.Attempts != 1 {
			t.Errorf("it is %s after %d attempts: %+v", s.Phase, s.Steps[0].Do.Attempts, s.Failure)
		}
	})
}

func TestWhatATemplateReadsHasALimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		called := false
		e := engineOf(t, Memory{Requests: 1 << 20}, func(context.Context, participant.Call) participant.Result {
			called = true
			return participant.Result{Kind: saga.Succeeded}
		})
		obs := start(definition("a"))
		obs.Input = json.RawMessage(`{"order":"42","many":[` + strings.Repeat("0,", 10_000) + `0]}`)
		if s := advances(t, e, newKey(t), obs); s.Phase != saga.Compensated || s.Failure.Reason != reasonInputTooLarge || called {
			t.Errorf("it is %s: %+v", s.Phase, s.Failure)
		}
	})
}

// TestAttemptsWaitForMemoryAndHoldUpNoOtherNamespace has participants hang with large requests.
func TestAttemptsWaitForMemoryAndHoldUpNoOtherNamespace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		called, release := map[string]int{}, make(chan struct{})
		e := engineOf(t, Memory{Requests: 100 << 10}, func(_ context.Context, c participant.Call) participant.Result {
			called[c.Saga.Namespace]++
			<-release
			return participant.Result{Kind: saga.Succeeded}
		})
		obs := start(definition("a"))
		obs.Input = json.RawMessage(`{"order":"` + strings.Repeat("x", 15<<10) + `"}`)
		greedy := make([]Key, 4)
		for i := range greedy {
			greedy[i] = newKey(t)
			advances(t, e, greedy[i], obs)
		}
		if n := called["shop"]; n == 0 || n >= len(greedy) {
			t.Errorf("%d of %d attempts found room", n, len(greedy))
		}
		other := newKey(t)
		other.Namespace = "bank"
		advances(t, e, other, start(definition("a")))
		if called["bank"] != 1 {
			t.Error("another namespace's attempt waits, too")
		}
		close(release)
		synctest.Wait()
		for _, k := range greedy {
			if s := advances(t, e, k, obs); s.Phase != saga.Completed {
				t.Errorf("one is %s: %+v", s.Phase, s.Failure)
			}
		}
	})
}
