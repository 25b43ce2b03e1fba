package memory

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// PutCallback implements eventstore.Store.
func (s *Store) PutCallback(ctx context.Context, c eventstore.Callback) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("keeping a callback of saga %s: %w", c.UID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.callbacks[c.TokenHash]; !known {
		c.ExpiresAt = c.ExpiresAt.UTC().Truncate(time.Microsecond)
		s.callbacks[c.TokenHash] = c
	}
	return nil
}

// Callback implements eventstore.Store.
func (s *Store) Callback(ctx context.Context, tokenHash [32]byte) (eventstore.Callback, error) {
	if err := ctx.Err(); err != nil {
		return eventstore.Callback{}, fmt.Errorf("looking a callback up: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	c, known := s.callbacks[tokenHash]
	if !known {
		return c, fmt.Errorf("looking a callback up: %w", eventstore.ErrNotFound)
	}
	c.Namespace = s.states[c.UID].Namespace
	return c, nil
}

// RemoveCallbacks implements eventstore.Store.
func (s *Store) RemoveCallbacks(ctx context.Context, expiredBefore time.Time, limit int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("removing callbacks that expired before %s: %w", expiredBefore.Format(time.RFC3339), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	removed := 0
	hashes := slices.SortedFunc(maps.Keys(s.callbacks), func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	for _, hash := range hashes {
		c := s.callbacks[hash]
		if removed < limit && c.ExpiresAt.Before(expiredBefore) {
			delete(s.callbacks, hash)
			removed++
		}
	}
	return removed, nil
}
