package simulation

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/controllers"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/participant"
	participanthttp "github.com/vextrus/saga-operator/internal/participant/http"
	"github.com/vextrus/saga-operator/internal/participant/message"
)

// nodeState is how far a node has come in its life.
type nodeState int

// The states of a node.
const (
	nodeUp nodeState = iota
	nodeStopping
	nodeDown
)

// node is one process of the operator.
type node struct {
	w     *World
	index int
	id    string // such as n1.2, the second life of the first node
	life  int
	state nodeState
	dead  bool          // guarded by the bus
	gone  chan struct{} // closed when it is dead
	clock func() time.Time

	ctx        context.Context
	cancel     context.CancelFunc
	engine     *engine.Engine
	reconciler *controllers.SagaReconciler
	callbacks  *engine.Callbacks
	answers    *message.Answers
	handlers   handler.TypedFuncs[*v1.Saga, engine.Key]
	queue      *keyQueue
	cache      *cacheOf
	looking    bool // for news
	again      bool

	mu    sync.Mutex
	ended []ending
	draws map[string]int
}

// ending is what a goroutine of a node came to.
type ending struct {
	name string
	take func()
}

// workers is how many sagas a node reconciles at once.
const workers = 4

// recoverEvery is how often a node queues everything that is unfinished.
const recoverEvery = 5 * time.Minute

func (w *World) startNode(index, life int) *node {
	n := &node{w: w, index: index, life: life, id: fmt.Sprintf("n%d.%d", index+1, life), draws: map[string]int{}, gone: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	store := &connection{s: w.store, n: n}
	skew := w.skew(index)
	n.clock = func() time.Time { return time.Now().Add(skew) }
	n.callbacks = &engine.Callbacks{Store: store, Clock: n.clock}
	log := slog.New(&alarm{n: n})
	kinds := participant.Registry{
		participanthttp.Kind: participanthttp.New(participanthttp.Options{Transport: n, Callbacks: n}),
		message.Kind:         message.New(n, engine.SourceOf),
	}
	n.answers = &message.Answers{Store: store, Logger: slog.New(slog.DiscardHandler)}
	n.reconciler = &controllers.SagaReconciler{
		Client: &kube{n: n}, Live: &live{n: n}, Logger: log, Random: func() uint64 { return n.draw("reconciler") }, Clock: n.clock,
	}
	var err error
	n.engine, err = engine.New(engine.Options{
		Store: store, Participants: kinds, Notify: n.reconciler.Enqueue, Logger: log, Plans: w.Plans,
		Random: func() uint64 { return n.draw("engine") }, NewID: n.newID, Workers: w.places(n.id), Memory: engine.Memory{States: w.stateMemory(n.id)}, Clock: n.clock,
	})
	if err != nil {
		panic(err)
	}
	n.reconciler.Engine = n.engine
	n.queue = newKeyQueue()
	n.handlers = n.reconciler.Drive(n.queue)
	n.cache = w.api.watch(n)
	w.note("start " + n.id)
	n.recover()
	w.lookForNews(n)
	return n
}

// longestSkew is the largest difference between an operator's clock and the world's time. Two clocks
// differ by twice that at most, which is less than saga.UndoMargin.
const longestSkew = 400 * time.Millisecond

// skew returns the difference between an operator's clock and the world's time; positive if the clock
// is ahead.
func (w *World) skew(index int) time.Duration {
	if w.Script != nil {
		if index < len(w.Script.Skews) {
			return w.Script.Skews[index]
		}
		return 0
	}
	return w.between("skew", fmt.Sprintf("n%d", index+1), 0, 2*longestSkew) - longestSkew
}

// places is how many attempts of a node run at once.
func (w *World) places(id string) int {
	if w.Script != nil {
		return cmp.Or(w.Script.Places, 64)
	}
	return pick(w.chance, "places", id, 2, 4, 64)
}

// stateMemory returns how much memory a node has for the states of sagas, in bytes: 0 for the
// default of the engine, or 1, so that the node keeps no state and loads each again.
func (w *World) stateMemory(id string) int64 {
	if w.Script != nil {
		return 0
	}
	return pick[int64](w.chance, "states", id, 0, 1)
}

// draw gives the product its chance. What is drawn must not depend on what other sagas do, which is not possible for everything that the product draws: the
// engine draws once for a decision. So a draw depends on the node and on a counter, and a world with one saga less may draw otherwise.
func (n *node) draw(what string) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.draws[what]++
	return n.w.draw(what, fmt.Sprintf("%s %d", n.id, n.draws[what]))
}

