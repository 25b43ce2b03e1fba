package saga

import (
	"fmt"
	"slices"
)

// Fold applies events to a state, oldest first, and returns the result. The state that was passed in is left as it was.
func Fold(s State, events ...Event) State {
	s = s.clone()
	for _, e := range events {
		s.apply(e)
	}
	return s
}

// Evolve applies one event to a state and returns the result. The state that was passed in is left as it was.
func Evolve(s State, e Event) State { return Fold(s, e) }

// clone copies what apply changes. Everything else that is reachable from a State is never changed.
func (s State) clone() State {
	s.Steps = slices.Clone(s.Steps)
	return s
}

func (s *State) apply(e Event) {
	s.Version++
	s.Needs = s.Needs.with(e.Requires())
	if _, told := NoticeOf(e); told {
		s.Notices++
	}
	switch e := e.(type) {
	case SagaStarted:
		s.start(e)
	case AttemptStarted:
		s.effect(e.EffectID).started(e)
	case AttemptResent:
		s.effect(e.EffectID).resent(e)
	case AttemptSucceeded:
		if step := s.Step(e.Step); step != nil && e.Direction == Action {
			step.Output = e.Output
		}
		s.effect(e.EffectID).succeeded(e)
	case AttemptAccepted:
		f := s.effect(e.EffectID)
		f.Status, f.AnswerBy = Accepted, e.AnswerBy
	case AttemptFailed:
		s.effect(e.EffectID).failed(e)
	case SagaCompensating:
		s.turnBack(e)
	case SagaCompleted:
		s.end(Completed, e.DecidedAt())
	case SagaCompensated:
		s.end(Compensated, e.DecidedAt())
	case SagaParked:
		s.Phase = CompensationFailed
		s.Parked = &Failure{Step: e.Step, Reason: e.Reason, Message: e.Message, At: e.DecidedAt(), Version: s.Version}
	case DecisionMade:
		s.decided(e)
	case SagaAbandoned:
		s.abandon(e)
	case SagaSuspended:
		s.Suspended, s.SuspendGeneration = true, e.Generation
	case SagaResumed:
		s.Suspended, s.SuspendGeneration = false, e.Generation
	default:
		panic(unknownEvent(e))
	}
}

// unknownEvent is what a switch over all events panics with. Unmarshal refuses what this version
// does not know, so it takes a new type that a switch has forgotten.
func unknownEvent(e Event) string { return fmt.Sprintf("saga: no case for the event %T", e) }
