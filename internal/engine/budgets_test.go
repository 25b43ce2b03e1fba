package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// newScriptedEngine returns an engine over an empty store whose participant runs do.
func newScriptedEngine(t *testing.T, m Memory, do func(context.Context, participant.Call) participant.Result) *Engine {
	t.Helper()
	e, err := New(Options{Store: memory.New(), Participants: participant.Registry{"test": &scripted{do: do}}, Notify: func(Key) {}, Memory: m})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// advanceUntilIdle advances a saga until nothing is left to do, and returns its state. The test
// must run in a synctest bubble.
func advanceUntilIdle(t *testing.T, e *Engine, k Key, obs Observation) saga.State {
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

// chainedDefinition returns a definition of two steps. The output of the first is the body of its
// response, and the second reads it.
func chainedDefinition() *saga.Definition {
	def := definition("a", "b")
	def.Steps[0].Output = map[string]string{"all": "${response.body}"}
	def.Steps[1].Do.With = json.RawMessage(`{"read": "${steps.a.output.all}"}`)
	return def
}

// TestEngineDropsLargeIdleState has an output of more than smallStateBytes. Two attempts read it:
// one that has waited for a place, and one that starts after the saga was idle.
func TestEngineDropsLargeIdleState(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		large := strings.Repeat("x", 5*smallStateBytes)
		var read []string
		accepted := true
		e := newScriptedEngine(t, Memory{}, func(_ context.Context, c participant.Call) participant.Result {
			if c.Attempt.Step == "a" {
				return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": large}}
			}
			read = append(read, c.With["read"].(string))
			return participant.Result{Accepted: accepted, AnswerWithin: time.Minute, Kind: saga.Succeeded}
		})
		k, obs := newKey(t), start(chainedDefinition())
		advanceUntilIdle(t, e, k, obs)
		if r := e.sagas[k.UID]; r.stream != streamUnknown || r.state.Version > 0 || r.observed.Input != nil || e.budgets.states.Used() > 0 {
			t.Errorf("a saga that waits for a reply keeps %d bytes, want 0", e.budgets.states.Used())
		}
		<-time.After(time.Hour) // no reply comes, and the step is retried
		accepted = false
		if s := advanceUntilIdle(t, e, k, obs); s.Phase != saga.Running {
			t.Errorf("after the missing reply: phase %s", s.Phase)
		}
		<-time.After(time.Hour)
		if s := advanceUntilIdle(t, e, k, obs); s.Phase != saga.Completed {
			t.Errorf("after the retry: phase %s, failure %+v", s.Phase, s.Failure)
		}
		if len(read) != 2 || read[0] != large || read[1] != large {
			t.Errorf("%d attempts read the output, want 2 that read all of it", len(read))
		}
		e.Forget(k)
		b := e.budgets
		if used := b.states.Used() + b.requests.Used() + b.responses.Used() + b.evaluation.Used(); used != 0 {
			t.Errorf("%d bytes are used without a saga, want 0", used)
		}
	})
}

// TestEngineLimitsKeptStates has 50 sagas with attempts under way. Their namespace keeps states of
// at most half of the budget.
func TestEngineLimitsKeptStates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		e := newScriptedEngine(t, Memory{States: 40 << 10}, func(context.Context, participant.Call) participant.Result {
			<-release
			return participant.Result{Kind: saga.Succeeded}
		})
		keys := make([]Key, 50)
		for i := range keys {
			keys[i] = newKey(t)
			advanceUntilIdle(t, e, keys[i], start(definition("a")))
		}
		if used := e.budgets.states.Used(); used > 20<<10 || used == 0 {
			t.Errorf("the states of a namespace use %d bytes, want 1 to %d", used, 20<<10)
		}
		close(release)
		synctest.Wait()
		for _, k := range keys {
			if s := advanceUntilIdle(t, e, k, start(definition("a"))); s.Phase != saga.Completed {
				t.Errorf("saga %s: phase %s", k, s.Phase)
			}
		}
	})
}

// TestEvaluateDecodesResponseOnlyForOutput has a response that is invalid JSON. It fails only a
// step that has an output.
func TestEvaluateDecodesResponseOnlyForOutput(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newScriptedEngine(t, Memory{}, func(context.Context, participant.Call) participant.Result {
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": json.RawMessage(`{"n": 10000000000000000000001`)}}
		})
		if s := advanceUntilIdle(t, e, newKey(t), start(definition("a"))); s.Phase != saga.Completed {
			t.Errorf("without an output: phase %s, failure %+v", s.Phase, s.Failure)
		}
		def := definition("a")
		def.Steps[0].Output = map[string]string{"n": "${response.body.n}"}
		def.Steps[0].Do.Retry.MaxAttempts = 1
		if s := advanceUntilIdle(t, e, newKey(t), start(def)); s.Failure == nil || s.Failure.Reason != reasonOutput {
			t.Errorf("with an output: phase %s, failure %+v", s.Phase, s.Failure)
		}
	})
}

// TestEvaluateFailsOnTooManyValues has a response that takes more than half of
// Memory.Evaluation once decoded. The action is compensated after one attempt.
func TestEvaluateFailsOnTooManyValues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		many := json.RawMessage("[" + strings.Repeat("0,", 100_000) + "0]")
		e := newScriptedEngine(t, Memory{Evaluation: 8 << 20}, func(_ context.Context, c participant.Call) participant.Result {
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": many}}
		})
		def := definition("a")
		def.Steps[0].Output = map[string]string{"n": "${size(response.body)}"}
		s := advanceUntilIdle(t, e, newKey(t), start(def))
		if s.Phase != saga.Compensated || s.Failure.Reason != saga.ReasonOutputTooLarge || s.Steps[0].Do.Attempts != 1 {
			t.Errorf("phase %s after %d attempts, failure %+v", s.Phase, s.Steps[0].Do.Attempts, s.Failure)
		}
	})
}

