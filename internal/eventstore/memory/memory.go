// Package memory keeps streams in memory, for tests and simulations. It is held to the same conformance suite as the real store.
package memory

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// epoch is the only one: nothing is ever restored.
const epoch = 1

// Store implements eventstore.Store. Its content ends with the process.
type Store struct {
	mu       sync.RWMutex
	streams  map[string]*stream
	ids      map[uuid.UUID]bool
	all      []eventstore.Recorded // by position
	txids    map[int64]uint64      // the transaction of each position
	txid     uint64                // the last transaction
	states   map[uuid.UUID]eventstore.SagaState
	finished map[uuid.UUID]time.Time
	snaps    map[string]eventstore.Snapshot
	messages []eventstore.RecordedMessage
	answers  map[uuid.UUID][]*answer
	// nudged are the sagas to be looked at.
	nudged map[uuid.UUID]bool
	// callbacks are by the hash of their token.
	callbacks map[[32]byte]eventstore.Callback
	position  int64
}

type stream struct {
	version  int64
	events   []eventstore.Recorded
	archived bool
}

var _ eventstore.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{
		streams: map[string]*stream{}, ids: map[uuid.UUID]bool{}, txids: map[int64]uint64{}, states: map[uuid.UUID]eventstore.SagaState{},
		finished: map[uuid.UUID]time.Time{}, snaps: map[string]eventstore.Snapshot{}, answers: map[uuid.UUID][]*answer{}, nudged: map[uuid.UUID]bool{}, callbacks: map[[32]byte]eventstore.Callback{},
	}
}

// Append implements eventstore.Store.
func (s *Store) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if err := a.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	done, err := s.append(ctx, []eventstore.Append{a})
	if err != nil {
		return eventstore.Appended{}, err
	}
	return done[0], nil
}

// AppendAll implements eventstore.Store.
func (s *Store) AppendAll(ctx context.Context, all []eventstore.Append) ([]eventstore.Appended, error) {
	if err := eventstore.ValidateAll(all); err != nil {
		return nil, err
	}
	return s.append(ctx, all)
}

func (s *Store) append(ctx context.Context, all []eventstore.Append) ([]eventstore.Appended, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("appending to stream %s: %w", all[0].Stream, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make([]eventstore.Appended, len(all))
	var fresh []eventstore.Event
	for i := range all {
		var err error
		if done[i], err = s.check(&all[i]); err != nil {
			return nil, err
		}
		if !done[i].Repeated {
			fresh = append(fresh, all[i].Events...)
		}
	}
	if s.known(fresh) {
		return nil, fmt.Errorf("appending to stream %s: %w: the store has one of these event ids already", all[0].Stream, eventstore.ErrInvalid)
	}
	s.txid++
	now := time.Now().UTC().Truncate(time.Microsecond)
	for i := range all {
		done[i].Token = eventstore.Token{Epoch: epoch, Transaction: s.txid}
		if !done[i].Repeated {
			done[i].Version = s.commit(&all[i], now)
		}
	}
	return done, nil
}

// check does the compare-and-set of an append and writes nothing.
func (s *Store) check(a *eventstore.Append) (eventstore.Appended, error) {
	st := s.streams[a.Stream]
	if st == nil {
		st = &stream{}
	}
	if a.Expected == st.version && !st.archived {
		return eventstore.Appended{}, nil
	}
	if last, ok := st.repeated(a.Events); ok {
		return eventstore.Appended{Version: last, Repeated: true}, nil
	}
	switch {
	case st.archived:
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, eventstore.ErrArchived)
	case a.Expected != eventstore.AnyVersion:
		return eventstore.Appended{}, &eventstore.WrongVersionError{Stream: a.Stream, Expected: a.Expected, Actual: st.version}
	default:
		return eventstore.Appended{}, nil
	}
}

// repeated reports whether the stream has the events already, one after the other, and the version of the last.
func (st *stream) repeated(events []eventstore.Event) (int64, bool) {
	first := slices.IndexFunc(st.events, func(r eventstore.Recorded) bool { return r.ID == events[0].ID })
	if first < 0 || first+len(events) > len(st.events) {
		return 0, false
	}
	for i := range events {
		if st.events[first+i].ID != events[i].ID {
			return 0, false
		}
	}
	return st.events[first+len(events)-1].Version, true
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

// commit writes what has been checked and returns the stream's version.
func (s *Store) commit(a *eventstore.Append, now time.Time) int64 {
	st := s.streams[a.Stream]
	if st == nil {
		st = &stream{}
		s.streams[a.Stream] = st
	}
	for _, e := range a.Events {
		s.position++
		st.version++
		s.ids[e.ID] = true
		e.Data = bytes.Clone(e.Data)
		r := eventstore.Recorded{Event: e, Stream: a.Stream, Version: st.version, Position: s.position, RecordedAt: now}
		st.events, s.all, s.txids[s.position] = append(st.events, r), append(s.all, r), s.txid
	}
	if a.State != nil {
		state := *a.State
		state.Version, state.State = st.version, bytes.Clone(state.State)
		if !state.WakeAt.IsZero() {
			state.WakeAt = state.WakeAt.UTC().Truncate(time.Microsecond)
		}
		s.states[state.UID] = state
		if _, ended := s.finished[state.UID]; !state.Finished {
			delete(s.finished, state.UID)
		} else if !ended {
			s.finished[state.UID] = now
		}
	}
	for _, m := range a.Messages {
		m.Data, m.Labels = bytes.Clone(m.Data), maps.Clone(m.Labels)
		s.messages = append(s.messages, eventstore.RecordedMessage{Message: m, Position: int64(len(s.messages)) + 1, RecordedAt: now})
	}
	return st.version
}

// Load implements eventstore.Store.
func (s *Store) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	return s.load(ctx, stream, limit, func(v int64) bool { return v >= from }, false)
}

// LoadBackwards implements eventstore.Store.
func (s *Store) LoadBackwards(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	return s.load(ctx, stream, limit, func(v int64) bool { return v <= from }, true)
}

func (s *Store) load(ctx context.Context, name string, limit int, want func(version int64) bool, backwards bool) ([]eventstore.Recorded, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("loading stream %s: %w", name, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := s.streams[name]
	if st == nil {
		return nil, nil
	}
	var found []eventstore.Recorded
	for _, e := range st.events {
		if want(e.Version) {
			found = append(found, e)
		}
	}
	if backwards {
		slices.Reverse(found)
	}
	return cloned(upTo(limit, found)), nil
}

// cloned keeps what the store has from what its readers do.
func cloned(events []eventstore.Recorded) []eventstore.Recorded {
	events = slices.Clone(events)
	for i := range events {
		events[i].Data = bytes.Clone(events[i].Data)
	}
	return events
}

// Version implements eventstore.Store.
func (s *Store) Version(ctx context.Context, stream string) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("reading the version of stream %s: %w", stream, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if st := s.streams[stream]; st != nil {
		return st.version, nil
	}
	return 0, nil
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

// Ping implements eventstore.Store.
func (s *Store) Ping(ctx context.Context) error { return ctx.Err() }
