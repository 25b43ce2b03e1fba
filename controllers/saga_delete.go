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

// mayGo reports whether nothing is left to undo. A saga that is refused has never begun to do anything, if the event store says so too: one of which nothing is known
// may be half done.
func mayGo(s *sighting) bool {
	refused := s.problem != nil && (s.problem.reason == engine.ReasonInvalidDefinition || s.problem.reason == engine.ReasonTooLarge)
	return s.result.State.Phase.Terminal() || s.unstarted && refused || s.over
}

// letGoOrphan forgets a saga whose object is gone, once it has been undone. One that cannot be undone is looked at again, by recovery and after a while, and told of each time:
// there is no object any more whose status could say so.
func (r *SagaReconciler) letGoOrphan(s *sighting) {
	state := &s.result.State
	switch {
	case state.Phase == saga.CompensationFailed:
		r.Logger.Warn("a saga whose object is gone could not be undone: somebody has to look after it", "saga", s.key,
			"step", state.Parked.Step, "reason", state.Parked.Reason, "message", state.Parked.Message)
		r.forget(s.key)
	case s.unstarted || s.over || state.Phase.Terminal():
		r.forget(s.key)
	case s.problem != nil:
		r.Logger.Error("a saga whose object is gone cannot be undone, and what it did stays done: somebody has to look after it", "saga", s.key,
			"reason", s.problem.reason, "message", s.problem.message+advice(s.problem, s.unstarted))
		r.forget(s.key)
	}
}

func (r *SagaReconciler) forget(k engine.Key) {
	r.Engine.Forget(k)
	r.notes.drop(k)
}