// TestRenderFailsOnTooLargeInput has an input that takes more than half of Memory.Requests once
// decoded. The participant is not called.
func TestRenderFailsOnTooLargeInput(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		called := false
		e := newScriptedEngine(t, Memory{Requests: 1 << 20}, func(context.Context, participant.Call) participant.Result {
			called = true
			return participant.Result{Kind: saga.Succeeded}
		})
		obs := start(definition("a"))
		obs.Input = json.RawMessage(`{"order":"42","many":[` + strings.Repeat("0,", 10_000) + `0]}`)
		if s := advanceUntilIdle(t, e, newKey(t), obs); s.Phase != saga.Compensated || s.Failure.Reason != reasonInputTooLarge || called {
			t.Errorf("phase %s, failure %+v, participant called: %t", s.Phase, s.Failure, called)
		}
	})
}

// TestAttemptsWaitForMemoryPerNamespace has a participant that does not respond to large requests
// of one namespace. An attempt of another namespace is sent immediately.
func TestAttemptsWaitForMemoryPerNamespace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		called, release := map[string]int{}, make(chan struct{})
		e := newScriptedEngine(t, Memory{Requests: 100 << 10}, func(_ context.Context, c participant.Call) participant.Result {
			called[c.Saga.Namespace]++
			<-release
			return participant.Result{Kind: saga.Succeeded}
		})
		obs := start(definition("a"))
		obs.Input = json.RawMessage(`{"order":"` + strings.Repeat("x", 15<<10) + `"}`)
		greedy := make([]Key, 4)
		for i := range greedy {
			greedy[i] = newKey(t)
			advanceUntilIdle(t, e, greedy[i], obs)
		}
		if n := called["shop"]; n == 0 || n >= len(greedy) {
			t.Errorf("%d of %d attempts were sent, want some and not all", n, len(greedy))
		}
		other := newKey(t)
		other.Namespace = "bank"
		advanceUntilIdle(t, e, other, start(definition("a")))
		if called["bank"] != 1 {
			t.Errorf("%d attempts of the other namespace were sent, want 1", called["bank"])
		}
		close(release)
		synctest.Wait()
		for _, k := range greedy {
			if s := advanceUntilIdle(t, e, k, obs); s.Phase != saga.Completed {
				t.Errorf("saga %s: phase %s, failure %+v", k, s.Phase, s.Failure)
			}
		}
	})
}

// TestAttemptKeepsPlaceUntilOutputFits has 20 attempts and 4 places, of which a
// namespace has 2. Outputs of two fit into its memory, and nothing is recorded at first.
func TestAttemptKeepsPlaceUntilOutputFits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 200 << 10
		p := &scripted{do: func(context.Context, participant.Call) participant.Result {
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": strings.Repeat("x", size)}}
		}}
		e, err := New(Options{Store: memory.New(), Participants: participant.Registry{"test": p}, Notify: func(Key) {}, Workers: 4, Memory: Memory{Outputs: 5 * size}})
		if err != nil {
			t.Fatal(err)
		}
		def := &saga.Definition{}
		for i := range 20 {
			s := definition("a").Steps[0]
			s.Name, s.Output = fmt.Sprint("s", i), map[string]string{"all": "${response.body}"}
			def.Steps = append(def.Steps, s)
		}
		k, obs := newKey(t), start(def)
		if _, err := e.compileNow(t.Context(), k.Namespace, *def); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Advance(t.Context(), k, obs); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := len(p.seen()); n != 2+2 {
			t.Errorf("%d attempts were made before the first is recorded, want 4", n)
		}
		if s := advanceUntilIdle(t, e, k, obs); s.Phase != saga.Completed {
			t.Errorf("the saga is %s", s.Phase)
		}
		if used := e.budgets.outputs.Used(); used > 0 {
			t.Errorf("%d bytes are used when all outputs are recorded", used)
		}
	})
}

// TestAttemptReleasesPlaceWhenRecorded has an attempt that has ended, whose output finds
// no memory.
func TestAttemptReleasesPlaceWhenRecorded(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*testing.T, *Engine, Key) error{
		"recorded": func(t *testing.T, e *Engine, k Key) error {
			_, err := e.Advance(t.Context(), k, Observation{})
			return err
		},
		"forgotten": func(_ *testing.T, e *Engine, k Key) error {
			e.Forget(k)
			return nil
		},
		"shut down": func(t *testing.T, e *Engine, _ Key) error { return e.Shutdown(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newScriptedEngine(t, Memory{Outputs: 64 << 10}, func(context.Context, participant.Call) participant.Result {
					return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": strings.Repeat("x", 20<<10)}}
				})
				memory, k := e.budgets.outputs.Open("shop"), newKey(t)
				if err := memory.Take(32 << 10); err != nil {
					t.Fatal(err)
				}
				if _, err := e.Advance(t.Context(), k, start(chainedDefinition())); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if e.pool.active != 1 {
					t.Errorf("%d attempts have a place before, want 1", e.pool.active)
				}
				if err := end(t, e, k); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				if e.pool.active > 0 {
					t.Errorf("%d attempts have a place, want none", e.pool.active)
				}
				memory.Close()
				if used := e.budgets.outputs.Used(); used > 0 {
					t.Errorf("%d bytes are used", used)
				}
			})
		})
	}
}
