package engine

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// later accepts the actions of one step, and carries everything else out at once.
func later(step string, within time.Duration, then func(participant.Call)) *scripted {
	return &scripted{do: func(_ context.Context, c participant.Call) participant.Result {
		if c.Attempt.Step != step || c.Attempt.Direction != saga.Action {
			return participant.Result{Kind: saga.Succeeded}
		}
		if then != nil {
			then(c)
		}
		return participant.Result{Accepted: true, AnswerWithin: within}
	}}
}

func answerTo(c participant.Call) eventstore.Answer {
	return eventstore.Answer{UID: uuid.MustParse(c.Saga.UID), Step: c.Attempt.Step, Direction: string(c.Attempt.Direction), Response: json.RawMessage(`{"body":{"id":"p-1"}}`)}
}

func put(t *testing.T, store eventstore.Store, a eventstore.Answer) {
	t.Helper()
	if kept, err := store.PutAnswer(t.Context(), a); err != nil || !kept {
		t.Errorf("kept: %v, %v", kept, err)
	}
}

// recorded waits until the latest event of a saga is of a type.
func recorded(t *testing.T, store eventstore.Store, k Key, typ string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		got := history(t, store, k)
		if len(got) > 0 && got[len(got)-1] == typ {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not recorded, but %v", typ, got)
		}
	}
}

func TestAnAnswerThatComesBeforeTheAcceptanceIsRecordedIsNotLost(t *testing.T) {
	t.Parallel()
	store := memory.New()
	p := later("pay", time.Hour, func(c participant.Call) { put(t, store, answerTo(c)) })
	def := definition("pay", "ship")
	def.Steps[0].Output = map[string]string{"id": "${response.body.id}"}
	b := newBench(t, store, p, start(def)).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Completed || string(r.State.Step("pay").Output) != `{"id":"p-1"}` {
		t.Errorf("the saga is %s with output %s", r.State.Phase, r.State.Step("pay").Output)
	}
	if got := strings.Join(history(t, store, k), " "); !strings.Contains(got, "AttemptAccepted AttemptSucceeded") {
		t.Errorf("the history is %s", got)
	}
}

func TestAnAnswerMovesASagaThatHoldsNoWorkerMeanwhile(t *testing.T) {
	t.Parallel()
	store := memory.New()
	accepted := make(chan participant.Call, 1)
	b := newBench(t, store, later("pay", time.Hour, func(c participant.Call) { accepted <- c }), start(definition("pay", "ship"))).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	call := <-accepted
	recorded(t, store, k, "AttemptAccepted")
	put(t, store, answerTo(call))
	if err := b.engine.Answered(t.Context(), b.queue.Enqueue); err != nil {
		t.Fatal(err)
	}
	if r := b.await(); r.State.Phase != saga.Completed {
		t.Errorf("the saga is %s", r.State.Phase)
	}
}

func TestARejectingAnswerRollsTheSagaBack(t *testing.T) {
	t.Parallel()
	store := memory.New()
	p := later("ship", time.Hour, func(c participant.Call) {
		a := answerTo(c)
		a.Rejected, a.Reason, a.Message = true, "NoRoute", "nobody delivers there"
		put(t, store, a)
	})
	b := newBench(t, store, p, start(definition("pay", "ship"))).run()
	b.queue.Enqueue(newKey(t))
	r := b.await()
	if f := r.State.Failure; r.State.Phase != saga.Compensated || f.Cause != saga.CauseStepRejected || f.Reason != "NoRoute" || f.Message != "nobody delivers there" {
		t.Errorf("the saga is %s: %+v", r.State.Phase, f)
	}
}

func TestAnAttemptThatIsNeverAnsweredIsRepeatedAndThenUndone(t *testing.T) {
	t.Parallel()
	store := memory.New()
	p := later("pay", time.Millisecond, nil)
	b := newBench(t, store, p, start(definition("pay"))).run()
	b.queue.Enqueue(newKey(t))
	if r := b.await(); r.State.Phase != saga.Compensated || r.State.Failure.Reason != saga.ReasonNoAnswer {
		t.Errorf("the saga is %s: %+v", r.State.Phase, r.State.Failure)
	}
	keys := map[string]int{}
	for _, c := range p.seen() {
		keys[c.Key]++
	}
	if len(keys) != 2 || len(p.seen()) != 4 { // three attempts under one key, and one compensation
		t.Errorf("calls by key are %v", keys)
	}
}

func TestAnAnswerWhoseOutputCannotBeHadIsUnknown(t *testing.T) {
	t.Parallel()
	store := memory.New()
	p := later("pay", time.Hour, func(c participant.Call) {
		if c.Attempt.Number == 1 {
			put(t, store, answerTo(c))
		}
	})
	def := definition("pay")
	def.Steps[0].Output = map[string]string{"id": "${response.body.nothing}"}
	b := newBench(t, store, p, start(def)).run()
	b.queue.Enqueue(newKey(t))
	if r := b.await(); r.State.Phase != saga.Compensated || r.State.Failure.Reason != reasonOutput {
		t.Errorf("the saga is %s: %+v", r.State.Phase, r.State.Failure)
	}
}

func TestMessagesAreCountedWithoutAGapAndCarryTheLabels(t *testing.T) {
	t.Parallel()
	store := memory.New()
	obs := start(definition("pay", "ship"))
	obs.Labels = map[string]string{"tier": "gold"}
	b := newBench(t, store, &scripted{do: rejectStep("ship")}, obs).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	b.await()
	all, err := store.Messages(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for i, m := range all {
		types = append(types, strings.TrimPrefix(m.Type, MessageTypePrefix))
		if m.Sequence != int64(i)+1 || m.Key != k.UID || m.Labels["tier"] != "gold" || m.Namespace != "shop" || m.Subject != "order" || m.Source != SourceOf("shop") || m.Metadata.TraceParent == "" {
			t.Errorf("message %d is %+v", i+1, m)
		}
	}
	if got, want := strings.Join(types, " "), "Started StepSucceeded StepRejected Compensating StepCompensated Compensated"; got != want {
		t.Errorf("told is\n%s, want\n%s", got, want)
	}
}
