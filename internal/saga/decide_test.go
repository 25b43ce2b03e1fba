package saga

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestStepsFollowEachOtherToCompleted(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a"), step("b", after("a"))}})
	h.inFlightAre("a/action")
	h.ends("a", Action, Succeeded)
	h.inFlightAre("b/action")
	h.ends("b", Action, Succeeded)
	h.phaseIs(Completed)
	h.inFlightAre()
	if h.state.EndedAt != t0 {
		t.Errorf("it ended at %v, want %v", h.state.EndedAt, t0)
	}
}

func TestIndependentBranchesRunInParallelAndJoin(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a"), step("l", after("a")), step("r", after("a")), step("z", after("l", "r"))}})
	h.ends("a", Action, Succeeded)
	h.inFlightAre("l/action", "r/action")
	h.ends("r", Action, Succeeded)
	h.inFlightAre("l/action")
	h.ends("l", Action, Succeeded)
	h.inFlightAre("z/action")
}

func TestTheIntentIsRecordedBeforeAnythingIsInFlight(t *testing.T) {
	t.Parallel()
	h := prepare(t, Definition{Steps: []Step{step("a")}})
	if got := h.plan.InFlight(h.state); got != nil {
		t.Fatalf("before its first event the saga has in flight %v", got)
	}
	h.decide()
	if got := types(h.events); len(got) != 2 || got[1] != "AttemptStarted" {
		t.Fatalf("events %v, want SagaStarted and AttemptStarted", got)
	}
	h.inFlightAre("a/action")
}

func TestARejectedStepRollsBackInReverseOrder(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a"), undo()), step("c", after("b"), undo())}})
	h.ends("a", Action, Succeeded)
	h.ends("b", Action, Succeeded)
	h.ends("c", Action, Rejected)
	h.phaseIs(Compensating)
	h.inFlightAre("b/compensation")
	h.ends("b", Compensation, Succeeded)
	h.inFlightAre("a/compensation")
	h.ends("a", Compensation, Succeeded)
	h.phaseIs(Compensated)
	if f := h.state.Failure; f.Cause != CauseStepRejected || f.Step != "c" || f.Message != "because c" {
		t.Errorf("failure %+v", f)
	}
}

func TestARejectedStepIsNeverCompensated(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.ends("a", Action, Rejected)
	h.phaseIs(Compensated)
}

func TestAStepThatWasNeverSentIsNeverCompensated(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a"), step("b", after("a"), undo())}})
	h.ends("a", Action, Rejected)
	h.phaseIs(Compensated)
}

func TestAttemptsStillUnderWaySettleBeforeTheirCompensation(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("l", after("a"), undo()), step("r", after("a"), undo())}})
	h.ends("a", Action, Succeeded)
	h.ends("l", Action, Rejected)
	h.phaseIs(Compensating)
	h.inFlightAre("r/action") // a waits for r, which may still happen
	h.ends("r", Action, Unknown)
	h.inFlightAre("r/compensation")
	h.ends("r", Compensation, Succeeded)
	h.inFlightAre("a/compensation")
}

func TestNoActionIsRetriedDuringRollback(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("l"), step("r")}})
	h.ends("r", Action, Retryable)
	h.ends("l", Action, Rejected)
	h.phaseIs(Compensated)
	if got := h.state.Step("r").Do.Status; got != Exhausted {
		t.Errorf("r is %q, want %q", got, Exhausted)
	}
	if w := h.plan.Wake(h.state); !w.IsZero() {
		t.Errorf("a finished saga wants to be woken at %v", w)
	}
}

func TestCompensationsRunInParallelWhereTheOrderAllows(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("l", undo()), step("r", undo()), step("z", after("l", "r"))}})
	h.ends("l", Action, Succeeded)
	h.ends("r", Action, Succeeded)
	h.ends("z", Action, Rejected)
	h.inFlightAre("l/compensation", "r/compensation")
}

func TestTheOrderOfCompensationsReachesThroughStepsThatHaveNone(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a")), step("c", after("b"), undo()), step("d", after("c"))}})
	for _, s := range []string{"a", "b", "c"} {
		h.ends(s, Action, Succeeded)
	}
	h.ends("d", Action, Rejected)
	h.inFlightAre("c/compensation")
}

