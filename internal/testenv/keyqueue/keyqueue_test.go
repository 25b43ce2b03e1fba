package keyqueue

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestQueueAdvancesAKeyByOneWorkerAtATime(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var busy, calls atomic.Int32
	q := &Queue[string]{Workers: 8}
	q.Advance = func(context.Context, string) (time.Duration, error) {
		if busy.Add(1) > 1 {
			t.Error("two workers advance the same key")
		}
		defer busy.Add(-1)
		if calls.Add(1) == 50 {
			cancel()
			return Never, nil
		}
		q.Enqueue("a") // while it is busy: it comes again
		return Never, nil
	}
	q.Enqueue("a")
	q.Run(ctx)
	if n := calls.Load(); n != 50 {
		t.Errorf("it was advanced %d times", n)
	}
}

func TestQueueBringsKeysBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var at []time.Duration
		q := &Queue[int]{Retry: time.Second}
		q.Advance = func(context.Context, int) (time.Duration, error) {
			at = append(at, time.Since(began))
			switch len(at) {
			case 1:
				return 0, errors.New("unavailable")
			case 2:
				return time.Minute, nil
			default:
				cancel()
				return 0, errors.New("cancelled")
			}
		}
		q.Enqueue(1)
		q.Run(ctx)
		if len(at) != 3 || at[0] != 0 || at[1] != time.Second || at[2] != time.Minute+time.Second {
			t.Errorf("it was advanced at %v", at)
		}
	})
}
