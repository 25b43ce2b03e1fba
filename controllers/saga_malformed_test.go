package controllers

import (
	"strings"
	"testing"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/test/malformed"
)

func TestEveryManifestThatCannotBeRefusedStallsAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cases := malformed.Stalled()
	for _, c := range cases {
		if err := r.kube.Create(t.Context(), c.Object(r.ns)); err != nil {
			t.Errorf("creating %s: %v", c.Name, err)
		}
	}
	r.create("order", order) // in the midst of them
	r.waitPhase("order", v1.PhaseCompleted)
	for _, c := range cases {
		o := r.waitStalled(c.Name, engine.ReasonInvalidDefinition)
		message := condition(o.Status.Conditions, v1.ConditionStalled).Message
		for _, want := range c.Stalled {
			if !strings.Contains(message, want) {
				t.Errorf("%s: the message does not say %q: %s", c.Name, want, message)
			}
		}
		if o.Status.Phase != v1.PhasePending || len(r.history(o)) != 0 {
			t.Errorf("%s: phase %s, history %v; want Pending, none", c.Name, o.Status.Phase, r.history(o))
		}
		if writes := r.writes(c.Name); writes != 1 {
			t.Errorf("%s: its status was written %d times", c.Name, writes)
		}
	}
	if len(cases) < 30 {
		t.Errorf("only %d manifests: is the table complete?", len(cases))
	}
}
