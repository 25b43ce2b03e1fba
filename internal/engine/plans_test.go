package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// preparing is a participant that prepares calls.
type preparing struct {
	*scripted
	prepare func()
}

func (p *preparing) Prepare(context.Context, *participant.Call) *participant.Result {
	p.prepare()
	return nil
}

// largeDefinition returns a definition of one step whose plan takes several megabytes, and whose output is
// the body of its response.
func largeDefinition(i int) *saga.Definition {
	def := definition("a")
	list := `"${[` + strings.Repeat("1, ", 900) + fmt.Sprint(i) + `]}",`
	def.Steps[0].Do.With = json.RawMessage(`{"body": [` + strings.Repeat(list, 40) + `1]}`)
	def.Steps[0].Output = map[string]string{"x": "${response.body}"}
	return def
}

// TestCallsThatHangHoldNoLargePlan has sagas of several namespaces, and memory for the plan of one.
func TestCallsThatHangHoldNoLargePlan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := &scripted{do: func(context.Context, participant.Call) participant.Result {
			<-release
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": "x"}}
		}}
		e, err := New(Options{Store: memory.New(), Participants: participant.Registry{"test": p}, Notify: func(Key) {}, Memory: Memory{Plans: 20 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		keys, observed := make([]Key, 4), make([]Observation, 4)
		for i := range keys {
			keys[i], observed[i] = newKey(t), start(largeDefinition(i))
			keys[i].Namespace = fmt.Sprint("n", i/2)
			if _, err := e.compileNow(t.Context(), keys[i].Namespace, *observed[i].Definition); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Advance(t.Context(), keys[i], observed[i]); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if n := len(p.seen()); n != len(keys) {
			t.Errorf("%d participants are called while others hang, want %d", n, len(keys))
		}
		if used := e.budgets.plans.Used(); used > 0 {
			t.Errorf("calls that hang hold %d bytes of plans", used)
		}
		close(release)
		synctest.Wait()
		for i, k := range keys {
			if s := advanceUntilIdle(t, e, k, observed[i]); s.Phase != saga.Completed || string(s.Step("a").Output) != `{"x":"x"}` {
				t.Errorf("the saga is %s: %+v", s.Phase, s.Step("a").Do)
			}
		}
	})
}

// TestAttemptsWaitForMemoryOfLargePlans has two sagas of a namespace, whose share is enough for the plan
// of one.
func TestAttemptsWaitForMemoryOfLargePlans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		prepared := 0
		p := &preparing{scripted: &scripted{do: func(context.Context, participant.Call) participant.Result {
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": "x"}}
		}}, prepare: func() {
			prepared++
			<-release
		}}
		e, err := New(Options{Store: memory.New(), Participants: participant.Registry{"test": p}, Notify: func(Key) {}, Memory: Memory{Plans: 20 << 20}})
		if err != nil {
			t.Fatal(err)
		}
		keys, observed := []Key{newKey(t), newKey(t)}, make([]Observation, 2)
		for i, k := range keys {
			def := largeDefinition(i)
			observed[i] = start(def)
			plan, err := e.compileNow(t.Context(), k.Namespace, *def)
			if err != nil {
				t.Fatal(err)
			}
			if size := planBytes(plan); size <= smallPlanBytes {
				t.Fatalf("a plan of %d bytes is not large", size)
			}
			if _, err := e.Advance(t.Context(), k, observed[i]); err != nil {
				t.Fatal(err)
			}
			if e.sagas[k.UID].plan != nil {
				t.Error("the saga keeps its plan between two calls of Advance")
			}
			synctest.Wait()
		}
		if prepared != 1 {
			t.Errorf("%d attempts are prepared at a time, want 1", prepared)
		}
		clear(e.Plans.plans) // as other sagas may have it
		close(release)
		synctest.Wait()
		for i, k := range keys {
			if _, err := e.compileNow(t.Context(), k.Namespace, *observed[i].Definition); err != nil {
				t.Fatal(err)
			}
			if s := advanceUntilIdle(t, e, k, observed[i]); s.Phase != saga.Completed || string(s.Step("a").Output) != `{"x":"x"}` {
				t.Errorf("the saga is %s: %+v", s.Phase, s.Step("a").Do)
			}
		}
		if used := e.budgets.plans.Used(); used > 0 {
			t.Errorf("%d bytes are used when all sagas have ended", used)
		}
	})
}

