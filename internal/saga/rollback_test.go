package saga

import (
	"testing"
	"time"
)

// TestRollbackSendsNoLostActionAgain has an action under way when its process ends, and a cancel when another one goes on.
func TestRollbackSendsNoLostActionAgain(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("pay", undo()), step("book", undo(), after())}})
	h.ends("pay", Action, Succeeded)
	lost := h.inFlight("book", Action)
	h.in.Cancel = true
	h.loses(lost)
	h.phaseIs(Compensating)
	f := h.state.Steps[1].Do
	if f.Status != Exhausted || !f.InDoubt || f.Reason != ReasonInterrupted {
		t.Errorf("the action is %+v", f)
	}
	h.inFlightAre("pay/compensation") // and not book, whose call may still be under way
	if w := h.plan.Wake(h.state); !w.Equal(t0.Add(time.Second + UndoMargin)) {
		t.Errorf("it wants to be woken at %s, want the margin after the end of the attempt's time", w)
	}
	h.wake()
	h.inFlightAre("pay/compensation", "book/compensation")
}

func TestRollbackSendsLostCompensationAgain(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("pay", undo()), step("book", after("pay"))}})
	h.ends("pay", Action, Succeeded)
	h.ends("book", Action, Rejected)
	if events := h.loses(h.inFlight("pay", Compensation)); len(events) != 1 || events[0].EventType() != "AttemptResent" {
		t.Errorf("decided %v", types(events))
	}
	h.inFlightAre("pay/compensation")
}

// TestDefiniteWordEndsTheWaitForAnUndo has the word come while an earlier call of the action may still be under way.
func TestDefiniteWordEndsTheWaitForAnUndo(t *testing.T) {
	t.Parallel()
	for kind, undone := range map[OutcomeKind]bool{Succeeded: true, Rejected: false} {
		h := begin(t, Definition{Steps: []Step{step("pay", undo(), attempts(2))}})
		h.loses(h.inFlight("pay", Action))
		h.in.Cancel = true
		h.ends("pay", Action, kind)
		if undone {
			h.phaseIs(Completed) // it was the only action
			continue
		}
		h.phaseIs(Compensated)
	}
}

// TestUndoWaitsForABrokenCall has a connection break at once: the request may still arrive until its time is over.
func TestUndoWaitsForABrokenCall(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("pay", undo(), attempts(1))}})
	h.decide(Outcome{Attempt: h.inFlight("pay", Action), Kind: Unknown, Reason: "ConnectionBroken"})
	h.phaseIs(Compensating)
	h.inFlightAre()
	h.now = t0.Add(time.Second + UndoMargin - time.Microsecond)
	if events := h.decide(); len(events) > 0 {
		t.Errorf("too early it decided %v", types(events))
	}
	h.wake()
	h.inFlightAre("pay/compensation")
}

// TestUndoDoesNotFollowAtTheEndOfItsActionsTime ends an action by a timeout. The request can still
// reach its participant at that moment, and another operator's clock can be ahead.
func TestUndoDoesNotFollowAtTheEndOfItsActionsTime(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("pay", undo(), attempts(1))}})
	h.now = t0.Add(time.Second)
	h.decide(Outcome{Attempt: h.inFlight("pay", Action), Kind: Unknown, Reason: "Timeout"})
	h.phaseIs(Compensating)
	h.inFlightAre()
	if w := h.plan.Wake(h.state); !w.Equal(t0.Add(time.Second + UndoMargin)) {
		t.Errorf("it wants to be woken at %s, want the margin after the end of the attempt's time", w)
	}
	h.wake()
	h.inFlightAre("pay/compensation")
}

