package saga

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestAnUnknownOutcomeIsTriedAgainAndThenCompensated(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo(), attempts(2))}})
	h.ends("a", Action, Unknown)
	h.phaseIs(Running)
	if f := h.state.Step("a").Do; f.Status != Waiting || !f.EndedAt.IsZero() {
		t.Fatalf("the action is %+v, want it to wait", f)
	}
	h.wake()
	if got := h.inFlight("a", Action); got.Number != 2 {
		t.Fatalf("attempt %d is under way, want 2", got.Number)
	}
	h.ends("a", Action, Unknown)
	h.inFlightAre("a/compensation")
	if c := h.state.Failure.Cause; c != CauseRetriesExhausted {
		t.Errorf("cause %s", c)
	}
}

func TestADefiniteNoSettlesAnEarlierUnknownOutcome(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.ends("a", Action, Unknown)
	h.wake()
	h.ends("a", Action, Rejected)
	h.phaseIs(Compensated)
	if h.state.Step("a").Compensation.Attempts != 0 {
		t.Error("it was compensated although it definitely did not happen")
	}
}

func TestANoThatIsNoAnswerToTheKeyDoesNotSettleAnEarlierUnknownOutcome(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.ends("pay", Action, Unknown)
	h.wake()
	h.decide(Outcome{Attempt: h.inFlight("pay", Action), Kind: Rejected, Author: AuthorOperator, Reason: "EgressDenied"})
	h.phaseIs(Compensating)
	h.inFlightAre("pay/compensation")
	if c := h.state.Failure; c.Cause != CauseStepRejected || c.Reason != "EgressDenied" {
		t.Errorf("the failure is %+v", c)
	}
}

func TestAnAttemptThatIsSentAgainMayHaveHappenedTheFirstTime(t *testing.T) {
	t.Parallel()
	for kind, undone := range map[OutcomeKind]bool{Retryable: true, Unknown: true, Rejected: false} {
		h := begin(t, Definition{Steps: []Step{step("pay", attempts(1), undo())}})
		lost := h.inFlight("pay", Action)
		if events := h.loses(lost); len(events) != 1 || events[0].EventType() != "AttemptResent" {
			t.Fatalf("decided %v", types(events))
		}
		h.inFlightAre("pay/action")
		h.ends("pay", Action, kind)
		if undone {
			h.inFlightAre() // the first call may still be under way
			h.wake()
			h.inFlightAre("pay/compensation")
		} else {
			h.phaseIs(Compensated) // a definite no under the same key tells of both
		}
	}
}

func TestOnlyAnAttemptUnderWayIsSentAgain(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	a := h.inFlight("pay", Action)
	for _, e := range h.loses(Attempt{EffectID: EffectID{Step: "ship", Direction: Action}, Number: 1}, Attempt{EffectID: EffectID{Step: "pay", Direction: Action}, Number: 2}, Attempt{EffectID: EffectID{Step: "pay", Direction: Compensation}, Number: 1}) {
		t.Errorf("%+v", e)
	}
	h.accepts("pay", Action)
	for _, e := range h.loses(a) { // the participant has taken it
		t.Errorf("%+v", e)
	}
}

func TestANoThatIsNoAnswerToTheKeyLeavesNothingToUndoWhereNothingWasSent(t *testing.T) {
	t.Parallel()
	h := begin(t, twoSteps)
	h.decide(Outcome{Attempt: h.inFlight("pay", Action), Kind: Rejected, Author: AuthorOperator})
	h.phaseIs(Compensated)
}

func TestARetryableOutcomeDoesNotSettleAnEarlierUnknownOne(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo(), attempts(2))}})
	h.ends("a", Action, Unknown)
	h.wake()
	h.ends("a", Action, Retryable)
	h.inFlightAre("a/compensation")
}

func TestRetriesThatOnlySaidTryAgainLeaveNothingToUndo(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo(), attempts(2))}})
	h.ends("a", Action, Retryable)
	h.wake()
	h.ends("a", Action, Retryable)
	h.phaseIs(Compensated)
	if h.state.Failure.Cause != CauseRetriesExhausted {
		t.Errorf("cause %s", h.state.Failure.Cause)
	}
}

func TestACompensationThatNeedsAnUnknownOutputSaysSo(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", output("id", "${response.body.id}"), undoWith(`{"url": "http://x/${steps.a.output.id}"}`, 3), attempts(1))}})
	h.ends("a", Action, Unknown)
	_, err := h.plan.Render(t.Context(), h.state, h.inFlight("a", Compensation))
	if !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("error %v, want ErrOutcomeUnknown", err)
	}
}

// TestNoThatNobodyVouchesForLeavesTheDoubt has an action charged, the response lost, and something else say no.
func TestNoThatNobodyVouchesForLeavesTheDoubt(t *testing.T) {
	t.Parallel()
	for author, want := range map[Author]int{AuthorUnknown: 2, AuthorOperator: 2, AuthorGateway: 3} {
		h := begin(t, Definition{Steps: []Step{step("a", undo(), attempts(3))}})
		h.ends("a", Action, Unknown)
		for h.state.Phase == Running {
			h.wake()
			h.endsBy("a", Action, author)
		}
		h.inFlightAre("a/compensation")
		if got := h.state.Steps[0].Do.Attempts; got != want {
			t.Errorf("after a no by %q the action was sent %d times, want %d", author, got, want)
		}
	}
}

