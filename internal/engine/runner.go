package engine

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Runner drives sagas without a cluster: a work queue of keys in which each key is advanced by one worker at a time, as a controller would do
// it. Benchmarks and simulations use it, and it shows the least that a driver of an Engine has to do.
type Runner struct {
	// Engine is what the runner drives. Its Options.Notify has to be the runner's Enqueue.
	Engine *Engine
	// Workers is how many sagas are advanced at once; 1 by default.
	Workers int
	// Observe returns what is seen of a saga from outside; nothing by default.
	Observe func(Key) Observation
	// Finished is called for each saga that has reached a terminal phase or is parked, and again for one whose key is queued once more.
	Finished func(Key, Result)
	// Retry is the pause after an error; 100 ms by default.
	Retry time.Duration

	once  sync.Once
	mu    sync.Mutex
	ready *sync.Cond
	queue []Key
	// dirty holds the keys that are queued or are to be queued again when their worker is done with them; busy those that a worker has.
	dirty, busy map[Key]bool
	stopped     bool
}

func (r *Runner) init() {
	r.once.Do(func() {
		r.ready = sync.NewCond(&r.mu)
		r.dirty, r.busy = map[Key]bool{}, map[Key]bool{}
	})
}

// Enqueue asks for a key to be advanced. It never blocks.
func (r *Runner) Enqueue(k Key) {
	r.init()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dirty[k] || r.stopped {
		return
	}
	r.dirty[k] = true
	if !r.busy[k] {
		r.queue = append(r.queue, k)
		r.ready.Signal()
	}
}

// Run advances keys until ctx is done. Sagas that are recorded as unfinished are queued first.
func (r *Runner) Run(ctx context.Context) error {
	r.init()
	stop := context.AfterFunc(ctx, r.stop)
	defer stop()
	var wg sync.WaitGroup
	for range max(r.Workers, 1) {
		wg.Go(func() {
			for k, ok := r.take(); ok; k, ok = r.take() {
				r.advance(ctx, k)
				r.done(k)
			}
		})
	}
	err := r.Engine.Unfinished(ctx, func(k Key) bool { r.Enqueue(k); return true })
	if err != nil && !errors.Is(err, context.Canceled) {
		r.stop()
	}
	wg.Wait()
	return err
}

func (r *Runner) advance(ctx context.Context, k Key) {
	var obs Observation
	if r.Observe != nil {
		obs = r.Observe(k)
	}
	res, err := r.Engine.Advance(ctx, k, obs)
	switch phase := res.State.Phase; {
	case err != nil:
		if _, _, transient := Problem(err); transient && ctx.Err() == nil {
			r.enqueueAfter(k, r.retry())
		}
	case phase.Terminal() || res.State.Parked != nil:
		r.Engine.Forget(k)
		if r.Finished != nil {
			r.Finished(k, res)
		}
	case !res.Wake.IsZero():
		r.enqueueAfter(k, res.Wake.Sub(r.Engine.Clock()))
	}
}

func (r *Runner) retry() time.Duration {
	if r.Retry > 0 {
		return r.Retry
	}
	return 100 * time.Millisecond
}

// enqueueAfter queues a key later. A timer that fires for nothing only costs a look.
func (r *Runner) enqueueAfter(k Key, d time.Duration) {
	time.AfterFunc(max(d, 0), func() { r.Enqueue(k) })
}

func (r *Runner) take() (Key, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) == 0 && !r.stopped {
		r.ready.Wait()
	}
	if r.stopped {
		return Key{}, false
	}
	k := r.queue[0]
	r.queue = r.queue[1:]
	delete(r.dirty, k)
	r.busy[k] = true
	return k, true
}

func (r *Runner) done(k Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, k)
	if r.dirty[k] {
		r.queue = append(r.queue, k)
		r.ready.Signal()
	}
}

func (r *Runner) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	r.ready.Broadcast()
}
