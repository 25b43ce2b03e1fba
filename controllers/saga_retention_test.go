package controllers

import (
	"testing"
	"time"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

// removeHistory removes the history of every saga that has finished.
func (r *rig) removeHistory(want int) {
	r.Helper()
	if n, err := r.store.RemoveFinished(r.Context(), time.Now().Add(time.Hour), 100); err != nil || n != want {
		r.Fatalf("removed %d histories, %v; want %d", n, err, want)
	}
}

func TestASagaWhoseHistoryHasBeenRemovedIsOverAndIsLetGo(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	stop := r.startOperator()
	r.create("order", order)
	done := r.waitPhase("order", v1.PhaseCompleted)
	calls := len(r.svc.called())
	stop()
	r.removeHistory(1)
	r.startOperator() // knows nothing of it but what the status says
	r.create("other", order)
	r.waitPhase("other", v1.PhaseCompleted)
	if o, err := r.get("order"); err != nil || o.Status.Phase != v1.PhaseCompleted || o.Status.RecordedVersion != done.Status.RecordedVersion {
		t.Errorf("its status has become %+v, %v", o.Status, err)
	}
	r.delete("order")
	r.waitGone("order")
	if n := len(r.svc.called()); n != 2*calls {
		t.Errorf("participants were asked %d times, want %d by each saga", n, calls)
	}
	if v, err := r.store.Version(t.Context(), "saga-"+string(done.UID)); err != nil || v == 0 {
		t.Errorf("its stream is at version %d, %v: it could begin again", v, err)
	}
}

// A status that was lost must not make a saga begin a second time.
func TestASagaWhoseHistoryHasBeenRemovedNeverBeginsAgain(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	stop := r.startOperator()
	r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	calls := len(r.svc.called())
	stop()
	r.removeHistory(1)
	r.mustPatchStatus("order", `{"status":null}`)
	r.startOperator()
	r.waitStalled("order", engine.ReasonHistoryRemoved)
	if n := len(r.svc.called()); n != calls {
		t.Errorf("participants were asked %d times, want %d: it began again", n, calls)
	}
	r.delete("order")
	r.waitGone("order")
}
