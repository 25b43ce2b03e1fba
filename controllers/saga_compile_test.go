package controllers

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
)

// TestReconcileChecksLargeDefinition: its definition is compiled outside of the reconcile.
func TestReconcileChecksLargeDefinition(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	list := "${[" + strings.Repeat("1, ", 100) + "1]}"
	manifest := func(last string) string {
		return fmt.Sprintf(`{steps: [{name: charge, http: {url: SERVICE/charge, method: POST, body: [%s%s]}, compensation: {http: {url: SERVICE/charge, method: DELETE}}}]}`,
			strings.Repeat(`"`+list+`", `, 20), last)
	}
	r.create("right", manifest(`"${saga.name}"`))
	r.create("wrong", manifest(`"${nope}"`))
	r.waitPhase("right", v1.PhaseCompleted)
	o := r.waitStalled("wrong", engine.ReasonInvalidDefinition)
	if message := condition(o.Status.Conditions, v1.ConditionStalled).Message; !strings.Contains(message, "spec.steps[0].http.body[20]") || !strings.Contains(message, "nope") {
		t.Errorf("the message is %s", message)
	}
	if err := r.patch("wrong", `{"metadata":{"labels":{"a":"b"}}}`); err != nil {
		t.Fatal(err)
	}
	r.delete("wrong")
	r.waitGone("wrong")
}
