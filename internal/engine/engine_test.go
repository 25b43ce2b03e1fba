package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestASagaRunsToCompleted(t *testing.T) {
	t.Parallel()
	store, p, k := memory.New(), &scripted{}, newKey(t)
	b := newBench(t, store, p, start(definition("a", "b"))).run()
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Completed {
		t.Fatalf("it is %s: %+v", r.State.Phase, r.State.Failure)
	}
	calls := p.seen()
	if len(calls) != 2 || calls[0].Key != k.UID+"/a/action" || calls[0].With["order"] != "42" {
		t.Errorf("calls %+v", calls)
	}
}

func TestARejectedSagaIsCompensated(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	p := &scripted{do: rejectStep("c")}
	b := newBench(t, store, p, start(definition("a", "b", "c"))).run()
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Compensated {
		t.Fatalf("it is %s", r.State.Phase)
	}
	var keys []string
	for _, c := range p.seen() {
		keys = append(keys, c.Attempt.Step+"/"+string(c.Attempt.Direction))
	}
	want := "[a/action b/action c/action b/compensation a/compensation]"
	if fmt.Sprint(keys) != want {
		t.Errorf("calls %v, want %v", keys, want)
	}
}

func TestAdvanceNeverWaitsForAParticipant(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	p := &scripted{do: func(context.Context, participant.Call) participant.Result {
		<-release
		return participant.Result{Kind: saga.Succeeded}
	}}
	b := newBench(t, memory.New(), p, Observation{})
	k := newKey(t)
	r, err := b.engine.Advance(t.Context(), k, start(definition("a"))) // returns although the participant does not
	if err != nil || r.State.Phase != saga.Running {
		t.Fatalf("%s, %v", r.State.Phase, err)
	}
	close(release)
	if err := b.engine.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestTheIntentIsCommittedBeforeTheParticipantIsCalled looks into the store from inside the call.
func TestTheIntentIsCommittedBeforeTheParticipantIsCalled(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	var seen []string
	p := &scripted{do: func(context.Context, participant.Call) participant.Result {
		seen = history(t, store, k)
		return participant.Result{Kind: saga.Succeeded}
	}}
	b := newBench(t, store, p, start(definition("a"))).run()
	b.queue.Enqueue(k)
	b.await()
	if fmt.Sprint(seen) != "[SagaStarted AttemptStarted]" {
		t.Errorf("when the participant was called the stream held %v", seen)
	}
}

// gated is a store whose appends wait until it is opened.
type gated struct {
	eventstore.Store
	open chan struct{}
}

func (g gated) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	<-g.open
	return g.Store.Append(ctx, a)
}

// TestNobodyIsCalledBeforeTheIntentIsCommitted holds the append up for as long as anything else can
// go on.
func TestNobodyIsCalledBeforeTheIntentIsCommitted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, p := gated{memory.New(), make(chan struct{})}, &scripted{}
		b := newBench(t, store, p, Observation{})
		done := make(chan error, 1)
		go func() {
			_, err := b.engine.Advance(t.Context(), newKey(t), start(definition("a")))
			done <- err
		}()
		synctest.Wait()
		if n := len(p.seen()); n != 0 {
			t.Errorf("the participant was called %d times before anything was recorded", n)
		}
		close(store.open)
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := len(p.seen()); n != 1 {
			t.Errorf("the participant was called %d times", n)
		}
		if err := b.engine.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestAPanicInAParticipantIsAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	p := &scripted{do: func(_ context.Context, c participant.Call) participant.Result {
		if c.Attempt.Direction == saga.Action {
			panic("boom")
		}
		return participant.Result{Kind: saga.Succeeded}
	}}
	def := definition("a")
	def.Steps[0].Do.AttemptTimeout = time.Second // until then the call may be under way, and is not undone
	b := newBench(t, store, p, start(def)).run()
	b.queue.Enqueue(k)
	r := b.await()
	if r.State.Phase != saga.Compensated || r.State.Failure.Reason != reasonPanic {
		t.Fatalf("it is %s: %+v", r.State.Phase, r.State.Failure)
	}
	if r.State.Steps[0].Compensation.Status != saga.Done {
		t.Error("what may have happened was not compensated")
	}
}

