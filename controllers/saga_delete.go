package controllers

import (
	"context"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/vextrus/saga-operator/api/v1"
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
	case s.over && s.mirrored:
		r.forget(s.key)
		s.wakeAt(expiry(s.object))
	case state.Phase.Terminal() && s.mirrored:
		r.Engine.Forget(s.key)
		r.forgetOnceShown(ctx, s.key)
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

// forgetOnceShown drops what is remembered of a saga whose end has been written, as soon as the cache shows that: who looked at the saga before, for an event or an outcome that
// came late, would load its stream and write its end again, in vain. The event that shows it drops the note; one that came before is found in the cache.
func (r *SagaReconciler) forgetOnceShown(ctx context.Context, k engine.Key) {
	r.notes.change(k, func(n *note) { n.ended, n.doubted = true, false })
	cached := &v1.Saga{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: k.Namespace, Name: k.Name}, cached)
	if err != nil || string(cached.UID) != k.UID || finished(cached) {
		r.notes.shown(k)
	}
}

func (r *SagaReconciler) forget(k engine.Key) {
	r.Engine.Forget(k)
	r.notes.drop(k)
}
