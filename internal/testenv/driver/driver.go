// Package driver drives an engine without a cluster, for tests, benchmarks and examples. It shows
// the least that a driver of an engine.Engine has to do.
package driver

import (
	"context"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/testenv/keyqueue"
)

// Runner advances sagas from a queue. Its exported fields are set before Run.
type Runner struct {
	// Engine is what the runner drives. Its Options.Notify has to be the runner's Enqueue.
	Engine *engine.Engine
	// Workers is how many sagas are advanced at once; 1 by default.
	Workers int
	// Observe returns what is seen of a saga from outside; nothing by default.
	Observe func(engine.Key) engine.Observation
	// Finished is called for each saga that has reached a terminal phase or is parked, and again for
	// one whose key is queued once more.
	Finished func(engine.Key, engine.Result)
	// Retry is the pause after an error that passes by itself; 100 ms by default.
	Retry time.Duration

	queue keyqueue.Queue[engine.Key]
}

// Enqueue asks for a saga to be advanced. It never blocks, and may be called before Run.
func (r *Runner) Enqueue(k engine.Key) { r.queue.Enqueue(k) }

// Run advances sagas until ctx is done: those that are recorded as unfinished and those whose keys
// are queued.
func (r *Runner) Run(ctx context.Context) error {
	r.queue.Workers, r.queue.Retry, r.queue.Advance = r.Workers, r.Retry, r.advance
	if err := r.Engine.Unfinished(ctx, func(k engine.Key) bool { r.Enqueue(k); return true }); err != nil {
		return err
	}
	r.queue.Run(ctx)
	return nil
}

func (r *Runner) advance(ctx context.Context, k engine.Key) (time.Duration, error) {
	var obs engine.Observation
	if r.Observe != nil {
		obs = r.Observe(k)
	}
	res, err := r.Engine.Advance(ctx, k, obs)
	switch {
	case err != nil:
		if _, _, transient := engine.Problem(err); transient {
			return 0, err
		}
		return keyqueue.Never, err // it stalls this saga until a person does something
	case res.State.Phase.Terminal() || res.State.Parked != nil:
		r.Engine.Forget(k)
		if r.Finished != nil {
			r.Finished(k, res)
		}
		return keyqueue.Never, nil
	case res.Wake.IsZero():
		return keyqueue.Never, nil
	default:
		return max(res.Wake.Sub(r.Engine.Clock()), 0), nil
	}
}
