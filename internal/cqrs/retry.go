package cqrs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// RetryConflicts has a handler try again when its append has lost the compare-and-set (eventstore.ErrWrongVersion), up to so many attempts in all. The handler loads anew each time: whatever
// it has loaded before the conflict is out of date. Between attempts it pauses, by default up to 5 ms at first and 200 ms at most. It belongs inside of Idempotent, so that all attempts are
// one effect.
func RetryConflicts(attempts int, backoff Backoff) Middleware {
	backoff = backoff.or(5*time.Millisecond, 200*time.Millisecond)
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (any, error) {
			for attempt := 1; ; attempt++ {
				answer, err := next(ctx, m)
				if err == nil || !errors.Is(err, eventstore.ErrWrongVersion) {
					return answer, err
				}
				if attempt >= attempts {
					return nil, fmt.Errorf("%s %s: others were faster at each of %d attempts: %w", m.Kind, m.Name, attempt, err)
				}
				if late := wait(ctx, backoff.pause(attempt)); late != nil {
					return nil, fmt.Errorf("%s %s: trying again after a conflict: %w (%w)", m.Kind, m.Name, late, err)
				}
			}
		}
	}
}
