package controllers

import (
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/panics"
	"github.com/vextrus/saga-operator/internal/turns"
)

// fairQueue is a work queue for which namespaces take turns. Within a namespace, sagas for which an outcome
// waits come first: when there are more than can be driven, it is better to finish the ones that have begun
// than to begin more.
//
// It does not use the delaying queue of client-go, which remembers the time of a key until it has come, even
// if the key has been handed out since: a saga that ends would be remembered until its deadline.
type fairQueue struct {
	workqueue.TypedInterface[engine.Key]
	order   *fairOrder
	limiter workqueue.TypedRateLimiter[engine.Key]

	mu    sync.Mutex
	later map[engine.Key]*delayed
}

// delayed is a key that is added at a time.
type delayed struct {
	at    time.Time
	timer *time.Timer
}

func newFairQueue(name string, limiter workqueue.TypedRateLimiter[engine.Key]) *fairQueue {
	o := &fairOrder{urgent: map[engine.Key]bool{}, places: map[engine.Key]*turns.Item[engine.Key]{}}
	return &fairQueue{
		TypedInterface: workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[engine.Key]{Name: name, Queue: o}),
		order:          o, limiter: limiter, later: map[engine.Key]*delayed{},
	}
}

// AddUrgent adds a key ahead of the others of its namespace. If the key waits already, it gets ahead.
func (q *fairQueue) AddUrgent(k engine.Key) {
	q.order.markUrgent(k)
	q.Add(k)
}

// AddAfter adds a key after a time, unless it is handed out before. Of several times the earliest holds.
func (q *fairQueue) AddAfter(k engine.Key, after time.Duration) {
	if after <= 0 {
		q.Add(k)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	at := time.Now().Add(after)
	if q.ShuttingDown() {
		return
	}
	if d := q.later[k]; d != nil {
		if d.at.Before(at) {
			return
		}
		d.timer.Stop()
	}
	d := &delayed{at: at}
	d.timer = time.AfterFunc(after, func() {
		defer panics.Recover(nil, "queueing a saga that was delayed")
		q.due(k, d)
	})
	q.later[k] = d
}

// due adds a key whose time has come.
func (q *fairQueue) due(k engine.Key, d *delayed) {
	q.mu.Lock()
	current := q.later[k] == d
	if current {
		delete(q.later, k)
	}
	q.mu.Unlock()
	if current {
		q.Add(k)
	}
}

// AddRateLimited adds a key after the time that the rate limiter says.
func (q *fairQueue) AddRateLimited(k engine.Key) { q.AddAfter(k, q.limiter.When(k)) }

// Forget tells the rate limiter that a key does not fail any more.
func (q *fairQueue) Forget(k engine.Key) { q.limiter.Forget(k) }

// NumRequeues returns how often a key has failed in a row.
func (q *fairQueue) NumRequeues(k engine.Key) int { return q.limiter.NumRequeues(k) }

// Get returns the next key, and drops the time at which it would be added. After ShutDown it returns none,
// although some may wait: reconciling them with a context that has ended fails.
func (q *fairQueue) Get() (engine.Key, bool) {
	k, down := q.TypedInterface.Get()
	if down {
		return k, true
	}
	if q.ShuttingDown() {
		q.Done(k)
		return engine.Key{}, true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if d := q.later[k]; d != nil {
		d.timer.Stop()
		delete(q.later, k)
	}
	return k, false
}

// ShutDown ends the queue: nothing is added or handed out any more.
func (q *fairQueue) ShutDown() {
	q.TypedInterface.ShutDown()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.later {
		d.timer.Stop()
	}
	clear(q.later)
}

// ShutDownWithDrain is ShutDown: what waits is found again by the recovery.
func (q *fairQueue) ShutDownWithDrain() { q.ShutDown() }

// fairOrder is the order of the keys that wait. The work queue calls the methods of [workqueue.Queue] one at
// a time.
type fairOrder struct {
	waiting turns.Queue[engine.Key]
	places  map[engine.Key]*turns.Item[engine.Key]

	mu     sync.Mutex
	urgent map[engine.Key]bool // keys for which an outcome waits
}

func (o *fairOrder) markUrgent(k engine.Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.urgent[k] = true
}

func (o *fairOrder) isUrgent(k engine.Key) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.urgent[k]
}

// Push implements [workqueue.Queue].
func (o *fairOrder) Push(k engine.Key) {
	o.places[k] = o.waiting.Push(k.Namespace, o.isUrgent(k), k)
}

// Touch implements [workqueue.Queue].
func (o *fairOrder) Touch(k engine.Key) {
	if o.isUrgent(k) {
		o.waiting.Hasten(o.places[k])
	}
}

// Len implements [workqueue.Queue].
func (o *fairOrder) Len() int { return o.waiting.Len() }

// Pop implements [workqueue.Queue].
func (o *fairOrder) Pop() engine.Key {
	k, _ := o.waiting.Pop(nil)
	delete(o.places, k)
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.urgent, k)
	return k
}