// TestCompensationOutlastsNosThatNobodyVouchesFor retries to the last attempt and then parks.
func TestCompensationOutlastsNosThatNobodyVouchesFor(t *testing.T) {
	t.Parallel()
	for _, author := range []Author{AuthorUnknown, AuthorGateway} {
		h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a"))}})
		h.ends("a", Action, Succeeded)
		h.ends("b", Action, Rejected)
		for n := range 3 {
			if n > 0 {
				h.wake()
			}
			h.phaseIs(Compensating)
			h.endsBy("a", Compensation, author)
			if got := h.state.Steps[0].Compensation.Refusals; got != n+1 {
				t.Errorf("%d refusals are counted after %d", got, n+1)
			}
		}
		h.phaseIs(CompensationFailed)
	}
}

// TestForgottenKeyIsNotSentAgain has an effect wait for longer than participants remember keys.
func TestForgottenKeyIsNotSentAgain(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.in.KeyRetention = day
	h.ends("a", Action, Unknown)
	h.in.Suspend = true
	h.decide()
	h.now = h.now.Add(day)
	h.in.Suspend = false
	h.decide()
	h.inFlightAre("a/compensation")
	if f := h.state.Failure; f.Reason != ReasonKeyExpired {
		t.Errorf("the failure is %+v", f)
	}
	h.ends("a", Compensation, Unknown)
	h.now = h.now.Add(day)
	h.decide()
	h.phaseIs(CompensationFailed)
	if p := h.state.Parked; p.Reason != ReasonKeyExpired {
		t.Errorf("it is parked with %+v", p)
	}
	h.decided(Decision{Verdict: Retried}) // a person takes the risk
	h.inFlightAre("a/compensation")
}

// TestForgottenKeyIsNotSentAgainAfterAnOutage has nobody know what became of an attempt, for longer than
// participants remember keys.
func TestForgottenKeyIsNotSentAgainAfterAnOutage(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.in.KeyRetention = day
	h.now = h.now.Add(day - time.Second)
	if ev := h.loses(h.inFlight("a", Action)); len(ev) != 1 || ev[0].EventType() != "AttemptResent" {
		t.Fatalf("with a key that is remembered it recorded %v", types(ev))
	}
	h.now = h.now.Add(time.Second)
	h.loses(h.inFlight("a", Action))
	if f := h.state.Failure; f == nil || f.Reason != ReasonKeyExpired {
		t.Fatalf("the failure is %+v", f)
	}
	h.wake()
	h.inFlightAre("a/compensation")
	h.now = h.now.Add(day)
	h.loses(h.inFlight("a", Compensation))
	h.phaseIs(CompensationFailed)
	if p := h.state.Parked; p.Reason != ReasonKeyExpired {
		t.Errorf("it is parked with %+v", p)
	}
}

// TestKeyAgesFromItsFirstAttempt has attempts repeated for as long as participants remember keys:
// each of them was sent a short while before the next, and the first may have been forgotten all
// the same.
func TestKeyAgesFromItsFirstAttempt(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo(), attempts(9))}})
	h.in.KeyRetention = time.Hour
	h.now = h.now.Add(50 * time.Minute)
	h.ends("a", Action, Retryable)
	h.wake() // the second attempt
	h.ends("a", Action, Unknown)
	h.now = t0.Add(time.Hour)
	h.decide()
	if f := h.state.Failure; f == nil || f.Reason != ReasonKeyExpired {
		t.Fatalf("after an hour the failure is %+v, and under way are %v", f, h.plan.InFlight(h.state))
	}
	h.inFlightAre("a/compensation")
}

// TestOldKeyIsSentAgainWithoutADoubt has every attempt say that nothing has happened.
func TestOldKeyIsSentAgainWithoutADoubt(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.in.KeyRetention = time.Hour
	h.ends("a", Action, Retryable)
	h.now = h.now.Add(2 * time.Hour)
	h.decide()
	h.inFlightAre("a/action")
}

// TestDecideLimitsOutputsOfSaga has a step whose output exceeds the limit only together with the
// output of the step before it. The step is compensated and not retried.
func TestDecideLimitsOutputsOfSaga(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", undo()), step("c", after("a", "b"))}})
	succeed := func(step string, bytes int) {
		h.decide(Outcome{Attempt: h.inFlight(step, Action), Kind: Succeeded, Output: json.RawMessage(`{"x":"` + strings.Repeat("x", bytes-8) + `"}`)})
	}
	succeed("a", MaxSagaOutputBytes-100)
	h.phaseIs(Running)
	succeed("b", 101)
	h.phaseIs(Compensating)
	if f := h.state.Failure; f.Step != "b" || f.Reason != ReasonOutputTooLarge {
		t.Errorf("failure: %+v", f)
	}
	if out := h.state.Step("b").Output; out != nil {
		t.Errorf("the state has %d bytes of the output of step b, want none", len(out))
	}
	h.inFlightAre("a/compensation", "b/compensation") // the action of b happened, and is not retried
}
