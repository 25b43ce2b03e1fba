package saga

import (
	"testing"
	"time"
)

var twoSteps = Definition{Steps: []Step{step("pay", attempts(2), undo()), step("ship", after("pay"), undo())}}

func TestAnAcceptedAttemptIsNotUnderWayAndItsAnswerEndsIt(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.accepts("pay", Action)
	h.inFlightAre()
	if w := h.plan.Wake(h.state); !w.Equal(h.now.Add(time.Minute)) {
		t.Errorf("it wants to be woken at %s", w)
	}
	if got := h.plan.Awaited(h.state); len(got) != 1 || got[0] != (EffectID{Step: "pay", Direction: Action}) {
		t.Error("it does not say that it waits")
	}
	h.answers("pay", Action, Succeeded)
	h.inFlightAre("ship/action")
	if len(h.plan.Awaited(h.state)) > 0 {
		t.Error("it still waits")
	}
}

func TestAnAnswerThatComesBeforeTheAcceptanceIsTheEndAsWell(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	late := h.inFlight("pay", Action)
	h.ends("pay", Action, Succeeded)
	h.decide(Outcome{Attempt: late, Accepted: true, AnswerWithin: time.Minute})
	h.inFlightAre("ship/action")
}

func TestAnAnswerThatDoesNotComeLeavesTheOutcomeUnknownAndTheAttemptIsRepeated(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.accepts("pay", Action)
	h.now = h.now.Add(time.Minute - time.Nanosecond)
	if events := h.decide(); len(events) > 0 {
		t.Errorf("too early it decided %v", types(events))
	}
	h.wake()
	if f := h.state.Steps[0].Do; f.Status != Waiting || !f.InDoubt || f.Reason != ReasonNoAnswer {
		t.Errorf("the action is %+v", f)
	}
	h.wake()
	h.accepts("pay", Action)
	h.wake()
	h.phaseIs(Compensating)
	h.inFlightAre("pay/compensation")
}

func TestARollbackDoesNotWaitForAnAnswerAndUndoesWhatWasAccepted(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.accepts("pay", Action)
	h.in.Cancel = true
	h.decide()
	h.inFlightAre("pay/compensation")
	h.answers("pay", Action, Rejected)
	h.inFlightAre("pay/compensation")
	h.accepts("pay", Compensation)
	h.answers("pay", Compensation, Succeeded)
	h.phaseIs(Compensated)
}

func TestASuspendedSagaStillTakesAnswers(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.accepts("pay", Action)
	h.in.Suspend = true
	h.decide()
	h.answers("pay", Action, Succeeded)
	h.inFlightAre()
	h.in.Suspend = false
	h.decide()
	h.inFlightAre("ship/action")
}

func TestAnActionThatIsAcceptedDuringTheRollbackIsUndoneAtOnce(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.in.Cancel = true
	h.decide()
	h.phaseIs(Compensating)
	h.inFlightAre("pay/action") // its outcome is about to tell what there is to undo
	h.accepts("pay", Action)
	h.inFlightAre("pay/compensation")
	if f := h.state.Steps[0].Do; f.Status != Exhausted || f.Reason != ReasonNoAnswer {
		t.Errorf("the action is %+v", f)
	}
	h.ends("pay", Compensation, Succeeded)
	h.phaseIs(Compensated)
}

