package memory

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// answer is one that is kept.
type answer struct {
	eventstore.Answer
	told bool
}

// PutAnswer implements eventstore.Store.
func (s *Store) PutAnswer(ctx context.Context, a eventstore.Answer) (bool, error) {
	if err := a.Validate(); err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("keeping an answer to saga %s: %w", a.UID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	state, known := s.states[a.UID]
	if !known || state.Finished {
		return false, nil
	}
	for _, kept := range s.answers[a.UID] {
		if kept.Step == a.Step && kept.Direction == a.Direction && kept.Round == a.Round {
			return false, nil
		}
	}
	a.Response = bytes.Clone(a.Response)
	s.answers[a.UID] = append(s.answers[a.UID], &answer{Answer: a})
	return true, nil
}

// Answers implements eventstore.Store.
func (s *Store) Answers(ctx context.Context, uid uuid.UUID, maxResponse int, steps ...string) ([]eventstore.Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reading the answers to saga %s: %w", uid, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []eventstore.Answer
	for _, kept := range s.answers[uid] {
		if !slices.Contains(steps, kept.Step) {
			continue
		}
		a := kept.Answer
		if a.Response = bytes.Clone(a.Response); len(a.Response) > maxResponse {
			a.Response = nil
		}
		all = append(all, a)
	}
	return all, nil
}

// Nudge implements eventstore.Store.
func (s *Store) Nudge(ctx context.Context, uid uuid.UUID) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("nudging saga %s: %w", uid, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.states[uid]; known {
		s.nudged[uid] = true
	}
	return nil
}

// TakeAnswered implements eventstore.Store.
func (s *Store) TakeAnswered(ctx context.Context, limit int) ([]eventstore.SagaState, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("looking for sagas with new answers: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []eventstore.SagaState
	for _, uid := range sorted(s.nudged) {
		if len(all) >= limit {
			break
		}
		delete(s.nudged, uid)
		if state, known := s.states[uid]; known {
			state.State = bytes.Clone(state.State)
			all = append(all, state)
		}
	}
	for _, uid := range sorted(s.answers) {
		kept := s.answers[uid]
		news := false
		for _, a := range kept {
			news = news || !a.told
		}
		if !news || len(all) >= limit {
			continue
		}
		for _, a := range kept {
			a.told = true
		}
		state := s.states[uid]
		state.State = bytes.Clone(state.State)
		all = append(all, state)
	}
	return all, nil
}