// TestUndoWaitsForTheLastResend has one process report that it sent nothing while the call of another, which sent the attempt again, may be under way.
func TestUndoWaitsForTheLastResend(t *testing.T) {
	t.Parallel()
	for _, kind := range []OutcomeKind{NotSent, Retryable} {
		h := begin(t, Definition{Steps: []Step{step("pay", undo(), attempts(1))}})
		h.now = t0.Add(900 * time.Millisecond)
		h.loses(h.inFlight("pay", Action))
		h.in.Cancel = true
		h.decide(Outcome{Attempt: h.inFlight("pay", Action), Kind: kind})
		h.phaseIs(Compensating)
		h.inFlightAre()
		if w := h.plan.Wake(h.state); !w.Equal(t0.Add(1900*time.Millisecond + UndoMargin)) {
			t.Errorf("%s: it wants to be woken at %s, want the margin after the end of the second call's time", kind, w)
		}
		h.wake()
		h.inFlightAre("pay/compensation")
	}
}

func TestUnsentAttemptDoesNotCount(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("pay", undo(), attempts(1))}})
	for range 5 {
		h.decide(Outcome{Attempt: h.inFlight("pay", Action), Kind: NotSent})
		h.wake()
	}
	if f := h.state.Steps[0].Do; f.InDoubt || f.Unsent != 5 {
		t.Errorf("the action is %+v", f)
	}
	h.ends("pay", Action, Retryable)
	h.phaseIs(Compensated)
}

func TestUnsentActionIsNotUndone(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("pay", undo())}})
	h.in.Cancel = true
	h.decide(Outcome{Attempt: h.inFlight("pay", Action), Kind: NotSent})
	h.phaseIs(Compensated)
	if f := h.state.Steps[0].Compensation; f.Attempts > 0 {
		t.Errorf("the compensation is %+v", f)
	}
}

func TestSuspendedSagaSendsNoLostAttemptAgain(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	lost := h.inFlight("pay", Action)
	h.in.Suspend = true
	h.decide()
	if events := h.loses(lost); len(events) > 0 {
		t.Errorf("decided %v", types(events))
	}
	h.in.Suspend = false
	if events := h.loses(lost); len(events) != 2 || events[1].EventType() != "AttemptResent" {
		t.Errorf("decided %v", types(events))
	}
}

func TestDrainingRecordsOutcomesAndNothingElse(t *testing.T) {
	t.Parallel()
	h := prepare(t, twoSteps)
	h.in.Draining = true
	if events := h.decide(); len(events) > 0 {
		t.Errorf("a saga was begun: %v", types(events))
	}
	h.in.Draining = false
	h.decide()
	h.in.Draining, h.in.Cancel = true, true
	if events := h.ends("pay", Action, Succeeded); len(events) != 1 || events[0].EventType() != "AttemptSucceeded" {
		t.Errorf("decided %v", types(events))
	}
	h.in.Draining, h.in.Cancel = false, false
	h.decide()
	h.inFlightAre("ship/action")
}

// TestStaleObjectChangesNoSuspension has two operators, of which one sees the object as it was.
func TestStaleObjectChangesNoSuspension(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.in.Generation, h.in.Suspend = 2, true
	h.decide()
	h.in.Generation, h.in.Suspend = 1, false
	if events := h.decide(); len(events) > 0 || !h.state.Suspended {
		t.Errorf("a stale object decided %v", types(events))
	}
	h.in.Generation = 3
	if h.decide(); h.state.Suspended {
		t.Error("a new object does not resume it")
	}
	h.in.Generation, h.in.Suspend = 2, true
	if events := h.decide(); len(events) > 0 {
		t.Errorf("a stale object decided %v", types(events))
	}
}

func TestNoInitialBackoffIsStillARamp(t *testing.T) {
	t.Parallel()
	r := Retry{MaxAttempts: 100, MaxBackoff: time.Minute}
	for attempt, want := range map[int]time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 20: time.Minute, 70: time.Minute} {
		longest := time.Duration(0)
		for random := range uint64(500) {
			o := Outcome{Attempt: Attempt{EffectID: EffectID{Step: "a", Direction: Action}, Number: attempt}}
			longest = max(longest, pause(r, o, attempt, random))
		}
		if longest > want || longest < want*9/10 {
			t.Errorf("after %d attempts the longest of 500 pauses is %s, want just below %s", attempt, longest, want)
		}
	}
	if got := pause(Retry{}, Outcome{}, 3, 7); got != 0 {
		t.Errorf("with a cap of zero the pause is %s", got)
	}
}