// newID makes ids of events that are the same in each run.
func (n *node) newID() (uuid.UUID, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.draws["id"]++
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], uint64(time.Now().UnixMilli())<<16)
	binary.BigEndian.PutUint64(id[8:], uint64(n.index)<<48|uint64(n.life)<<32|uint64(n.draws["id"]))
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id, nil
}

// spawn runs something on a node. What it returns is taken in by the driver, unless the node has died.
func (n *node) spawn(name string, run func(ctx context.Context) func()) {
	go func() {
		take := run(n.ctx)
		n.mu.Lock()
		n.ended = append(n.ended, ending{name, take})
		n.mu.Unlock()
		n.w.bus.tell()
	}()
}

// collect takes in what has ended, in the order of the names.
func (n *node) collect() {
	n.mu.Lock()
	ended := n.ended
	n.ended = nil
	n.mu.Unlock()
	if n.state == nodeDown {
		return
	}
	slices.SortFunc(ended, func(a, b ending) int { return strings.Compare(a.name, b.name) })
	for _, e := range ended {
		e.take()
	}
}

// offer says what the node could do now.
func (n *node) offer(offer func(name string, run func())) {
	if n.state == nodeDown {
		return
	}
	if e := n.cache.ready(); e != nil {
		offer(fmt.Sprintf("%s sees %s", n.id, e.name), n.cache.see)
	}
	if n.state != nodeUp || len(n.queue.busy) >= workers {
		return
	}
	for _, k := range n.queue.ready() {
		offer(fmt.Sprintf("%s reconciles %s", n.id, k.Name), func() { n.reconcile(k) })
	}
}

// busy reports whether the node has something in hand.
func (n *node) busy() bool {
	return n.state != nodeDown && (len(n.queue.busy) > 0 || len(n.queue.ready()) > 0 || n.looking || n.state == nodeStopping)
}

func (n *node) reconcile(k engine.Key) {
	n.queue.begin(k)
	n.spawn("reconcile "+k.Name, func(ctx context.Context) func() {
		res, err := n.reconciler.Reconcile(ctx, k)
		return func() { n.reconciled(k, res, err) }
	})
}

// reconciled does what a controller does with the result.
func (n *node) reconciled(k engine.Key, res reconcile.Result, err error) {
	n.queue.Done(k)
	switch {
	case err != nil:
		n.queue.AddRateLimited(k)
		n.w.later(retryIn, n, fmt.Sprintf("%s retries %s", n.id, k.Name), func() { n.queue.Add(k) })
	case res.RequeueAfter > 0:
		name := fmt.Sprintf("%s comes back to %s", n.id, k.Name)
		for _, e := range n.w.agenda { // as in a work queue, the sooner time counts
			if e.name == name {
				if at := time.Now().Add(res.RequeueAfter); at.Before(e.at) {
					e.at = at
				}
				return
			}
		}
		n.w.later(res.RequeueAfter, n, name, func() { n.queue.Add(k) })
	}
}

// recover queues everything that is unfinished, now and from time to time.
func (n *node) recover() {
	n.spawn("recover", func(ctx context.Context) func() {
		err := n.reconciler.Recover(ctx)
		return func() {
			next := recoverEvery
			if err != nil {
				next = retryIn
			}
			if err != nil || !n.w.calm() || !n.w.allEnded() {
				n.w.later(next, n, n.id+" recovers", n.recover)
			}
		}
	})
}

