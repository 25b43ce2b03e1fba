package controllers

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestASagaDeletedWhileRunningIsUndoneThenGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ship, undo := newGate(t), newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	r.svc.on("DELETE /reserve", undo.then(answer(http.StatusOK, `{}`)))
	o := r.create("order", orderToEnd)
	r.wait("order", "shipping", func(o *v1.Saga) bool { return o.Status.Step == "ship" })
	r.delete("order")
	held := r.waitPhase("order", v1.PhaseCompensating)
	if !slices.Contains(held.Finalizers, v1.Finalizer) || held.Status.Failure.Cause != "Deleted" {
		t.Errorf("finalizers %v, cause %s; want it held, and Deleted", held.Finalizers, held.Status.Failure.Cause)
	}
	undo.open()
	r.waitGone("order")
	if s := r.fold(o); s.Phase != saga.Compensated {
		t.Errorf("the object is gone, but its saga is %s", s.Phase)
	}
	for _, undo := range []string{"DELETE /ship", "DELETE /charge", "DELETE /reserve"} {
		if r.svc.count(undo) != 1 {
			t.Errorf("%s was asked %d times, want once: %v", undo, r.svc.count(undo), r.svc.called())
		}
	}
}

func TestASagaDeletedBeforeItStartedNeverStarts(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	o, err := r.parse("order", order)
	if err != nil {
		t.Fatal(err)
	}
	o.Finalizers = []string{v1.Finalizer} // as the admission policy puts it on
	if err := r.kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.delete("order")
	r.startOperator()
	r.waitGone("order")
	// It is recorded, so that no operator that is late can start it afterwards.
	if diff := cmp.Diff([]string{"SagaStarted", "SagaCompensating", "SagaCompensated"}, r.history(o)); diff != "" {
		t.Errorf("the history (-want +got):\n%s", diff)
	}
	if calls := r.svc.called(); len(calls) != 0 {
		t.Errorf("participants were asked %v", calls)
	}
}

func TestACompletedSagaIsLetGoAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	o := r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	r.delete("order")
	r.waitGone("order")
	if s := r.fold(o); s.Phase != saga.Completed || r.svc.count("DELETE /ship") != 0 {
		t.Errorf("deleting a completed saga changed it: phase %s, asked %v", s.Phase, r.svc.called())
	}
}

func TestAnObjectMadeAgainUnderItsNameStartsAfresh(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	r.delete("order")
	r.waitGone("order")
	second := r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	if first.UID == second.UID || r.svc.count("POST /ship") != 2 {
		t.Errorf("the second saga did not run: %v", r.svc.called())
	}
	if key := r.svc.keys["POST /ship"]; !strings.HasPrefix(key, string(second.UID)) {
		t.Errorf("the second saga used the key %q", key)
	}
}

func TestAnObjectTornAwayByForceIsUndone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	o := r.create("order", orderToEnd)
	r.wait("order", "shipping", func(o *v1.Saga) bool { return o.Status.Step == "ship" })
	r.delete("order")
	r.eventually(func() error { return r.patch("order", `{"metadata":{"finalizers":null}}`) })
	r.waitGone("order")
	second := r.create("order", "suspend: true\n"+order) // takes the name at once
	r.waitRecorded(o, saga.Compensated)
	if r.svc.count("DELETE /reserve") != 1 || r.svc.count("DELETE /charge") != 1 {
		t.Errorf("what was done was not undone: %v", r.svc.called())
	}
	if s := r.wait("order", "suspended", func(o *v1.Saga) bool { return o.Status.Reason == "suspended" }); s.UID != second.UID {
		t.Errorf("the second saga is not the one that has the name")
	}
}

func TestAnObjectThatVanishedWhileNobodyLookedIsUndone(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	stop := r.startOperator()
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	o := r.create("order", orderToEnd)
	r.wait("order", "shipping", func(o *v1.Saga) bool { return o.Status.Step == "ship" })
	stop()
	r.delete("order")
	r.mustPatch("order", `{"metadata":{"finalizers":null}}`)
	r.waitGone("order")
	ship.open()
	r.startOperator() // no event for the object ever arrives: the event store knows
	r.waitRecorded(o, saga.Compensated)
}

func TestTheFinalizerIsPutOnBeforeAnythingHappens(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.svc.on("POST /reserve", func(w http.ResponseWriter, _ *http.Request) {
		if o, err := r.get("order"); err != nil || !slices.Contains(o.Finalizers, v1.Finalizer) {
			t.Errorf("the first participant was called while the finalizers were %v (%v)", o.Finalizers, err)
		}
		_, _ = w.Write([]byte(`{"id":"r"}`))
	})
	r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
}

func TestAnInvalidSagaIsLetGoAtOnce(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	o, err := r.parse("cycle", cycle)
	if err != nil {
		t.Fatal(err)
	}
	o.Finalizers = []string{v1.Finalizer}
	if err := r.kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.startOperator()
	r.waitStalled("cycle", "InvalidDefinition")
	r.delete("cycle")
	r.waitGone("cycle")
	if h := r.history(o); len(h) != 0 {
		t.Errorf("a saga that was never started has the history %v", h)
	}
}