func TestWhatCannotBeRenderedIsNeverSent(t *testing.T) {
	t.Parallel()
	store, k, p := memory.New(), newKey(t), &scripted{}
	obs := start(definition("a"))
	obs.Input = json.RawMessage(`{}`)
	b := newBench(t, store, p, obs).run()
	b.queue.Enqueue(k)
	r := b.await()
	if r.State.Phase != saga.Compensated || r.State.Failure.Reason != reasonExpression || len(p.seen()) != 0 {
		t.Fatalf("it is %s: %+v; calls %v", r.State.Phase, r.State.Failure, p.seen())
	}
}

func TestAnOutputThatCannotBeHadIsAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	store, k, p := memory.New(), newKey(t), &scripted{}
	def := definition("a")
	def.Steps[0].Output = map[string]string{"id": "${response.body.id}"}
	b := newBench(t, store, p, start(def)).run()
	b.queue.Enqueue(k)
	r := b.await()
	if r.State.Phase != saga.Compensated || r.State.Failure.Reason != reasonOutput || r.State.Steps[0].Compensation.Status != saga.Done {
		t.Fatalf("it is %s: %+v", r.State.Phase, r.State.Failure)
	}
}

// TestManyLargeOutputsDoNotStallASaga has outputs whose size is just below saga.MaxSagaOutputBytes.
func TestManyLargeOutputsDoNotStallASaga(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	names := make([]string, 15)
	for i := range names {
		names[i] = fmt.Sprintf("s%d", i)
	}
	def := definition(names...)
	for i := range def.Steps {
		def.Steps[i].Output = map[string]string{"text": "${response.body}"}
	}
	large := strings.Repeat("x", saga.MaxOutputBytes-100)
	p := &scripted{do: func(context.Context, participant.Call) participant.Result {
		return participant.Result{Kind: saga.Succeeded, Response: map[string]any{"body": large}}
	}}
	b := newBench(t, store, p, start(def)).run()
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Completed {
		t.Fatalf("it is %s: %+v", r.State.Phase, r.State.Failure)
	}
}

func TestAKindThatNobodyCarriesOutIsNotStarted(t *testing.T) {
	t.Parallel()
	def := definition("a")
	def.Steps[0].Do.Kind = "fax"
	b := newBench(t, memory.New(), &scripted{}, Observation{})
	_, err := b.engine.Advance(t.Context(), newKey(t), start(def))
	if reason, message, _ := Problem(err); reason != ReasonInvalidDefinition || !strings.Contains(message, `steps[0].fax: this operator does not carry out actions of the kind "fax"`) {
		t.Errorf("%s: %s", reason, message)
	}
}