func TestARefusedCompensationParksTheSagaAfterEverythingElseIsUndone(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("l", after("a"), undo()), step("r", after("a"), undo()), step("z", after("l", "r"))}})
	for _, s := range []string{"a", "l", "r"} {
		h.ends(s, Action, Succeeded)
	}
	h.ends("z", Action, Rejected)
	h.ends("l", Compensation, Rejected)
	h.phaseIs(Compensating) // r is still being undone
	h.ends("r", Compensation, Succeeded)
	h.phaseIs(CompensationFailed)
	h.inFlightAre()
	if p := h.state.Parked; p.Step != "l" || p.Message != "because l" {
		t.Errorf("parked %+v", p)
	}
	if f := h.state.Failure; f.Step != "z" {
		t.Errorf("the failure is %+v, want that of z", f)
	}
}

func TestACompensationIsRetriedAndThenParks(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undoWith(`{}`, 2)), step("b", after("a"))}})
	h.ends("a", Action, Succeeded)
	h.ends("b", Action, Rejected)
	h.ends("a", Compensation, Unknown)
	h.wake()
	h.ends("a", Compensation, Retryable)
	h.phaseIs(CompensationFailed)
}

func TestADeadlineRollsBackTheWayForwardOnly(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Deadline: time.Minute, Steps: []Step{step("a", undo()), step("b", after("a"))}})
	h.ends("a", Action, Succeeded)
	h.wake()
	if want := t0.Add(time.Minute); h.now != want {
		t.Fatalf("woken at %v, want %v", h.now, want)
	}
	h.phaseIs(Compensating)
	if f := h.state.Failure; f.Cause != CauseDeadlineExceeded || f.Message != "not done after 1m0s" {
		t.Errorf("failure %+v", f)
	}
	h.ends("b", Action, Rejected)
	h.now = h.now.Add(24 * time.Hour)
	h.ends("a", Compensation, Succeeded)
	h.phaseIs(Compensated)
}

func TestACompensationHasNoOutput(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", output("id", "${response.body.id}"), undo()), step("b", after("a"))}})
	h.decide(Outcome{Attempt: h.inFlight("a", Action), Kind: Succeeded, Output: json.RawMessage(`{"id":"r-1"}`)})
	h.ends("b", Action, Rejected)
	a := h.inFlight("a", Compensation)
	if out, err := h.plan.Output(t.Context(), h.state, a, map[string]any{}); out != nil || err != nil {
		t.Errorf("its output is %s, %v", out, err)
	}
	h.decide(Outcome{Attempt: a, Kind: Succeeded})
	if got := string(h.state.Step("a").Output); got != `{"id":"r-1"}` {
		t.Errorf("the action's output has become %s", got)
	}
}

func TestTheDeadlineIsNotExceededBeforeItsInstant(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Deadline: time.Minute, Steps: []Step{step("a")}})
	h.now = t0.Add(time.Minute - time.Nanosecond)
	if ev := h.decide(); len(ev) > 0 {
		t.Fatalf("decided %v a nanosecond early", types(ev))
	}
}

func TestCancelAndDeleteTakeTheSameWayIntoRollback(t *testing.T) {
	t.Parallel()
	for cause, ask := range map[Cause]func(*Input){
		CauseCancelled: func(in *Input) { in.Cancel = true },
		CauseDeleted:   func(in *Input) { in.Delete = true },
	} {
		h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a"), undo())}})
		h.ends("a", Action, Succeeded)
		ask(&h.in)
		h.decide()
		h.phaseIs(Compensating)
		if h.state.Failure.Cause != cause {
			t.Errorf("cause %s, want %s", h.state.Failure.Cause, cause)
		}
		h.ends("b", Action, Succeeded)
		h.ends("b", Compensation, Succeeded)
		h.ends("a", Compensation, Succeeded)
		h.phaseIs(Compensated)
	}
}

func TestASagaThatIsDeletedBeforeItStartsIsRecordedAndSendsNothing(t *testing.T) {
	t.Parallel()
	h := prepare(t, Definition{Steps: []Step{step("a", undo())}})
	h.in.Delete = true
	h.decide()
	h.phaseIs(Compensated)
	if got := strings.Join(types(h.events), " "); got != "SagaStarted SagaCompensating SagaCompensated" {
		t.Errorf("events %s", got)
	}
}

func TestASagaWhoseActionsAllSucceededCompletesAlthoughACancelCame(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	h.in.Cancel = true
	h.ends("a", Action, Succeeded)
	h.phaseIs(Completed)
}