func TestAnAnswerIsExpectedOnlyWhileTheSagaWantsTheEffect(t *testing.T) {
	t.Parallel()
	expects := func(h *history, step string, dir Direction, round int, want bool) {
		t.Helper()
		if got, ok := h.state.Expects(EffectID{Step: step, Direction: dir}); ok != want || want && got != round {
			t.Errorf("the %s of %s: round %d, expected: %t", dir, step, got, ok)
		}
	}
	h := begin(t, twoSteps)
	expects(h, "pay", Action, 0, true) // it may come before the acceptance
	expects(h, "pay", Compensation, 0, false)
	expects(h, "ship", Action, 0, false)
	expects(h, "none", Action, 0, false)
	h.ends("pay", Action, Unknown)
	expects(h, "pay", Action, 0, true) // between two attempts
	h.wake()
	h.in.Cancel = true
	h.decide()
	h.inFlightAre("pay/action")
	expects(h, "pay", Action, 0, false) // a rollback waits for none
	h.accepts("pay", Action)
	expects(h, "pay", Compensation, 0, true)
	h.ends("pay", Compensation, Rejected)
	h.phaseIs(CompensationFailed)
	expects(h, "pay", Compensation, 0, false)
	h.decided(Decision{Verdict: Retried})
	expects(h, "pay", Compensation, 1, true)
	h.ends("pay", Compensation, Succeeded)
	expects(h, "pay", Compensation, 1, false)
}

func TestASecondAcceptanceOfAnAttemptDoesNotPutOffItsEnd(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	a := h.inFlight("pay", Action)
	h.accepts("pay", Action)
	by := h.state.Steps[0].Do.AnswerBy
	h.now = h.now.Add(time.Second)
	if events := h.decide(Outcome{Attempt: a, Accepted: true, AnswerWithin: time.Hour}); len(events) > 0 || !h.state.Steps[0].Do.AnswerBy.Equal(by) { // of another operator that sent it too
		t.Errorf("decided %v", types(events))
	}
}

// TestReplyCountsWithoutItsAcceptance has the response lost that said 202, and the reply come between two attempts.
func TestReplyCountsWithoutItsAcceptance(t *testing.T) {
	t.Parallel()
	for kind, phase := range map[OutcomeKind]Phase{Succeeded: Running, Rejected: Compensated} {
		h := begin(t, twoSteps)
		h.ends("pay", Action, Unknown)
		h.answers("pay", Action, kind)
		h.phaseIs(phase)
		if f := h.state.Steps[0].Do; f.InDoubt {
			t.Errorf("after a reply that it %s the action is still in doubt", kind)
		}
	}
}

// TestRepliedAttemptIsOfTheRound has a compensation that a person has had retried.
func TestRepliedAttemptIsOfTheRound(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.ends("pay", Action, Succeeded)
	h.ends("ship", Action, Rejected)
	h.ends("pay", Compensation, Rejected)
	h.decided(Decision{Verdict: Retried})
	id := EffectID{Step: "pay", Direction: Compensation}
	if _, ok := h.state.RepliedAttempt(id, 0); ok {
		t.Error("a reply of the last round counts")
	}
	if a, ok := h.state.RepliedAttempt(id, 1); !ok || a.Number != 2 {
		t.Errorf("a reply of this round ends attempt %d: %t", a.Number, ok)
	}
	h.ends("pay", Compensation, Succeeded)
	if _, ok := h.state.RepliedAttempt(id, 1); ok {
		t.Error("a reply to an effect at rest counts")
	}
}

func TestAwaitedAreMovingEffectsThatCanBeReplied(t *testing.T) {
	t.Parallel()
	callback, reply := with(`{"completion": "Callback"}`), with(`{"reply": {"timeout": "1m"}}`)
	for name, c := range map[string]struct {
		option stepOption
		want   int
	}{"callback": {callback, 1}, "reply": {reply, 1}, "neither": {with(`{"completion": "Response"}`), 0}} {
		h := begin(t, Definition{Steps: []Step{step("pay", c.option)}})
		if got := h.plan.Awaited(h.state); len(got) != c.want {
			t.Errorf("%s: while it is under way replies to %v are looked for", name, got)
		}
		h.ends("pay", Action, Unknown)
		if got := h.plan.Awaited(h.state); len(got) != c.want {
			t.Errorf("%s: between two attempts replies to %v are looked for", name, got)
		}
		h.wake()
		h.ends("pay", Action, Succeeded)
		if got := h.plan.Awaited(h.state); len(got) != 0 {
			t.Errorf("%s: at rest replies to %v are looked for", name, got)
		}
	}
}
