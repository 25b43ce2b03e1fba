package saga

import (
	"slices"
	"time"
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
	if _, told := NoticeOf(e); told {
		s.Notices++
	}
	switch e := e.(type) {
	case SagaStarted:
		s.start(e)
	case AttemptStarted:
		s.effect(e.EffectID).started(e)
	case AttemptResent:
		s.effect(e.EffectID).InDoubt = true
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
		s.Phase = Compensating
		s.Failure = &Failure{Cause: e.Cause, Step: e.Step, Reason: e.Reason, Message: e.Message, At: e.DecidedAt()}
		s.giveUpRetries(e.DecidedAt())
	case SagaCompleted:
		s.end(Completed, e.DecidedAt())
	case SagaCompensated:
		s.end(Compensated, e.DecidedAt())
	case SagaParked:
		s.Phase = CompensationFailed
		s.Parked = &Failure{Step: e.Step, Reason: e.Reason, Message: e.Message, At: e.DecidedAt()}
	case DecisionMade:
		s.decided(e)
	case SagaSuspended:
		s.Suspended = true
	case SagaResumed:
		s.Suspended = false
	}
}

func (s *State) start(e SagaStarted) {
	s.UID, s.Namespace, s.Name, s.CreatedBy, s.Labels = e.UID, e.Namespace, e.Name, e.CreatedBy, e.Labels
	s.Phase, s.TraceParent = Running, e.TraceParent
	s.StartedAt, s.DeadlineAt = e.DecidedAt(), e.DeadlineAt
	s.Definition, s.Input = e.Definition, e.Input
	s.Steps = make([]StepState, len(e.Definition.Steps))
	for i, step := range e.Definition.Steps {
		s.Steps[i].Name = step.Name
	}
}

func (s *State) end(p Phase, at time.Time) {
	s.Phase, s.EndedAt, s.Suspended = p, at, false
}

// giveUpRetries ends the actions that were waiting for another attempt, or for an answer: there is no way forward any more. What was accepted may happen, and is undone.
func (s *State) giveUpRetries(at time.Time) {
	for i := range s.Steps {
		do := &s.Steps[i].Do
		switch do.Status {
		case Accepted:
			do.InDoubt = true
		case Waiting:
		default:
			continue
		}
		do.Status, do.RetryAt, do.AnswerBy, do.EndedAt = Exhausted, time.Time{}, time.Time{}, at
	}
}
