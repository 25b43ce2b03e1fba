package cqrs

import (
	"context"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Pause is the pause after so many failed attempts.
func (b Backoff) Pause(attempts int) time.Duration { return b.pause(attempts) }

// Full reports whether the subscription reads no further for now.
func (s *Subscription) Full() bool { return s.source.full.Load() }

// Sees returns how many events the subscription would read from the beginning now.
func (s *Subscription) Sees(ctx context.Context) (int, error) {
	page, err := s.source.ReadAll(ctx, eventstore.Checkpoint{}, eventstore.Filter{}, 1000)
	return len(page.Events), err
}
