package run

import (
	"context"
	"log/slog"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

const (
	// callbackSweepPause is how often expired callbacks are looked for.
	callbackSweepPause = 10 * time.Minute
	// callbackSweepBatch is how many of them are removed in one transaction.
	callbackSweepBatch = 1000
	// expiredFor is how long a callback is known after it has expired. Until then whoever brings its token is told that it comes too late; after that, that there is no such callback.
	expiredFor = 7 * 24 * time.Hour
)

// callbackSweep removes callbacks that expired long ago. Each attempt of a step that is answered later leaves one. The leader does so.
type callbackSweep struct {
	store eventstore.Store
	clock func() time.Time
	log   *slog.Logger
}

// Start implements manager.Runnable.
func (s *callbackSweep) Start(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			s.remove(ctx, s.clock())
			timer.Reset(callbackSweepPause)
		}
	}
}

func (s *callbackSweep) remove(ctx context.Context, now time.Time) {
	for {
		n, err := s.store.RemoveCallbacks(ctx, now.Add(-expiredFor), callbackSweepBatch)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("expired callbacks could not be removed; it is tried again later", "error", err)
		}
		if err != nil || n < callbackSweepBatch {
			return
		}
	}
}