// TestSagasKeepPlansWithinBudget has sagas of different definitions, each with a plan that is small.
func TestSagasKeepPlansWithinBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const total, states = 60, 4 << 20
		release := make(chan struct{})
		p := &scripted{do: func(context.Context, participant.Call) participant.Result {
			<-release
			return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": "x"}}
		}}
		e, err := New(Options{Store: memory.New(), Participants: participant.Registry{"test": p}, Notify: func(Key) {}, Memory: Memory{States: states}})
		if err != nil {
			t.Fatal(err)
		}
		keys, observed := make([]Key, total), make([]Observation, total)
		for i := range keys {
			def := definition("a", "b")
			for s := range def.Steps {
				def.Steps[s].Do.With = json.RawMessage(fmt.Sprintf(`{"a": "${input.order + '%d'}", "b": "${input.order + '-%d'}"}`, i, i))
				def.Steps[s].Output = map[string]string{"x": "${response.body}"}
			}
			keys[i], observed[i] = newKey(t), start(def)
			if _, err := e.Advance(t.Context(), keys[i], observed[i]); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		kept := 0
		for _, k := range keys {
			if e.sagas[k.UID].plan != nil {
				kept++
			}
		}
		if used := e.budgets.states.Used(); used > states/2 || kept == 0 || kept == total {
			t.Errorf("%d of %d plans are kept, and %d bytes are used for them and the states; want some plans, and at most %d bytes", kept, total, used, states/2)
		}
		close(release)
		for range 5 {
			for i, k := range keys {
				if _, err := e.Advance(t.Context(), k, observed[i]); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		for i, k := range keys {
			if s := advanceUntilIdle(t, e, k, observed[i]); s.Phase != saga.Completed || string(s.Step("b").Output) != `{"x":"x"}` {
				t.Errorf("a saga is %s: %+v", s.Phase, s.Steps)
			}
			e.Forget(k)
		}
		if used := e.budgets.states.Used(); used > 0 || len(e.budgets.kept.plans) > 0 {
			t.Errorf("%d bytes are used, and %d plans are kept, when all sagas have ended", used, len(e.budgets.kept.plans))
		}
	})
}

// TestSagasShareThePlanTheyKeep has two sagas of one definition.
func TestSagasShareThePlanTheyKeep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &scripted{do: func(ctx context.Context, _ participant.Call) participant.Result {
			<-ctx.Done()
			return participant.Result{Kind: saga.Unknown}
		}}
		e, err := New(Options{Store: memory.New(), Participants: participant.Registry{"test": p}, Notify: func(Key) {}})
		if err != nil {
			t.Fatal(err)
		}
		var keys []Key
		for range 3 {
			k := newKey(t)
			keys = append(keys, k)
			if _, err := e.Advance(t.Context(), k, start(definition("a"))); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		plan := e.sagas[keys[0].UID].plan
		if n := len(e.budgets.kept.plans); n != 1 || plan == nil {
			t.Errorf("%d plans are counted for sagas of one definition", n)
		}
		for _, k := range keys {
			if e.budgets.kept.plans[plan.Fingerprint()] == nil {
				t.Error("the plan is not counted any more, although sagas keep it")
			}
			e.Forget(k)
			synctest.Wait()
		}
		if used := e.budgets.states.Used(); used > 0 {
			t.Errorf("%d bytes are used without a saga", used)
		}
	})
}

// TestForgottenSagaKeepsNoPlan has a saga that is forgotten while it advances.
func TestForgottenSagaKeepsNoPlan(t *testing.T) {
	t.Parallel()
	b := newBudgets(Memory{})
	plan, wrong := saga.Compile(*definition("a"))
	if len(wrong) > 0 {
		t.Fatal(wrong)
	}
	r := newRunning(newKey(t), b, time.Now)
	r.abandon()
	r.plan = plan
	if r.holdPlan(); len(b.kept.plans) > 0 || b.states.Used() > 0 {
		t.Errorf("%d plans of a forgotten saga are kept, in %d bytes", len(b.kept.plans), b.states.Used())
	}
}

func TestPlanBytesCountsInterpretedExpressions(t *testing.T) {
	t.Parallel()
	size := func(expression string) int {
		def := definition("a")
		list := make([]string, 20)
		for i := range list {
			list[i] = fmt.Sprintf(expression, i)
		}
		data, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		def.Steps[0].Do.With = append(append(json.RawMessage(`{"list":`), data...), '}')
		plan, wrong := saga.Compile(*def)
		if len(wrong) > 0 {
			t.Fatal(wrong)
		}
		return planBytes(plan)
	}
	if got := size("${input.order + '%d'}"); got < 20*(16<<10) {
		t.Errorf("a plan of 20 expressions is taken for %d bytes", got)
	}
	if got := size("${input.order%d}"); got > 20<<10 {
		t.Errorf("a plan of 20 references is taken for %d bytes", got)
	}
}

// TestAttemptsShareLargePlan has two sagas with the same definition.
func TestAttemptsShareLargePlan(t *testing.T) {
	t.Parallel()
	u := newPlansInUse(budget.New(100))
	one, two := saga.Fingerprint{1}, saga.Fingerprint{2}
	for range 3 {
		if err := u.acquire(t.Context(), "shop", one, 1000); err != nil { // at most the namespace's share
			t.Fatal(err)
		}
	}
	if used := u.memory.Used(); used != 50 {
		t.Errorf("%d bytes are used, want 50, the size of one plan", used)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.acquire(ctx, "shop", two, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("another plan: %v", err)
	}
	plan := &saga.Plan{}
	u.set(one, plan)
	for range 3 {
		if u.get(one) != plan {
			t.Error("the plan in use is not found")
		}
		u.release(one)
	}
	if used := u.memory.Used(); used != 0 || len(u.plans) > 0 {
		t.Errorf("%d bytes are used without an attempt", used)
	}
	if err := u.acquire(t.Context(), "shop", two, 10); err != nil {
		t.Error(err)
	}
}
