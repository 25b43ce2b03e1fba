package memory

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Archive implements eventstore.Store.
func (s *Store) Archive(ctx context.Context, stream string, expected int64) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("archiving stream %s: %w", stream, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch st := s.streams[stream]; {
	case st == nil:
		return fmt.Errorf("archiving stream %s: %w", stream, eventstore.ErrNotFound)
	case st.version != expected:
		return fmt.Errorf("archiving: %w", &eventstore.WrongVersionError{Stream: stream, Expected: expected, Actual: st.version})
	default:
		st.archived = true
		return nil
	}
}

// RemoveFinished implements eventstore.Store.
func (s *Store) RemoveFinished(ctx context.Context, before time.Time, limit int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("removing the history of finished sagas: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var uids []uuid.UUID
	for uid, at := range s.finished {
		if at.Before(before) {
			uids = append(uids, uid)
		}
	}
	slices.SortFunc(uids, func(a, b uuid.UUID) int {
		return cmp.Or(s.finished[a].Compare(s.finished[b]), bytes.Compare(a[:], b[:]))
	})
	uids = upTo(limit, uids)
	for _, uid := range uids {
		name := "saga-" + uid.String()
		if s.streams[name] != nil {
			s.remove(name)
			s.streams[name].archived = true
		}
		delete(s.snaps, name)
		delete(s.states, uid)
		delete(s.answers, uid)
		maps.DeleteFunc(s.callbacks, func(_ [32]byte, c eventstore.Callback) bool { return c.UID == uid })
		delete(s.finished, uid)
	}
	return len(uids), nil
}

// SaveSnapshot implements eventstore.Store.
func (s *Store) SaveSnapshot(ctx context.Context, snap eventstore.Snapshot) error {
	if err := snap.Validate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("saving a snapshot of stream %s: %w", snap.Stream, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.snaps[snap.Stream]
	later := old.SchemaVersion > snap.SchemaVersion || old.SchemaVersion == snap.SchemaVersion && old.Version >= snap.Version
	if st := s.streams[snap.Stream]; ok && later && (st == nil || old.Version <= st.version) {
		return nil
	}
	snap.Data = bytes.Clone(snap.Data)
	s.snaps[snap.Stream] = snap
	return nil
}

// LoadSnapshot implements eventstore.Store.
func (s *Store) LoadSnapshot(ctx context.Context, stream string) (eventstore.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return eventstore.Snapshot{}, fmt.Errorf("loading the snapshot of stream %s: %w", stream, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	snap, ok := s.snaps[stream]
	if !ok {
		return eventstore.Snapshot{}, fmt.Errorf("loading the snapshot of stream %s: %w", stream, eventstore.ErrNotFound)
	}
	snap.Data = bytes.Clone(snap.Data)
	return snap, nil
}
