package controllers

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/saga"
)

// abandoningRig is a rig whose operator is not started yet, and how to abandon one of its sagas.
func abandoningRig(t *testing.T) (*rig, func(*v1.Saga)) {
	t.Helper()
	r := newRigWithoutOperator(t, memory.New())
	var s *SagaReconciler
	r.onStart = func(o *SagaReconciler) { s = o }
	return r, func(o *v1.Saga) {
		t.Helper()
		key := engine.Key{Namespace: o.Namespace, Name: o.Name, UID: string(o.UID)}
		if _, err := s.Engine.Abandon(t.Context(), key, engine.Abandonment{By: "ann", Reason: "payments is gone", Recorded: o.Status.RecordedVersion > 0}); err != nil {
			t.Fatal(err)
		}
		if err := s.Engine.Answered(t.Context(), s.Enqueue); err != nil {
			t.Fatal(err)
		}
	}
}

// checkAbandoned checks what the status of an abandoned saga says.
func checkAbandoned(t *testing.T, o *v1.Saga, want ...string) {
	t.Helper()
	c := condition(o.Status.Conditions, v1.ConditionAbandoned)
	if c == nil || c.Status != metav1.ConditionTrue || c.Reason != "Abandoned" {
		t.Fatalf("the condition is %+v", c)
	}
	for _, part := range append(want, "Abandoned by ann: payments is gone", "delete it when you like") {
		if !strings.Contains(c.Message, part) {
			t.Errorf("the message lacks %q: %s", part, c.Message)
		}
	}
	if o.Status.Reason != "abandoned: payments is gone" || o.Status.EndedAt == nil {
		t.Errorf("the status is %+v", o.Status)
	}
}

func TestAbandonedSagaReleasesObject(t *testing.T) {
	t.Parallel()
	r, abandon := abandoningRig(t)
	r.startOperator()
	r.svc.on("POST /charge", newGate(t).then(answer(200, "{}")))
	r.create("order", order)
	o := r.wait("order", "charges", func(o *v1.Saga) bool {
		return slices.ContainsFunc(o.Status.Steps, func(s v1.StepStatus) bool { return s.Name == "charge" && s.Phase == v1.StepRunning })
	})
	abandon(o)
	o = r.waitPhase("order", v1.PhaseAbandoned)
	checkAbandoned(t, o, "may remain, undo them by hand: reserve, charge.")
	r.delete("order")
	r.waitGone("order")
	if got := r.history(o); got[len(got)-1] != "SagaAbandoned" {
		t.Errorf("the history is %v", got)
	}
	for _, call := range r.svc.called() {
		if strings.HasPrefix(call, "DELETE") {
			t.Errorf("the participant was called: %s", call)
		}
	}
}

// TestAbandonedUnreadableSagaReleasesObject has sagas whose objects are kept because it is unknown what
// the sagas did.
func TestAbandonedUnreadableSagaReleasesObject(t *testing.T) {
	t.Parallel()
	r, abandon := abandoningRig(t)
	const shown = `{"status":{"phase":"Running","recordedVersion":3,"startedAt":"2030-01-02T03:04:05Z","steps":[{"name":"reserve","phase":"Succeeded"}]}}`
	// All is recorded before the operator starts, which would begin the sagas itself.
	for name, spec := range map[string]string{
		"shown": strings.Replace(order, "orderId", "orderId2", 1), "lost": strings.Replace(order, "orderId", "orderId2", 1), "kept": order,
	} {
		o := r.createHeld(name, spec)
		r.recordByNewer(o)
		if name == "kept" {
			r.recordFuture(o)
		}
		if name != "lost" {
			r.mustPatchStatus(name, shown)
		}
	}
	r.startOperator()
	for _, name := range []string{"shown", "lost"} {
		o := r.waitStalled(name, engine.ReasonDefinitionUnreadable)
		r.delete(name)
		abandon(o)
		r.waitGone(name)
		if got := r.history(o); got[len(got)-1] != "SagaAbandoned" {
			t.Errorf("%s: the history is %v", name, got)
		}
	}
	// One that is not being deleted says that it is abandoned, and still shows what was known of it.
	abandon(r.waitStalled("kept", engine.ReasonDefinitionUnreadable))
	o := r.waitPhase("kept", v1.PhaseAbandoned)
	checkAbandoned(t, o, "Its events cannot be read", "the effects of the steps in this status may remain")
	if len(o.Status.Steps) != 1 || o.Status.RecordedVersion != 5 {
		t.Errorf("the status is %+v", o.Status)
	}
}

// recordFuture records an event of a type that this version does not know, behind the events of recordByNewer.
func (r *rig) recordFuture(o *v1.Saga) {
	r.Helper()
	uid := uuid.MustParse(string(o.UID))
	if _, err := r.store.Append(r.Context(), eventstore.Append{
		Stream: engine.StreamOf(uid.String()), Expected: 3, Events: []eventstore.Event{{ID: uuid.Must(uuid.NewV7()), Type: "FromTheFuture", SchemaVersion: 1, Data: []byte(`{}`)}},
		State: &eventstore.SagaState{UID: uid, Namespace: o.Namespace, Name: o.Name, Phase: "Running", Version: 4, State: []byte(`{}`)},
	}); err != nil {
		r.Fatal(err)
	}
}

func TestAbandonedMessageFitsCondition(t *testing.T) {
	t.Parallel()
	state := saga.State{Version: 9, Phase: saga.Abandoned, Abandoned: &saga.Abandonment{By: "ann", Reason: strings.Repeat("x", 1024)}}
	for range saga.MaxSteps {
		state.Steps = append(state.Steps, saga.StepState{Name: strings.Repeat("s", saga.MaxNameLength), Do: saga.EffectState{Status: saga.Done}})
	}
	got := abandonedMessage(&state)
	if len(got) > maxConditionMessage || !strings.HasSuffix(got, "delete it when you like.") || !strings.Contains(got, "undo them by hand: sss") {
		t.Errorf("%d bytes: %s", len(got), got)
	}
	if got := abandonedMessage(&saga.State{Abandoned: nil, Steps: []saga.StepState{{}}}); !strings.Contains(got, "an unknown user") || !strings.Contains(got, "No effects of its steps remain") {
		t.Errorf("%s", got)
	}
}
