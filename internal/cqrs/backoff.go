package cqrs

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is how long to pause before the next attempt: by chance between nothing and a bound (full jitter), which doubles with every attempt. The zero value has defaults
// that are written where it is used.
type Backoff struct {
	// First bounds the pause after the first attempt; Max every pause.
	First, Max time.Duration
	// Random returns a number in [0, 1); nil for math/rand's.
	Random func() float64
}

// or fills what is not given.
func (b Backoff) or(first, longest time.Duration) Backoff {
	if b.First <= 0 {
		b.First = first
	}
	if b.Max <= 0 {
		b.Max = longest
	}
	if b.Random == nil {
		b.Random = rand.Float64
	}
	return b
}

// pause is the one after so many failed attempts.
func (b Backoff) pause(attempts int) time.Duration {
	bound := b.First
	for range attempts - 1 {
		if bound >= b.Max {
			break
		}
		bound *= 2
	}
	return time.Duration(b.Random() * float64(min(bound, b.Max)))
}

// wait pauses, or returns why the context is done.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
