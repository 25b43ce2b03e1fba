package engine

import (
	"context"
	"slices"
	"sync"
)

// pool runs jobs, so many at once; the others wait their turn without a goroutine each. Jobs come in groups, one for each namespace: groups take turns, and none can take all places, so that
// somebody whose participants all hang does not hold up everybody else's sagas.
type pool struct {
	limit int

	mu      sync.Mutex
	active  int
	groups  map[string]*group // those of which a job runs or waits
	waiting []*group          // those of which a job waits, whose turn it is first
	drained chan struct{}     // closed when nothing is left; nil while nobody waits for it
}

// group is the jobs of one namespace.
type group struct {
	name   string
	active int
	queue  []func()
}

func newPool(limit int) *pool { return &pool{limit: limit, groups: map[string]*group{}} }

func (p *pool) submit(name string, job func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := p.groups[name]
	if g == nil {
		g = &group{name: name}
		p.groups[name] = g
	}
	if g.queue = append(g.queue, job); len(g.queue) == 1 {
		p.waiting = append(p.waiting, g)
	}
	if g, job := p.take(); job != nil {
		go p.work(g, job)
	}
}

// admits reports whether a group may have one place more. The last quarter of the places is for groups that have less than an eighth of them.
func (p *pool) admits(g *group) bool {
	return p.active < p.limit-p.limit/4 || p.active < p.limit && g.active < max(p.limit/8, 1)
}

// take removes the job whose turn it is, and gives it a place; nil when none may run. p.mu is held.
func (p *pool) take() (*group, func()) {
	for i, g := range p.waiting {
		if !p.admits(g) {
			continue
		}
		job := g.queue[0]
		g.queue[0] = nil
		g.queue = g.queue[1:]
		p.waiting = slices.Delete(p.waiting, i, i+1)
		if len(g.queue) > 0 {
			p.waiting = append(p.waiting, g) // behind the others
		} else {
			g.queue = nil
		}
		p.active++
		g.active++
		return g, job
	}
	return nil, nil
}

// work runs a job and then whatever waits, until nothing does that may run.
func (p *pool) work(g *group, job func()) {
	for job != nil {
		job()
		g, job = p.next(g)
	}
}

func (p *pool) next(done *group) (*group, func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active--
	if done.active--; done.active == 0 && len(done.queue) == 0 {
		delete(p.groups, done.name)
	}
	g, job := p.take()
	if p.active == 0 && p.drained != nil {
		close(p.drained)
		p.drained = nil
	}
	return g, job
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
