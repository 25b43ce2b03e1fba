package simulation

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
)

// Config says which world is made.
type Config struct {
	Seed  uint64
	Sagas int
	// Without names happenings (sagas, acts of users, crashes, faults of single calls) that do not happen. Shrinking adds to it.
	Without map[string]bool
	// Script takes the place of chance, for a case that is written by hand.
	Script *Script
	// LoseCommits has the store lose its last commits now and then, as a promoted standby may.
	LoseCommits bool
	// Plans may be shared by the runs of one process: they change nothing but speed.
	Plans *engine.Plans
	// Trace keeps what happens as text; without it only its hash is kept.
	Trace bool
}

// How long a world lasts.
const (
	storm   = 90 * time.Second // in which things fail
	bound   = 2 * time.Hour    // after the storm, by which every saga has ended or is parked
	maxStep = 200_000          // of one world
	retryIn = 500 * time.Millisecond
)

// World is everything around two operators.
type World struct {
	chance
	Config
	start time.Time
	bus   *bus
	store *store
	api   *apiServer
	nodes []*node
	sagas []*testSaga
	net   *network
	books *books

	agenda  []*entry
	step    int
	lines   []string
	digest  uint64
	faults  map[string]fate // of calls, by name
	met     map[class]map[fate]int
	happens []string // the happenings of this world, in the order of their making
	errs    []violation
}

// entry is something that happens at a time.
type entry struct {
	at   time.Time
	name string
	node *node // with which it is gone; nil for the world's own
	run  func()
}

// Run makes a world, lets it go on until nothing is left to happen, and returns what a checker says.
func Run(t *testing.T, cfg Config) *Report {
	var r *Report
	synctest.Test(t, func(*testing.T) {
		w := newWorld(cfg)
		defer w.end()
		w.Run()
		r = w.report()
	})
	return r
}

func newWorld(cfg Config) *World {
	w := &World{
		chance: chance{cfg.Seed}, Config: cfg, start: time.Now(), faults: map[string]fate{}, met: map[class]map[fate]int{}, digest: fnv.New64a().Sum64(),
	}
	if w.Plans == nil {
		w.Plans = engine.NewPlans()
	}
	w.bus, w.books = newBus(w), newBooks(w)
	w.store, w.api, w.net = newStore(w), newAPIServer(w), newNetwork(w)
	n := 2
	if w.Script != nil {
		n = max(w.Script.Nodes, 1)
	}
	w.nodes = make([]*node, n)
	w.plan()
	for i := range w.nodes {
		w.nodes[i] = w.startNode(i, 1)
	}
	return w
}

// Run lets the world go on until every saga has ended or is parked and nothing is left to happen.
func (w *World) Run() {
	for {
		synctest.Wait()
		w.collect()
		if w.step++; w.step > maxStep {
			w.fail(violation{rule: ruleEnds, text: "the world does not come to rest"})
			return
		}
		if m := w.next(); m != nil {
			w.note(m.name)
			m.run()
			continue
		}
		wait, more := w.untilNext()
		if !more || time.Since(w.start) > w.longest() {
			return
		}
		select {
		case <-w.bus.news:
		case <-time.After(wait):
		}
	}
}

// longest is how long a world may last.
func (w *World) longest() time.Duration {
	if w.Script != nil {
		return storm + 3*keyRetention
	}
	return storm + bound
}

// calm reports whether nothing fails any more.
func (w *World) calm() bool { return time.Since(w.start) >= storm || w.Script != nil }

// move is something that can happen now.
type move struct {
	name string
	rank uint64
	run  func()
}

// next returns the move that happens next; nil when nothing can happen before time passes.
func (w *World) next() *move {
	var best *move
	now := time.Now()
	offer := func(name string, run func()) {
		m := &move{name: name, rank: w.draw("rank", name), run: run}
		if best == nil || cmp.Or(cmp.Compare(m.rank, best.rank), cmp.Compare(m.name, best.name)) < 0 {
			best = m
		}
	}
	w.bus.mu.Lock()
	for _, c := range w.bus.parked {
		if c.urgent || !c.at.After(now) {
			offer(c.name, func() { w.release(c) })
		}
	}
	w.bus.mu.Unlock()
	for _, e := range w.agenda {
		if !e.at.After(now) {
			offer(e.name, func() { w.drop(e); e.run() })
		}
	}
	for _, n := range w.nodes {
		n.offer(offer)
	}
	return best
}

// release lets a parked call go on, with the fate that is drawn for it.
func (w *World) release(c *call) {
	f := w.fateOf(c)
	if w.met[c.class] == nil {
		w.met[c.class] = map[fate]int{}
	}
	w.met[c.class][f]++
	if f != done {
		w.faults[c.name] = f
		w.note("  " + string(f))
	}
	w.bus.take(c, f)
}

// untilNext returns how long to wait until something can happen; false when nothing ever will.
func (w *World) untilNext() (time.Duration, bool) {
	const tick = time.Minute // timers that the world does not see, such as the time-outs of calls, wake it by themselves
	wait, more := tick, false
	sooner := func(at time.Time) { wait, more = min(wait, time.Until(at)), true }
	for _, e := range w.agenda {
		sooner(e.at)
	}
	w.bus.mu.Lock()
	for _, c := range w.bus.parked {
		sooner(c.at)
	}
	more = more || w.bus.hanging > 0
	w.bus.mu.Unlock()
	for _, n := range w.nodes {
		if n.state == nodeDown {
			continue
		}
		if at, ok := n.cache.until(); ok {
			sooner(at)
		}
		more = more || n.busy()
	}
	return max(wait, 0), more
}

// later puts something on the agenda.
func (w *World) later(d time.Duration, n *node, name string, run func()) {
	w.agenda = append(w.agenda, &entry{at: time.Now().Add(d), name: name, node: n, run: run})
}

func (w *World) drop(e *entry) {
	w.agenda = slices.DeleteFunc(w.agenda, func(o *entry) bool { return o == e })
}

// happening reports whether a happening of the plan takes place, and remembers it.
func (w *World) happening(name string) bool {
	if w.Without[name] {
		return false
	}
	w.happens = append(w.happens, name)
	return true
}

// note adds a line to the trace.
func (w *World) note(line string) {
	const prime = 1099511628211
	for i := range len(line) {
		w.digest = (w.digest ^ uint64(line[i])) * prime
	}
	w.digest = (w.digest ^ uint64(time.Since(w.start))) * prime
	if w.Trace {
		w.lines = append(w.lines, fmt.Sprintf("%5d %12s  %s", w.step, time.Since(w.start), line))
	}
}

func (w *World) fail(v violation) { w.errs = append(w.errs, v) }

// collect takes in what has ended since the last move.
func (w *World) collect() {
	for _, n := range w.nodes {
		n.collect()
	}
}

// end lets nothing go on: a bubble may not leave goroutines behind.
func (w *World) end() {
	for _, n := range w.nodes {
		w.kill(n)
	}
	synctest.Wait()
}
