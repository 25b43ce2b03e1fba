package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// laborious returns a definition that takes longer to compile than a caller of the engine may wait, with
// one more expression.
func laborious(expression string) *saga.Definition {
	def := definition("a")
	list := `"${[` + strings.Repeat("1, ", 100) + `1]}",`
	def.Steps[0].Do.With = json.RawMessage(fmt.Sprintf(`{"body": [%s %q]}`, strings.Repeat(list, 10), "${"+expression+"}"))
	return def
}

// preparationRig is an engine whose compilations end when the test says so.
type preparationRig struct {
	*Engine
	told    chan Key
	compile chan struct{} // each compilation takes one
}

func newPreparationRig(t *testing.T) *preparationRig {
	t.Helper()
	r := &preparationRig{told: make(chan Key, 10), compile: make(chan struct{}, 10)}
	p := &scripted{check: func(with map[string]any) []saga.FieldError {
		if _, laborious := with["body"]; laborious {
			<-r.compile
		}
		return nil
	}}
	var err error
	r.Engine, err = New(Options{Store: memory.New(), Participants: participant.Registry{"test": p}, Notify: func(k Key) { r.told <- k }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(r.compile)
		_ = r.Shutdown(t.Context())
	})
	return r
}

func TestAdvanceCompilesLargeDefinitionLater(t *testing.T) {
	t.Parallel()
	r, k, obs := newPreparationRig(t), newKey(t), start(laborious("input.order"))
	for range 2 {
		if _, err := r.Advance(t.Context(), k, obs); !errors.Is(err, ErrPreparing) {
			t.Fatalf("before it is compiled: %v", err)
		}
	}
	r.compile <- struct{}{}
	if got := <-r.told; got != k {
		t.Errorf("told of %s, want %s", got, k)
	}
	if res, err := r.Advance(t.Context(), k, obs); err != nil || res.State.Version == 0 {
		t.Errorf("after it is compiled: version %d, %v", res.State.Version, err)
	}
	if r.sagas[k.UID].preparation != nil {
		t.Error("the saga holds the plan that it has taken")
	}
}

func TestCheckCompilesLargeDefinitionLater(t *testing.T) {
	t.Parallel()
	for expression, want := range map[string]string{"input.order": "", "nope": "steps[0].test.body[10]"} {
		t.Run(expression, func(t *testing.T) {
			t.Parallel()
			r, k, def := newPreparationRig(t), newKey(t), laborious(expression)
			for range 2 {
				if wrong, err := r.Check(k, *def); !errors.Is(err, ErrPreparing) {
					t.Fatalf("before it is compiled: %v, %v", wrong, err)
				}
			}
			r.compile <- struct{}{}
			<-r.told
			wrong, err := r.Check(k, *def)
			switch {
			case err != nil:
				t.Error(err)
			case want == "" && len(wrong) > 0, want != "" && (len(wrong) != 1 || wrong[0].Field != want):
				t.Errorf("after it is compiled: %v, want an error about %q", wrong, want)
			}
		})
	}
}

func TestCheckReportsLimitsOfNewSagasOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t, memory.New(), &scripted{}, Observation{})
	b.engine.Limits = saga.Limits{MaxAttemptTimeout: time.Minute}
	def, k := definition("a"), newKey(t) // with an attemptTimeout of an hour
	def.Steps[0].Compensation.Kind = "nope"
	wrong, err := b.engine.Check(k, *def)
	fields := make([]string, len(wrong))
	for i := range wrong {
		fields[i] = wrong[i].Field
	}
	if want := []string{"steps[0].compensation.nope", "steps[0].attemptTimeout", "steps[0].compensation.attemptTimeout"}; err != nil || !slices.Equal(fields, want) {
		t.Errorf("wrong are %q (%v), want %q", fields, err, want)
	}
	if r, err := b.engine.Advance(t.Context(), k, start(definition("a"))); err != nil || r.State.Version == 0 {
		t.Errorf("a saga that an operator without this limit has started: %+v, %v", r.State, err)
	}
	if err := b.engine.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestAdvanceCompilesSmallDefinitionAtOnce: it does not wait for the large ones.
func TestAdvanceCompilesSmallDefinitionAtOnce(t *testing.T) {
	t.Parallel()
	r := newPreparationRig(t)
	for range 5 {
		if _, err := r.Check(newKey(t), *laborious("input.order")); !errors.Is(err, ErrPreparing) {
			t.Fatal(err)
		}
	}
	if res, err := r.Advance(t.Context(), newKey(t), start(definition("a"))); err != nil || res.State.Version == 0 {
		t.Errorf("version %d, %v", res.State.Version, err)
	}
}

