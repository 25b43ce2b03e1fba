// Package keyqueue is a work queue of keys for tests, benchmarks and examples: each key is advanced
// by one worker at a time, as a controller would do it.
package keyqueue

import (
	"cmp"
	"context"
	"sync"
	"time"
)

// Never is the pause of a key that does not come again by itself.
const Never time.Duration = -1

// Queue advances keys. Its exported fields are set before Run.
type Queue[K comparable] struct {
	// Workers is how many keys are advanced at once; 1 by default.
	Workers int
	// Advance moves a key and returns the pause after which the key comes again, or Never. With an
	// error the pause is Retry instead, unless it is Never.
	Advance func(context.Context, K) (again time.Duration, err error)
	// Retry is the pause after an error; 100 ms by default.
	Retry time.Duration

	once  sync.Once
	mu    sync.Mutex
	ready *sync.Cond
	queue []K
	// dirty has the keys that are queued, or will be when their worker is done; busy has the keys
	// that a worker advances.
	dirty, busy map[K]bool
	stopped     bool
}

func (q *Queue[K]) init() {
	q.once.Do(func() {
		q.ready = sync.NewCond(&q.mu)
		q.dirty, q.busy = map[K]bool{}, map[K]bool{}
	})
}

// Enqueue asks for a key to be advanced. It never blocks, and may be called before Run.
func (q *Queue[K]) Enqueue(key K) {
	q.init()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dirty[key] || q.stopped {
		return
	}
	q.dirty[key] = true
	if !q.busy[key] {
		q.queue = append(q.queue, key)
		q.ready.Signal()
	}
}

// Run advances keys until ctx is done, and returns when no worker is busy.
func (q *Queue[K]) Run(ctx context.Context) {
	q.init()
	stop := context.AfterFunc(ctx, q.stop)
	defer stop()
	var wg sync.WaitGroup
	for range max(q.Workers, 1) {
		wg.Go(func() {
			for key, ok := q.take(); ok; key, ok = q.take() {
				q.advance(ctx, key)
				q.done(key)
			}
		})
	}
	wg.Wait()
}

func (q *Queue[K]) advance(ctx context.Context, key K) {
	again, err := q.Advance(ctx, key)
	if again < 0 || err != nil && ctx.Err() != nil {
		return
	}
	if err != nil {
		again = cmp.Or(q.Retry, 100*time.Millisecond)
	}
	time.AfterFunc(again, func() { q.Enqueue(key) })
}

func (q *Queue[K]) take() (key K, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queue) == 0 && !q.stopped {
		q.ready.Wait()
	}
	if q.stopped {
		return key, false
	}
	key = q.queue[0]
	q.queue = q.queue[1:]
	delete(q.dirty, key)
	q.busy[key] = true
	return key, true
}

func (q *Queue[K]) done(key K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.busy, key)
	if q.dirty[key] {
		q.queue = append(q.queue, key)
		q.ready.Signal()
	}
}

func (q *Queue[K]) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	q.ready.Broadcast()
}