func TestATerminalSagaNeverMovesAgain(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Deadline: time.Minute, Steps: []Step{step("a", undo())}})
	a := h.inFlight("a", Action)
	h.ends("a", Action, Succeeded)
	h.now = t0.Add(time.Hour)
	h.in.Cancel, h.in.Delete, h.in.Suspend = true, true, true
	if ev := h.decide(Outcome{Attempt: a, Kind: Rejected}); len(ev) > 0 {
		t.Fatalf("a completed saga decided %v", types(ev))
	}
}

func TestSuspendStartsNothingButRecordsWhatEnds(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a"), step("b", after("a"))}})
	h.in.Suspend = true
	h.decide()
	h.inFlightAre("a/action")
	h.ends("a", Action, Succeeded)
	h.inFlightAre()
	h.in.Suspend = false
	h.decide()
	h.inFlightAre("b/action")
}

func TestASuspendedSagaIsNotWokenForARetry(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a")}})
	h.in.Suspend = true
	h.ends("a", Action, Retryable)
	if w := h.plan.Wake(h.state); !w.IsZero() {
		t.Errorf("wants to be woken at %v", w)
	}
	h.now = h.now.Add(time.Hour)
	if ev := h.decide(); len(ev) > 0 {
		t.Errorf("decided %v", types(ev))
	}
}

func TestACancelOfASuspendedSagaWaitsForItsResumption(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a"))}})
	h.ends("a", Action, Succeeded)
	h.in.Suspend, h.in.Cancel = true, true
	h.ends("b", Action, Retryable)
	h.phaseIs(Compensating)
	h.inFlightAre()
	h.in.Suspend = false
	h.decide()
	h.inFlightAre("a/compensation")
}

func TestDeletingASuspendedSagaUndoesIt(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a"))}})
	h.in.Suspend = true
	h.ends("a", Action, Succeeded)
	h.in.Delete = true
	h.decide()
	h.inFlightAre("a/compensation")
}

func TestAnOutcomeThatCameTooLateIsIgnored(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a")}})
	first := h.inFlight("a", Action)
	h.ends("a", Action, Retryable)
	h.wake()
	if ev := h.decide(Outcome{Attempt: first, Kind: Succeeded}, Outcome{Attempt: Attempt{EffectID: EffectID{Step: "nobody", Direction: Action}, Number: 1}, Kind: Succeeded}); len(ev) > 0 {
		t.Fatalf("decided %v", types(ev))
	}
}

func TestTheSameInputGivesTheSameDecision(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a")}})
	in := Input{Now: t0, Random: 99, Outcomes: []Outcome{{Attempt: h.inFlight("a", Action), Kind: Retryable}}}
	first, _ := h.plan.Decide(h.state, in)
	second, _ := h.plan.Decide(h.state, in)
	if len(first) == 0 || !reflect.DeepEqual(first, second) {
		t.Errorf("decided %+v, then %+v", first, second)
	}
}

func TestDecideLeavesTheStateItWasGivenAlone(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a")}})
	before := h.state.Steps[0]
	h.plan.Decide(h.state, Input{Now: t0, Outcomes: []Outcome{{Attempt: h.inFlight("a", Action), Kind: Rejected}}})
	if h.state.Steps[0].Do != before.Do || h.state.Phase != Running {
		t.Errorf("the state has become %+v", h.state)
	}
}

// TestDecideStartsNoMoreAttemptsThanAllowed has three actions that may start, and later their undoing.
func TestDecideStartsNoMoreAttemptsThanAllowed(t *testing.T) {
	t.Parallel()
	h := prepare(t, Definition{Steps: []Step{step("a", undo()), step("b", undo()), step("c", undo())}})
	allowed := 2
	in := h.in
	in.MaxStarts = &allowed
	_, s := h.plan.Decide(h.state, in)
	if got := len(h.plan.InFlight(s)); got != 2 {
		t.Errorf("%d actions are in flight, want 2", got)
	}
	allowed = 0
	if events, _ := h.plan.Decide(s, in); len(events) > 0 {
		t.Errorf("without a start it decides %v", types(events))
	}
	allowed = 5
	_, s = h.plan.Decide(s, in)
	if got := len(h.plan.InFlight(s)); got != 3 {
		t.Errorf("%d actions are in flight, want 3", got)
	}
	for i, a := range h.plan.InFlight(s) {
		in.Outcomes = append(in.Outcomes, Outcome{Attempt: a, Kind: []OutcomeKind{Succeeded, Succeeded, Rejected}[i]})
	}
	allowed = 1
	_, s = h.plan.Decide(s, in)
	if got := h.plan.InFlight(s); len(got) != 1 || got[0].Direction != Compensation || s.Phase != Compensating {
		t.Errorf("in flight are %v and the saga is %s, want one compensation", got, s.Phase)
	}
}