// TestAdvanceCompilesRecordedDefinitionLater: after a restart, its definition is compiled anew.
func TestAdvanceCompilesRecordedDefinitionLater(t *testing.T) {
	t.Parallel()
	r, k := newPreparationRig(t), newKey(t)
	obs := start(laborious("input.order"))
	r.compile <- struct{}{}
	if _, err := r.Advance(t.Context(), k, obs); !errors.Is(err, ErrPreparing) {
		t.Fatal(err)
	}
	<-r.told
	if _, err := r.Advance(t.Context(), k, obs); err != nil {
		t.Fatal(err)
	}
	next := newPreparationRig(t)
	next.Store = r.Store
	if _, err := next.Advance(t.Context(), k, Observation{}); !errors.Is(err, ErrPreparing) {
		t.Fatalf("before it is compiled: %v", err)
	}
	next.compile <- struct{}{}
	<-next.told
	if res, err := next.Advance(t.Context(), k, Observation{}); err != nil || res.State.Version == 0 {
		t.Errorf("after it is compiled: version %d, %v", res.State.Version, err)
	}
}

func TestDecideWaitsForCompilation(t *testing.T) {
	t.Parallel()
	r := newPreparationRig(t)
	r.compile <- struct{}{}
	if plan, err := r.compileNow(t.Context(), "shop", *laborious("input.order")); plan == nil || err != nil {
		t.Errorf("%v, %v", plan, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.compileNow(ctx, "shop", *laborious("input.other")); !errors.Is(err, context.Canceled) {
		t.Errorf("its context has ended: %v", err)
	}
}

// TestPlansCompileRecordedDefinitionWithoutLimit: a saga that has started goes on, also where an operator with
// another limit accepted it.
func TestPlansCompileRecordedDefinitionWithoutLimit(t *testing.T) {
	t.Parallel()
	def := saga.Definition{}
	for i := range 150 {
		s := laborious("input.order").Steps[0]
		s.Name = fmt.Sprint("s", i)
		def.Steps = append(def.Steps, s)
	}
	plans, kinds := NewPlans(), participant.Registry{"test": &scripted{}}
	var wrong *DefinitionError
	if _, err := plans.compile(def, kinds, false); !errors.As(err, &wrong) || !strings.Contains(wrong.Error(), "too much work to check") {
		t.Errorf("to be started: %v", err)
	}
	if plan, err := plans.compile(def, kinds, true); plan == nil || err != nil {
		t.Errorf("started: %v", err)
	}
}

// TestShutdownSkipsQueuedCompilations has one under way and others behind it.
func TestShutdownSkipsQueuedCompilations(t *testing.T) {
	t.Parallel()
	r := newPreparationRig(t)
	var key Key
	for i := range 5 {
		key = newKey(t)
		if _, err := r.Check(key, *laborious(fmt.Sprint("input.order", i))); !errors.Is(err, ErrPreparing) {
			t.Fatal(err)
		}
	}
	last := r.sagas[key.UID]
	ended := make(chan error)
	go func() { ended <- r.Shutdown(t.Context()) }()
	<-r.closing.Done()
	for range r.compiling.limit { // the others would never end
		r.compile <- struct{}{}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if last.preparation != nil {
		t.Error("a compilation that has not begun is still waited for")
	}
}

// TestPlansLimitMemory has definitions whose plans take several megabytes each.
func TestPlansLimitMemory(t *testing.T) {
	t.Parallel()
	plans, kinds := NewPlans(), participant.Registry{"test": &scripted{}}
	list := `"${[` + strings.Repeat("1, ", 900) + `%d]}",`
	const all = 20
	for i := range all {
		def := *definition("a")
		def.Steps[0].Do.With = json.RawMessage(`{"body": [` + strings.Repeat(fmt.Sprintf(list, i), 40) + `1]}`)
		plan, err := plans.compile(def, kinds, false)
		if err != nil {
			t.Fatal(err)
		}
		if size := planBytes(plan); size < 4<<20 {
			t.Fatalf("a plan of %d bytes of text is taken for %d bytes", len(plan.EncodedDefinition()), size)
		}
	}
	if plans.bytes > maxPlanBytes || len(plans.plans) == all || len(plans.plans) == 0 {
		t.Errorf("%d plans of %d are kept, of %d bytes", len(plans.plans), all, plans.bytes)
	}
}
