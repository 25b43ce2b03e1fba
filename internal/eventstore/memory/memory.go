// Package memory keeps streams in memory, for tests and simulations. It is held to the same conformance suite as the real store.
package memory

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Store implements eventstore.Store. Its content ends with the process.
type Store struct {
	mu       sync.RWMutex
	streams  map[string][]eventstore.Recorded
	ids      map[uuid.UUID]bool
	states   map[uuid.UUID]eventstore.SagaState
	messages []eventstore.RecordedMessage
	position int64
}

var _ eventstore.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{streams: map[string][]eventstore.Recorded{}, ids: map[uuid.UUID]bool{}, states: map[uuid.UUID]eventstore.SagaState{}}
}

// Append implements eventstore.Store.
func (s *Store) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if err := a.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	if err := ctx.Err(); err != nil {
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stream := s.streams[a.Stream]
	if at := int64(len(stream)); at != a.Expected {
		return eventstore.Appended{}, &eventstore.WrongVersionError{Stream: a.Stream, Expected: a.Expected, Actual: at}
	}
	if s.known(a.Events) {
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w: the store has one of these event ids already", a.Stream, eventstore.ErrInvalid)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	for i, e := range a.Events {
		s.position++
		s.ids[e.ID] = true
		e.Data = bytes.Clone(e.Data)
		stream = append(stream, eventstore.Recorded{Event: e, Stream: a.Stream, Version: a.Expected + int64(i) + 1, Position: s.position, RecordedAt: now})
	}
	s.streams[a.Stream] = stream
	at := int64(len(stream))
	if a.State != nil {
		state := *a.State
		state.Version, state.State = at, bytes.Clone(state.State)
		if !state.WakeAt.IsZero() {
			state.WakeAt = state.WakeAt.UTC().Truncate(time.Microsecond)
		}
		s.states[state.UID] = state
	}
	for _, m := range a.Messages {
		m.Data = bytes.Clone(m.Data)
		s.messages = append(s.messages, eventstore.RecordedMessage{Message: m, Position: int64(len(s.messages)) + 1})
	}
	return eventstore.Appended{Version: at}, nil
}

// known reports whether the store, or the append itself, has one of the ids already.
func (s *Store) known(events []eventstore.Event) bool {
	seen := make(map[uuid.UUID]bool, len(events))
	for _, e := range events {
		if s.ids[e.ID] || seen[e.ID] {
			return true
		}
		seen[e.ID] = true
	}
	return false
}

// Load implements eventstore.Store.
func (s *Store) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("loading stream %s: %w", stream, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	events := s.streams[stream]
	first := min(max(from, 1)-1, int64(len(events)))
	found := slices.Clone(upTo(limit, events[first:]))
	for i := range found {
		found[i].Data = bytes.Clone(found[i].Data)
	}
	return found, nil
}

// Version implements eventstore.Store.
func (s *Store) Version(ctx context.Context, stream string) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("reading the version of stream %s: %w", stream, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return int64(len(s.streams[stream])), nil
}

// UnfinishedSagas implements eventstore.Store.
func (s *Store) UnfinishedSagas(ctx context.Context, after uuid.UUID, limit int) ([]eventstore.SagaState, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("listing unfinished sagas: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []eventstore.SagaState
	for uid, state := range s.states {
		if !state.Finished && bytes.Compare(uid[:], after[:]) > 0 {
			state.State = bytes.Clone(state.State)
			found = append(found, state)
		}
	}
	slices.SortFunc(found, func(a, b eventstore.SagaState) int { return bytes.Compare(a.UID[:], b.UID[:]) })
	return upTo(limit, found), nil
}

// SagaState implements eventstore.Store.
func (s *Store) SagaState(ctx context.Context, uid uuid.UUID) (eventstore.SagaState, error) {
	if err := ctx.Err(); err != nil {
		return eventstore.SagaState{}, fmt.Errorf("reading the state of saga %s: %w", uid, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	state, ok := s.states[uid]
	if !ok {
		return eventstore.SagaState{}, fmt.Errorf("reading the state of saga %s: %w", uid, eventstore.ErrNotFound)
	}
	state.State = bytes.Clone(state.State)
	return state, nil
}

// Messages implements eventstore.Store.
func (s *Store) Messages(ctx context.Context, after int64, limit int) ([]eventstore.RecordedMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	first := min(max(after, 0), int64(len(s.messages)))
	found := slices.Clone(upTo(limit, s.messages[first:]))
	for i := range found {
		found[i].Data = bytes.Clone(found[i].Data)
	}
	return found, nil
}

// upTo returns the first of all, limit at most.
func upTo[T any](limit int, all []T) []T { return all[:min(max(limit, 0), len(all))] }

// Ping implements eventstore.Store.
func (s *Store) Ping(ctx context.Context) error { return ctx.Err() }
