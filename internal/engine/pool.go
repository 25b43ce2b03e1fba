package engine

import (
	"context"
	"sync"

	"github.com/vextrus/saga-operator/internal/panics"
	"github.com/vextrus/saga-operator/internal/turns"
)

// pool runs jobs, at most a number of them at once. The others wait their turn without a goroutine each.
// Jobs belong to namespaces, which take turns. A running job cannot be preempted, so a namespace gets at
// most half of the places that the others leave, and an eighth of the places is for namespaces that have
// none: one whose participants all hang does not hold up the sagas of another.
type pool struct {
	limit    int
	reserved int // places for namespaces that have none

	mu      sync.Mutex
	active  int
	places  map[string]int // of each namespace
	waiting turns.Queue[*job]
	drained chan struct{} // closed when nothing is left; nil while no call of drain waits
}

// job is what a pool runs.
type job struct {
	namespace string
	run       func()
}

func newPool(limit int) *pool {
	return &pool{limit: limit, reserved: min((limit+7)/8, limit-1), places: map[string]int{}}
}

func (p *pool) submit(namespace string, run func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting.Push(namespace, false, &job{namespace: namespace, run: run})
	p.start()
}

// start runs the jobs that wait and may run. p.mu is held.
func (p *pool) start() {
	for j := p.take(); j != nil; j = p.take() {
		go p.work(j)
	}
}

// take removes the job whose turn it is, and gives it a place; nil when none may run. p.mu is held.
func (p *pool) take() *job {
	j, ok := p.waiting.Pop(p.admits)
	if !ok {
		return nil
	}
	p.active++
	p.places[j.namespace]++
	return j
}

// admits reports whether a namespace may have one place more. p.mu is held.
func (p *pool) admits(namespace string) bool {
	own := p.places[namespace]
	if own == 0 {
		return p.active < p.limit
	}
	shared := p.limit - p.reserved
	left := shared - (p.active - own) // by the others
	return p.active < shared && own < (left+1)/2
}

// work runs a job and then whatever waits, until nothing does that may run.
func (p *pool) work(j *job) {
	for j != nil {
		runSafely(j.run)
		j = p.next(j)
	}
}

// runSafely runs a job. Jobs recover from their own panics; this is for the rest of them, because the
// place of a job has to be given back.
func runSafely(run func()) {
	defer panics.Recover(nil, "running a job of the engine")
	run()
}

func (p *pool) next(done *job) *job {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active--
	if p.places[done.namespace]--; p.places[done.namespace] == 0 {
		delete(p.places, done.namespace)
	}
	j := p.take()
	p.start() // one place less for a namespace may be one more for two others
	if p.active == 0 && p.drained != nil {
		close(p.drained)
		p.drained = nil
	}
	return j
}

// drain waits until no job runs or waits.
func (p *pool) drain(ctx context.Context) error {
	p.mu.Lock()
	if p.active == 0 {
		p.mu.Unlock()
		return nil
	}
	if p.drained == nil {
		p.drained = make(chan struct{})
	}
	drained := p.drained
	p.mu.Unlock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