// lookForNews has a node look for answers and decisions that nobody was told of.
func (w *World) lookForNews(n *node) {
	if n.looking {
		n.again = true
		return
	}
	n.looking = true
	n.spawn("look for news", func(ctx context.Context) func() {
		err := n.engine.Answered(ctx, n.reconciler.Enqueue)
		return func() {
			n.looking = false
			switch {
			case n.state != nodeUp:
			case err != nil:
				n.again = false
				w.later(2*time.Second, n, n.id+" looks for news again", func() { w.lookForNews(n) })
			case n.again:
				n.again = false
				w.lookForNews(n)
			}
		}
	})
}

// kill ends a node at once: nothing that it has under way goes on.
func (w *World) kill(n *node) {
	if n.state == nodeDown {
		return
	}
	n.state = nodeDown
	w.bus.kill(n)
	close(n.gone)
	n.cancel()
	w.agenda = slices.DeleteFunc(w.agenda, func(e *entry) bool { return e.node == n })
}

// stop ends a node gracefully: it reconciles nothing more, and its attempts may end.
func (w *World) stop(n *node, grace time.Duration) {
	if n.state != nodeUp {
		return
	}
	n.state = nodeStopping
	n.cancel()
	n.spawn("stop", func(context.Context) func() {
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		_ = n.engine.Shutdown(ctx)
		return func() {
			w.note(n.id + " has stopped")
			w.kill(n)
		}
	})
}

// Issue implements the callbacks of the HTTP participant.
func (n *node) Issue(ctx context.Context, call participant.Call, within time.Duration) (string, error) {
	token, err := n.callbacks.Issue(ctx, call, within)
	return "http://operator/callbacks/" + token, err
}

// alarm is a log of which only panics matter.
type alarm struct{ n *node }

func (a *alarm) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

func (a *alarm) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	panicked := false
	r.Attrs(func(at slog.Attr) bool {
		panicked = panicked || at.Key == "panic" || strings.Contains(at.Value.String(), "panicked")
		fmt.Fprintf(&b, " %s=%v", at.Key, at.Value)
		return true
	})
	if panicked {
		a.n.mu.Lock()
		defer a.n.mu.Unlock()
		a.n.w.books.panics = append(a.n.w.books.panics, r.Message+b.String())
	}
	return nil
}

func (a *alarm) WithAttrs([]slog.Attr) slog.Handler { return a }
func (a *alarm) WithGroup(string) slog.Handler      { return a }

// keyQueue is a work queue from which the driver picks. A key that is being reconciled is not ready before that is over.
type keyQueue struct {
	mu    sync.Mutex
	dirty map[engine.Key]bool
	busy  map[engine.Key]bool
	fails map[engine.Key]int
}

var _ workqueue.TypedRateLimitingInterface[engine.Key] = (*keyQueue)(nil)

func newKeyQueue() *keyQueue {
	return &keyQueue{dirty: map[engine.Key]bool{}, busy: map[engine.Key]bool{}, fails: map[engine.Key]int{}}
}

func (q *keyQueue) Add(k engine.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dirty[k] = true
}

// ready returns the keys that can be reconciled.
func (q *keyQueue) ready() []engine.Key {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.DeleteFunc(slices.Collect(maps.Keys(q.dirty)), func(k engine.Key) bool { return q.busy[k] })
}

func (q *keyQueue) begin(k engine.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.dirty, k)
	q.busy[k] = true
}

func (q *keyQueue) Done(k engine.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.busy, k)
}

// The rest of a work queue, which the driver of a simulation does itself.
func (q *keyQueue) AddRateLimited(k engine.Key)            { q.fails[k]++ }
func (q *keyQueue) AddAfter(k engine.Key, _ time.Duration) { q.Add(k) }
func (q *keyQueue) Forget(k engine.Key)                    { delete(q.fails, k) }
func (q *keyQueue) NumRequeues(k engine.Key) int           { return q.fails[k] }
func (q *keyQueue) Get() (k engine.Key, shutdown bool)     { return k, true }
func (q *keyQueue) Len() int                               { return len(q.dirty) }
func (q *keyQueue) ShutDown()                              {}
func (q *keyQueue) ShutDownWithDrain()                     {}
func (q *keyQueue) ShuttingDown() bool                     { return false }
