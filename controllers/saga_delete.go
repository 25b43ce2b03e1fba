package controllers

import (
	"context"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// letGo ends the operator's hold on a saga that needs it no more: on the object of one that is being deleted and has been undone, and on what is
// held of it in memory.
func (r *SagaReconciler) letGo(ctx context.Context, s *sighting) error {
	state := &s.result.State
	switch {
	case s.object == nil:
		r.letGoOrphan(s)
		return nil
	case !s.mirrored && !s.unwritable:
		return nil
	case s.deleting() && mayGo(s):
		if err := r.releaseObject(ctx, s); err != nil {
			return err
		}
		r.forget(s.key)
	case (state.Phase.Terminal() || s.over) && s.mirrored:
		r.forget(s.key)
		s.wakeAt(expiry(s.object))
	case state.Phase == saga.CompensationFailed:
		r.Engine.Forget(s.key) // it waits for a person, who may take long
	}
	return nil
}

// mayGo reports whether nothing is left to undo. A saga whose definition is refused has never begun to do anything.
func mayGo(s *sighting) bool {
	neverStarted := s.problem != nil && s.problem.reason == engine.ReasonInvalidDefinition && s.result.State.Version == 0
	return s.result.State.Phase.Terminal() || neverStarted || s.over
}

// letGoOrphan forgets a saga whose object is gone, once it has been undone or cannot be driven. A parked one is looked at again by recovery.
func (r *SagaReconciler) letGoOrphan(s *sighting) {
	state := &s.result.State
	switch {
	case state.Phase == saga.CompensationFailed:
		r.Logger.Warn("a saga whose object is gone could not be undone: somebody has to look after it", "saga", s.key,
			"step", state.Parked.Step, "reason", state.Parked.Reason, "message", state.Parked.Message)
		r.forget(s.key)
	case state.Version == 0 || state.Phase.Terminal() || s.problem != nil:
		r.forget(s.key)
	}
}

func (r *SagaReconciler) forget(k engine.Key) {
	r.Engine.Forget(k)
	r.notes.drop(k)
}