// TestWhatANewerVersionStartedWaits has sagas that are recorded with more than this version knows, each half done.
func TestWhatANewerVersionStartedWaits(t *testing.T) {
	t.Parallel()
	started := func(change func(map[string]any)) json.RawMessage {
		_, _, data, err := saga.Marshal(saga.SagaStarted{UID: "u", Definition: *definition("a", "b")})
		var event map[string]any
		if err := errors.Join(err, json.Unmarshal(data, &event)); err != nil {
			t.Fatal(err)
		}
		change(event)
		if data, err = json.Marshal(event); err != nil {
			t.Fatal(err)
		}
		return data
	}
	first := func(event map[string]any) map[string]any {
		return event["definition"].(map[string]any)["steps"].([]any)[0].(map[string]any)
	}
	for name, test := range map[string]struct {
		first, second json.RawMessage
		want          string
	}{
		"a field of a step": {first: started(func(e map[string]any) { first(e)["when"] = "${false}" }), want: `field "when" in the definition`},
		"a field with a need": {first: started(func(e map[string]any) {
			first(e)["when"], e["needs"] = "${false}", map[string]string{"Step.when": "2.0.0"}
		}), want: "one with Step.when (since release 2.0.0)"},
		"a setting of a kind": {first: started(func(e map[string]any) { first(e)["do"].(map[string]any)["with"] = map[string]any{"outcomes": true} }), want: "steps[0].test.outcomes"},
		"a kind":              {first: started(func(e map[string]any) { first(e)["do"].(map[string]any)["kind"] = "kafka" }), want: `the kind "kafka"`},
		"a type of event":     {first: started(func(map[string]any) {}), second: json.RawMessage(`{"needs": {"Step.when": "2.0.0"}}`), want: "one with Step.when (since release 2.0.0)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, k := memory.New(), newKey(t)
			a := eventstore.Append{Stream: StreamOf(k.UID), Events: []eventstore.Event{{ID: uuid.New(), Type: "SagaStarted", SchemaVersion: 1, Data: test.first}}}
			if test.second != nil {
				a.Events = append(a.Events, eventstore.Event{ID: uuid.New(), Type: "StepSkipped", SchemaVersion: 1, Data: test.second})
			}
			if _, err := store.Append(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			p := &scripted{check: func(with map[string]any) []saga.FieldError {
				if with["outcomes"] != nil {
					return []saga.FieldError{{Field: "outcomes", Message: "is not a setting"}}
				}
				return nil
			}, do: func(context.Context, participant.Call) participant.Result {
				t.Error("a participant was called")
				return participant.Result{Kind: saga.Succeeded}
			}}
			b := newBench(t, store, p, Observation{})
			for _, obs := range []Observation{start(definition("a")), {Cancel: true}, {Delete: true}, {}} {
				_, err := b.engine.Advance(t.Context(), k, obs)
				if reason, message, passes := Problem(err); reason != ReasonDefinitionUnreadable || passes || !strings.Contains(message, test.want) {
					t.Errorf("%s: %s", reason, message)
				}
			}
			if err := b.engine.Decide(t.Context(), k, saga.Decision{Verdict: saga.Skipped}); err == nil {
				t.Error("a decision about it is recorded")
			}
			if v, err := store.Version(t.Context(), a.Stream); err != nil || v != int64(len(a.Events)) {
				t.Errorf("it was touched: version %d, %v", v, err)
			}
		})
	}
}

// TestAnAnswerIsWaitedForNoLongerThanASagaMayTake has a participant that asks for more.
func TestAnAnswerIsWaitedForNoLongerThanASagaMayTake(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	e := newBench(t, store, later("a", 2*participant.MaxAnswerWithin, nil), Observation{}).engine
	if _, err := e.Advance(t.Context(), k, start(definition("a"))); err != nil {
		t.Fatal(err)
	}
	if err := e.pool.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := e.Advance(t.Context(), k, start(definition("a")))
	if by := time.Until(r.State.Step("a").Do.AnswerBy); err != nil || by <= 0 || by > participant.MaxAnswerWithin {
		t.Errorf("the answer is waited for %s, %v", by, err)
	}
}

func TestADefinitionThatPanicsInTheCompilerStallsAlone(t *testing.T) {
	t.Parallel()
	if plan, fields := compileSafely(func() (*saga.Plan, []saga.FieldError) { panic("no") }); plan != nil || len(fields) != 1 || !strings.HasPrefix(fields[0].Message, "compiling it panicked at engine_test.go:") {
		t.Errorf("%v", fields)
	}
}

func TestAnAttemptEndsAtItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, k := memory.New(), newKey(t)
		def := definition("a")
		def.Steps[0].Do.AttemptTimeout = 3 * time.Second
		def.Steps[0].Do.Retry.MaxAttempts = 1
		var took time.Duration
		p := &scripted{do: func(ctx context.Context, c participant.Call) participant.Result {
			if c.Attempt.Direction == saga.Compensation {
				return participant.Result{Kind: saga.Succeeded}
			}
			began := time.Now()
			<-ctx.Done()
			took = time.Since(began)
			return participant.Result{Kind: saga.Unknown, Reason: "Timeout"}
		}}
		b := newBench(t, store, p, start(def)).run()
		b.queue.Enqueue(k)
		r := b.await()
		if r.State.Phase != saga.Compensated || took != 3*time.Second {
			t.Errorf("it is %s after an attempt of %s", r.State.Phase, took)
		}
		b.stop()
	})
}

