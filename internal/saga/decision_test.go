package saga

import (
	"errors"
	"strings"
	"testing"
)

// decided has a person decide, and the saga go on.
func (h *history) decided(d Decision) []Event {
	h.t.Helper()
	e, err := Decided(h.state, d, h.now)
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
		_, err := Decided(parkedAt(t).state, c.decision, t0)
		var wrong *DecisionError
		if !errors.As(err, &wrong) || wrong.Field != c.field || !strings.Contains(wrong.Message, c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := begin(t, Definition{Steps: []Step{step("a", undo())}})
	_, err := Decided(h.state, Decision{Verdict: Skipped}, t0)
	var wrong *DecisionError
	if !errors.As(err, &wrong) || wrong.Field != "" || !strings.Contains(err.Error(), "Running") {
		t.Errorf("a saga that is not parked: %v", err)
	}
}

func TestADecisionWithATextThatPostgreSQLCannotKeepIsRefused(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{"a\x00b", "a\xffb"} {
		var wrong *DecisionError
		if _, err := Decided(parkedAt(t).state, Decision{Verdict: Skipped, By: "ann", Reason: reason}, t0); !errors.As(err, &wrong) || wrong.Field != "reason" {
			t.Errorf("%q: %v", reason, err)
		}
	}
	e, err := Decided(parkedAt(t).state, Decision{Verdict: Skipped, By: "an\x00n"}, t0)
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
