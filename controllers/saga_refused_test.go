package controllers

import (
	"strings"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// rollingBack is a saga whose compensation of charge stands so.
func rollingBack(phase saga.Phase, c saga.EffectState) *saga.State {
	return &saga.State{
		Version: 5, Phase: phase, Failure: &saga.Failure{Cause: saga.CauseCancelled, Reason: "Cancelled", Message: "the saga was cancelled", At: time.Unix(1, 0)},
		Steps: []saga.StepState{{Name: "charge", Do: saga.EffectState{Status: saga.Done}, Compensation: c}},
	}
}

func TestConditionsShowARefusedCompensation(t *testing.T) {
	t.Parallel()
	refused := saga.EffectState{Status: saga.Waiting, Refusals: 2, Message: "Not Found (404)"}
	got := judge(view{state: rollingBack(saga.Compensating, refused)})
	if got.reason != ReasonCompensationRefused || !got.progressing || got.stalled {
		t.Errorf("the verdict is %+v", got)
	}
	for _, part := range []string{`step "charge"`, "2 times", "Not Found (404)", "2xx", "Saga-Outcome: Rejected"} {
		if !strings.Contains(got.message, part) {
			t.Errorf("the message lacks %q: %s", part, got.message)
		}
	}
	for name, c := range map[string]saga.EffectState{
		"one that is only busy": {Status: saga.Waiting}, "one that has succeeded": {Status: saga.Done, Refusals: 1},
	} {
		if got := judge(view{state: rollingBack(saga.Compensating, c)}); got.reason != "Compensating" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestParkedMessageProposesNoRetryThatCannotHelp has a compensation parked for each kind of reason.
func TestParkedMessageProposesNoRetryThatCannotHelp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reason   string
		refusals int
		want     string
	}{
		"it can never be rendered":    {engine.ReasonExpressionFailed, 0, ""},
		"its key may be forgotten":    {saga.ReasonKeyExpired, 0, "Retry, which may undo it twice"},
		"nothing vouches for the no":  {"NotFound", 3, "Retry once the participant answers otherwise"},
		"the participant was not had": {"ConnectionFailed", 0, "Retry when the cause is fixed"},
	} {
		state := rollingBack(saga.CompensationFailed, saga.EffectState{Status: saga.Parked, Refusals: c.refusals})
		state.Parked = &saga.Failure{Step: "charge", Reason: c.reason, At: time.Unix(2, 0)}
		got := judge(view{state: state, namespace: "shop", name: "order"}).message
		if c.want == "" && strings.Contains(got, "Retry") || !strings.Contains(got, c.want) || !strings.Contains(got, "MarkCompensated") {
			t.Errorf("%s: %s", name, got)
		}
	}
}
