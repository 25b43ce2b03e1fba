package engine

import (
	"context"
	"sync"
)

// pool runs jobs, so many at once; the others wait their turn, first come first served, without a goroutine each.
type pool struct {
	limit int

	mu      sync.Mutex
	active  int
	queue   []func()
	drained chan struct{} // closed when nothing is left; nil while nobody waits for it
}

func newPool(limit int) *pool { return &pool{limit: limit} }

func (p *pool) submit(job func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active >= p.limit {
		p.queue = append(p.queue, job)
		return
	}
	p.active++
	go p.work(job)
}

// work runs a job and then whatever waits, until nothing does.
func (p *pool) work(job func()) {
	for job != nil {
		job()
		job = p.next()
	}
}

func (p *pool) next() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil
		if p.active--; p.active == 0 && p.drained != nil {
			close(p.drained)
			p.drained = nil
		}
		return nil
	}
	job := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	return job
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