func TestPausesAreFullJitterUnderADoublingCeiling(t *testing.T) {
	t.Parallel()
	r := Retry{MaxAttempts: 100, InitialBackoff: time.Second, MaxBackoff: 8 * time.Second}
	for n, ceiling := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 5: 8 * time.Second, 99: 8 * time.Second} {
		var low, high int
		for random := range uint64(400) {
			p := pause(r, Outcome{Attempt: Attempt{EffectID: EffectID{Step: "a"}, Number: n}}, n, random)
			if p < 0 || p > ceiling {
				t.Fatalf("the pause after attempt %d is %s, over the ceiling of %s", n, p, ceiling)
			}
			if p < ceiling/4 {
				low++
			}
			if p > 3*ceiling/4 {
				high++
			}
		}
		if low < 50 || high < 50 {
			t.Errorf("after attempt %d, %d of 400 pauses are in the lowest quarter and %d in the highest: that is not full jitter", n, low, high)
		}
	}
}

func TestAParticipantMayAskForALongerPauseUpToTheCap(t *testing.T) {
	t.Parallel()
	r := Retry{MaxAttempts: 9, InitialBackoff: time.Millisecond, MaxBackoff: time.Minute}
	for asked, want := range map[time.Duration]time.Duration{10 * time.Second: 10 * time.Second, time.Hour: time.Minute} {
		if got := pause(r, Outcome{Attempt: Attempt{Number: 1}, RetryAfter: asked}, 1, 1); got != want {
			t.Errorf("asked for %s the pause is %s, want %s", asked, got, want)
		}
	}
}

func TestMessagesOfOutcomesAreClippedToValidText(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a")}})
	h.decide(Outcome{Attempt: h.inFlight("a", Action), Kind: Rejected, Reason: strings.Repeat("R", 500), Message: "x\x00" + strings.Repeat("é", 5000) + "\xff"})
	f := h.state.Step("a").Do
	if len(f.Reason) > maxReasonBytes || len(f.Message) > maxMessageBytes || !utf8.ValidString(f.Message) || strings.ContainsRune(f.Message, 0) {
		t.Errorf("kept a reason of %d and a message of %d bytes", len(f.Reason), len(f.Message))
	}
}

func TestKeysAreDerivedAndSharedByTheAttemptsOfOneEffect(t *testing.T) {
	t.Parallel()
	for want, a := range map[string]Attempt{
		"u/charge/action":       {EffectID: EffectID{Step: "charge", Direction: Action}, Number: 1},
		"u/charge/compensation": {EffectID: EffectID{Step: "charge", Direction: Compensation}, Number: 1},
	} {
		again := a
		again.Number = 7
		if a.Key("u") != want || again.Key("u") != want {
			t.Errorf("keys %q and %q, want %q", a.Key("u"), again.Key("u"), want)
		}
	}
}

func TestEveryAttemptOfAnEffectIsRenderedTheSame(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{
		step("a", output("id", "${response.body.id}")),
		step("b", after("a"), with(`{"url": "http://x/${steps.a.output.id}", "order": "${input.orderId}", "key": "${saga.uid}"}`)),
	}})
	out, err := h.plan.Output(t.Context(), h.state, h.inFlight("a", Action), map[string]any{"body": map[string]any{"id": "r-9"}})
	if err != nil {
		t.Fatal(err)
	}
	h.decide(Outcome{Attempt: h.inFlight("a", Action), Kind: Succeeded, Output: out})
	for range 3 {
		got, err := h.plan.Render(t.Context(), h.state, h.inFlight("b", Action))
		if err != nil {
			t.Fatal(err)
		}
		if got["url"] != "http://x/r-9" || got["order"] != "42" || got["key"] != h.state.UID {
			t.Errorf("rendered %v", got)
		}
		h.ends("b", Action, Retryable)
		if h.state.Phase == Running {
			h.wake()
		}
	}
}