func TestAttemptsAreBounded(t *testing.T) {
	t.Parallel()
	const limit = 3
	var mu sync.Mutex
	now, most := 0, 0
	p := &scripted{do: func(context.Context, participant.Call) participant.Result {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		defer func() { mu.Lock(); now--; mu.Unlock() }()
		return participant.Result{Kind: saga.Succeeded}
	}}
	b := newBench(t, memory.New(), p, start(definition("a")))
	b.engine.pool.limit = limit
	b.run()
	for range 50 {
		b.queue.Enqueue(newKey(t))
	}
	for range 50 {
		b.await()
	}
	if most > limit {
		t.Errorf("%d attempts ran at once, the limit is %d", most, limit)
	}
}

func TestAStaleStateIsDroppedBeforeItDecidesToDoNothing(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	hangs := &scripted{do: func(ctx context.Context, _ participant.Call) participant.Result {
		<-ctx.Done()
		return participant.Result{Kind: saga.Unknown}
	}}
	stale := newBench(t, store, hangs, Observation{})
	if _, err := stale.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
		t.Fatal(err)
	}
	other := newBench(t, store, &scripted{}, Observation{}).run()
	other.await()
	r, err := stale.engine.Advance(t.Context(), k, Observation{})
	if err != nil || r.State.Phase != saga.Completed {
		t.Errorf("it shows %s, %v", r.State.Phase, err)
	}
	if err := stale.engine.Shutdown(t.Context()); err != nil { // its own attempt was cancelled: the state does not want it any more
		t.Error(err)
	}
}

func TestASagaThatIsNotToStartDoesNot(t *testing.T) {
	t.Parallel()
	b := newBench(t, memory.New(), &scripted{}, Observation{})
	r, err := b.engine.Advance(t.Context(), newKey(t), Observation{Delete: true})
	if err != nil || r.State.Version != 0 {
		t.Errorf("version %d, %v", r.State.Version, err)
	}
}

func TestProblemSaysWhatAnErrorMeansForTheSaga(t *testing.T) {
	t.Parallel()
	store := memory.New()
	b := newBench(t, store, &scripted{}, Observation{})
	bad := definition("a")
	bad.Steps[0].DependsOn = []string{"nobody"}
	unreadable := newKey(t)
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: StreamOf(unreadable.UID), Events: []eventstore.Event{{
		ID: uuid.New(), Type: "SagaStarted", SchemaVersion: 1, Data: json.RawMessage(`{"at": 7}`),
	}}}); err != nil {
		t.Fatal(err)
	}
	started := newKey(t)
	typ, schema, data, err := saga.Marshal(saga.SagaStarted{UID: started.UID, Namespace: started.Namespace, Name: started.Name, Definition: *bad})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: StreamOf(started.UID), Events: []eventstore.Event{{
		ID: uuid.New(), Type: typ, SchemaVersion: schema, Data: data,
	}}}); err != nil {
		t.Fatal(err)
	}
	for reason, test := range map[string]struct {
		err       func() error
		transient bool
	}{
		ReasonInvalidDefinition: {func() error {
			_, err := b.engine.Advance(t.Context(), newKey(t), start(bad))
			return err
		}, false},
		ReasonDefinitionUnreadable: {func() error {
			_, err := b.engine.Advance(t.Context(), started, start(definition("a")))
			return err
		}, false},
		ReasonStreamUnreadable: {func() error {
			_, err := b.engine.Advance(t.Context(), unreadable, Observation{})
			return err
		}, false},
		ReasonTooLarge:              {func() error { return fmt.Errorf("appending: %w", eventstore.ErrInvalid) }, false},
		ReasonEventStoreUnavailable: {func() error { return fmt.Errorf("loading: %w", eventstore.ErrUnavailable) }, true},
		ReasonContended:             {func() error { return errContended }, true},
		ReasonAdvanceFailed:         {func() error { return errors.New("something else") }, true},
	} {
		err := test.err()
		if got, message, transient := Problem(err); got != reason || transient != test.transient || message == "" {
			t.Errorf("%v is %s (passes by itself: %t), want %s (%t)", err, got, transient, reason, test.transient)
		}
	}
}
