package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// parked is a saga whose compensation of pay is refused, once.
func parked(t *testing.T, store *memory.Store) (*bench, Key) {
	t.Helper()
	p := &scripted{}
	p.do = func(_ context.Context, c participant.Call) participant.Result {
		refuse := c.Attempt.Step == "ship" && c.Attempt.Direction == saga.Action || c.Attempt.Step == "pay" && c.Attempt.Direction == saga.Compensation && c.Attempt.Number == 1
		if refuse {
			return participant.Result{Kind: saga.Rejected, Author: saga.AuthorParticipant, Reason: "No", Message: "no"}
		}
		return participant.Result{Kind: saga.Succeeded}
	}
	b := newBench(t, store, p, start(definition("pay", "ship"))).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.CompensationFailed {
		t.Fatalf("the saga is %s", r.State.Phase)
	}
	return b, k
}

func TestADecisionSendsAParkedSagaOnWhoeverDrivesIt(t *testing.T) {
	t.Parallel()
	store := memory.New()
	b, k := parked(t, store)
	other, err := New(Options{Store: store, Participants: b.engine.Participants, Notify: func(Key) { t.Error("the one who decides drives nothing") }})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Decide(t.Context(), k, saga.Decision{Step: "pay", Verdict: saga.Retried, By: "ann", Reason: "mended"}); err != nil {
		t.Fatal(err)
	}
	if err := b.engine.Answered(t.Context(), b.queue.Enqueue); err != nil {
		t.Fatal(err)
	}
	if r := b.await(); r.State.Phase != saga.Compensated {
		t.Errorf("the saga is %s", r.State.Phase)
	}
	if got := strings.Join(history(t, store, k), " "); !strings.HasSuffix(got, "SagaParked DecisionMade AttemptStarted AttemptSucceeded SagaCompensated") {
		t.Errorf("the history is %s", got)
	}
	var wrong *saga.DecisionError
	if err := other.Decide(t.Context(), k, saga.Decision{Verdict: saga.Skipped}); !errors.As(err, &wrong) {
		t.Errorf("a decision too late: %v", err)
	}
}

func TestADecisionThatNobodyWasToldOfIsToldOfWhenItIsTakenAgain(t *testing.T) {
	t.Parallel()
	store := memory.New()
	b, k := parked(t, store)
	d := saga.Decision{Verdict: saga.MarkedCompensated, By: "ann"}
	if err := b.engine.Decide(t.Context(), k, d); err != nil {
		t.Fatal(err)
	}
	if _, err := store.TakeAnswered(t.Context(), 10); err != nil { // whoever was told has ended
		t.Fatal(err)
	}
	var wrong *saga.DecisionError
	if err := b.engine.Decide(t.Context(), k, d); !errors.As(err, &wrong) {
		t.Errorf("the same decision again: %v", err)
	}
	if err := b.engine.Answered(t.Context(), b.queue.Enqueue); err != nil {
		t.Fatal(err)
	}
	if r := b.await(); r.State.Phase != saga.Compensated {
		t.Errorf("the saga is %s", r.State.Phase)
	}
}

func TestThereIsNothingToDecideAboutASagaThatHasNotStarted(t *testing.T) {
	t.Parallel()
	e, err := New(Options{Store: memory.New(), Notify: func(Key) {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Decide(t.Context(), Key{UID: uuid.NewString()}, saga.Decision{Verdict: saga.Retried}); !errors.Is(err, ErrNotStarted) {
		t.Errorf("%v", err)
	}
	if err := e.Decide(t.Context(), Key{UID: "x"}, saga.Decision{Verdict: saga.Retried}); err == nil {
		t.Error("a uid that is none was taken")
	}
}
