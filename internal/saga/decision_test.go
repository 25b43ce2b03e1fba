package saga

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// decided has a person decide, and the saga go on.
func (h *history) decided(d Decision) []Event {
	h.t.Helper()
	e, _, err := Decided(h.state, d, h.now)
	if err != nil {
		h.t.Fatal(err)
	}
	h.state = Fold(h.state, e)
	h.events = append(h.events, e)
	return h.decide()
}

// parkedAt is a saga whose compensations of b and then a were refused, or only that of b.
func parkedAt(t *testing.T) *history {
	t.Helper()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", undoWith(`{}`, 2)), step("c", after("a", "b"))}})
	h.ends("a", Action, Succeeded)
	h.ends("b", Action, Succeeded)
	h.ends("c", Action, Rejected)
	h.ends("a", Compensation, Succeeded)
	h.ends("b", Compensation, Unknown)
	h.wake()
	h.ends("b", Compensation, Retryable)
	h.phaseIs(CompensationFailed)
	return h
}

// TestDecisionsDoNotFillTheRow has a person have a compensation retried again and again: an outcome must
// always find room.
func TestDecisionsDoNotFillTheRow(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a"))}})
	h.ends("a", Action, Succeeded)
	h.ends("b", Action, Rejected)
	stored := func() int {
		h.endsBy("a", Compensation, AuthorParticipant)
		h.phaseIs(CompensationFailed)
		data, err := json.Marshal(h.state)
		if err != nil {
			t.Fatal(err)
		}
		return len(data)
	}
	first := stored()
	for n := range 50 {
		h.decided(Decision{ID: fmt.Sprint(n), Verdict: Retried, By: "ann", Reason: strings.Repeat("x", 1000)})
		if size := stored(); size > first+200 {
			t.Fatalf("after %d decisions the state takes %d bytes, and before them it took %d", n+1, size, first)
		}
	}
}

func TestAPersonHasAParkedCompensationTriedAgainWithAllItsAttempts(t *testing.T) {
	t.Parallel()
	h := parkedAt(t)
	h.decided(Decision{Step: "b", Verdict: Retried, By: "ann"})
	h.phaseIs(Compensating)
	if h.state.Parked != nil {
		t.Error("it is parked still")
	}
	a := h.inFlight("b", Compensation)
	if a.Number != 3 || a.Key("u") != "u/b/compensation" {
		t.Errorf("%s under key %s is tried", a, a.Key("u"))
	}
	h.ends("b", Compensation, Retryable)
	h.wake()
	h.ends("b", Compensation, Retryable) // the second of two: parked again
	h.phaseIs(CompensationFailed)
	h.decided(Decision{Verdict: Retried, By: "ann"})
	h.ends("b", Compensation, Succeeded)
	h.phaseIs(Compensated)
}

func TestAPersonTakesAParkedStepForUndoneOrLetsItBe(t *testing.T) {
	t.Parallel()
	for _, verdict := range []Verdict{MarkedCompensated, Skipped} {
		h := parkedAt(t)
		h.decided(Decision{Step: "b", Verdict: verdict, By: "ann", Reason: "by telephone"})
		h.phaseIs(Compensated)
		if c := h.state.Step("b").Compensation; c.Reason != string(verdict) || !strings.Contains(c.Message, "ann: by telephone") {
			t.Errorf("%s: the step says %q, %q", verdict, c.Reason, c.Message)
		}
	}
}

// TestVerdictIsAboutItsStepOnly has two compensations fail: what a person says of one leaves the
// other undone.
func TestVerdictIsAboutItsStepOnly(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", undo()), step("c", after("a", "b"))}})
	h.ends("a", Action, Succeeded)
	h.ends("b", Action, Succeeded)
	h.ends("c", Action, Rejected)
	h.ends("a", Compensation, Rejected)
	h.ends("b", Compensation, Rejected)
	h.decided(Decision{Step: "b", Verdict: MarkedCompensated, By: "ann"})
	if a, b := h.state.Step("a").Compensation.Status, h.state.Step("b").Compensation.Status; a != Parked || b != Done {
		t.Errorf("the compensation of a is %s and that of b %s", a, b)
	}
	h.phaseIs(CompensationFailed)
	h.decided(Decision{Step: "a", Verdict: Retried, By: "ann"})
	h.inFlightAre("a/compensation")
}

func TestADecisionThatCannotBeTakenSaysWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		decision Decision
		field    string
		says     string
	}{
		"an unknown verdict":         {Decision{Verdict: "Explode"}, "verdict", "Retry, MarkCompensated and Skip"},
		"an unknown step":            {Decision{Step: "x", Verdict: Retried}, "step", `no step "x"`},
		"a step that has not failed": {Decision{Step: "a", Verdict: Retried}, "step", `that of step "b" has`},
		"a reason without end":       {Decision{Verdict: Retried, Reason: strings.Repeat("x", maxMessageBytes+1)}, "reason", "limit"},
	} {
		_, _, err := Decided(parkedAt(t).state, c.decision, t0)
		var wrong *DecisionError
		if !errors.As(err, &wrong) || wrong.Field != c.field || !strings.Contains(wrong.Message, c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	_, _, err := Decided(h.state, Decision{Verdict: Skipped}, t0)
	var wrong *DecisionError
	if !errors.As(err, &wrong) || wrong.Field != "" || !strings.Contains(err.Error(), "Running") {
		t.Errorf("a saga that is not parked: %v", err)
	}
}

func TestADecisionWithATextThatPostgreSQLCannotKeepIsRefused(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{"a\x00b", "a\xffb"} {
		var wrong *DecisionError
		if _, _, err := Decided(parkedAt(t).state, Decision{Verdict: Skipped, By: "ann", Reason: reason}, t0); !errors.As(err, &wrong) || wrong.Field != "reason" {
			t.Errorf("%q: %v", reason, err)
		}
	}
	e, _, err := Decided(parkedAt(t).state, Decision{Verdict: Skipped, By: "an\x00n"}, t0)
	if err != nil || strings.ContainsRune(e.By, 0) {
		t.Errorf("%q, %v", e.By, err)
	}
}

func TestTheNameOfWhoeverMadeASagaIsKeptAsPostgreSQLCan(t *testing.T) {
	t.Parallel()
	h := prepare(t, twoSteps)
	h.in.Start.CreatedBy = "a\x00da"
	h.decide()
	if h.state.CreatedBy != "a\uFFFDda" {
		t.Errorf("%q", h.state.CreatedBy)
	}
}

// TestDecisionWithAnIDCountsOnce has a person's call repeated after the saga has gone on and is parked at another step.
func TestDecisionWithAnIDCountsOnce(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a", undo()), step("b", after("a"), undo()), step("c", after("b"))}})
	h.ends("a", Action, Succeeded)
	h.ends("b", Action, Succeeded)
	h.ends("c", Action, Rejected)
	h.ends("b", Compensation, Rejected)
	d := Decision{ID: "x-1", Verdict: MarkedCompensated, By: "ann"}
	about := h.state.Parked.Version
	h.decided(d)
	h.ends("a", Compensation, Rejected)
	h.phaseIs(CompensationFailed)
	for _, again := range []Decision{d, {ID: "x-1", About: about, Verdict: MarkedCompensated}} {
		e, recorded, err := Decided(h.state, again, h.now)
		if err != nil || !recorded || e.About != about {
			t.Errorf("the same decision again: %+v, recorded: %t, %v", e, recorded, err)
		}
	}
	for name, c := range map[string]struct {
		decision Decision
		field    string
	}{
		"another verdict under the id": {Decision{ID: "x-1", Verdict: Skipped}, "id"},
		"another step under the id":    {Decision{ID: "x-1", Step: "a", Verdict: MarkedCompensated}, "id"},
		"about the last parking":       {Decision{ID: "x-2", About: about, Verdict: MarkedCompensated}, "about"},
		"an id that is too long":       {Decision{ID: strings.Repeat("x", 257), Verdict: Skipped}, "id"},
	} {
		var wrong *DecisionError
		if _, recorded, err := Decided(h.state, c.decision, h.now); recorded || !errors.As(err, &wrong) || wrong.Field != c.field {
			t.Errorf("%s: recorded: %t, %v", name, recorded, err)
		}
	}
	if _, recorded, err := Decided(h.state, Decision{ID: "x-2", About: h.state.Parked.Version, Verdict: Skipped}, h.now); recorded || err != nil {
		t.Errorf("about the present parking: recorded: %t, %v", recorded, err)
	}
}
