package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
)

const (
	// stalledLook is how often a saga that cannot be driven is looked at again: somebody may have mended what was wrong.
	stalledLook = 5 * time.Minute
	// patience is how long the event store may fail before the status says so.
	patience = 5 * time.Second
)

// Reasons of problems that the engine does not know of.
const reasonStreamMissing = "StreamMissing"

// problem is what keeps a saga from moving.
type problem struct {
	reason, message string
	// transient is true when it passes by itself.
	transient bool
}

// advance has the engine move the saga. An error is one that passes by itself; what does not becomes the sighting's problem, and the saga stalls alone.
func (r *SagaReconciler) advance(ctx context.Context, s *sighting) error {
	res, err := r.Engine.Advance(ctx, s.key, s.observed)
	if err != nil && s.observed.Definition != nil && refusesStart(err) {
		res, err = r.advanceUnstarted(ctx, s, err)
	}
	if err != nil {
		return r.advanceFailed(ctx, s, err)
	}
	s.result = res
	s.wakeAt(res.Wake)
	if s.note.recorded != (res.State.Version > 0) || !s.note.failingSince.IsZero() {
		s.note = r.notes.change(s.key, func(n *note) { n.recorded, n.failingSince = res.State.Version > 0, time.Time{} })
	}
	if res.State.Version > 0 {
		return nil
	}
	s.unstarted = s.object == nil || s.object.Status.RecordedVersion == 0
	r.Engine.Forget(s.key) // nothing has started, so there is nothing to hold
	switch {
	case s.uncounted:
	case s.held != nil:
		s.problem = s.held
		s.wakeAt(r.Clock().Add(r.jitter(stalledLook)))
	case s.problem != nil: // it cannot be started
		r.Logger.Error("a saga cannot be started", "saga", s.key, "reason", s.problem.reason, "error", s.problem.message)
		s.wakeAt(r.Clock().Add(stalledLook))
	case !s.unstarted:
		s.problem = &problem{reason: reasonStreamMissing, message: fmt.Sprintf(
			"%d events of this saga were recorded, but the event store has none of them; check that the operator uses the right database, or restore it", s.object.Status.RecordedVersion)}
		s.wakeAt(r.Clock().Add(stalledLook))
	case len(s.invalid) > 0:
		s.problem = &problem{reason: engine.ReasonInvalidDefinition, message: fieldErrors(s.invalid)}
	}
	return nil
}

// refusesStart reports whether an error may be about what the saga was to be started with, and not about what is recorded of it.
func refusesStart(err error) bool {
	reason, _, _ := engine.Problem(err)
	return reason == engine.ReasonInvalidDefinition || reason == engine.ReasonTooLarge
}

// advanceUnstarted advances a saga that cannot be started without starting it. The engine may have refused the start before it looked at the stream: there may
// be one all the same, of another version of the operator, and then the saga goes by that.
func (r *SagaReconciler) advanceUnstarted(ctx context.Context, s *sighting, refused error) (engine.Result, error) {
	recorded := s.observed
	recorded.Definition, recorded.Input = nil, nil
	res, err := r.Engine.Advance(ctx, s.key, recorded)
	if err == nil && res.State.Version == 0 {
		reason, message, _ := engine.Problem(refused)
		s.problem = &problem{reason: reason, message: message}
	}
	return res, err
}

func (r *SagaReconciler) advanceFailed(ctx context.Context, s *sighting, err error) error {
	if errors.Is(err, engine.ErrPreparing) {
		return err
	}
	reason, message, transient := engine.Problem(err)
	if reason == engine.ReasonHistoryRemoved {
		s.over, s.problem = true, &problem{reason: reason, message: message}
		return nil
	}
	if !transient {
		r.Logger.Error("a saga cannot be driven", "saga", s.key, "reason", reason, "error", err)
		s.problem = &problem{reason: reason, message: message}
		s.wakeAt(r.Clock().Add(stalledLook))
		return nil
	}
	if s.held != nil || s.uncounted {
		r.Engine.Forget(s.key) // that it may not start says nothing about its stream
	}
	if ctx.Err() != nil {
		return err
	}
	s.note = r.notes.change(s.key, func(n *note) {
		if n.failingSince.IsZero() {
			n.failingSince = r.Clock()
		}
	})
	if reason == engine.ReasonEventStoreUnavailable {
		r.lost.raise()
	}
	if r.Clock().Sub(s.note.failingSince) >= patience {
		s.problem = &problem{reason: reason, message: waitingMessage(reason), transient: true}
		r.mirror(ctx, s)
	}
	return err
}

// waitingMessage never changes while a problem lasts, so that it is written once.
func waitingMessage(reason string) string {
	if reason == engine.ReasonEventStoreUnavailable {
		return "Waiting for the event store: PostgreSQL cannot be reached. The saga goes on by itself as soon as it can; the operator's log and its /readyz say more."
	}
	return "The saga could not be advanced and is tried again; the operator's log says why."
}
