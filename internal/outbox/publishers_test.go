package outbox_test

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/vextrus/saga-operator/internal/outbox"
)

// slow holds every call up until its gate opens or the call is given up.
type slow struct {
	gate  chan struct{}
	began chan struct{}
	batch int
	calls atomic.Int64
	given atomic.Bool
}

func (s *slow) Check(context.Context) error { return nil }
func (s *slow) Close() error                { return nil }
func (s *slow) Limits() outbox.Limits       { return outbox.Limits{Batch: s.batch, Parallel: 1} }

func (s *slow) Publish(ctx context.Context, all []outbox.Message) []error {
	s.calls.Add(1)
	s.began <- struct{}{}
	errs := make([]error, len(all))
	select {
	case <-s.gate:
	case <-ctx.Done():
		s.given.Store(true)
		<-s.gate // whatever a broker does then
		for i := range errs {
			errs[i] = ctx.Err()
		}
	}
	return errs
}

// gathered is one destination with several publishers.
type gathered struct {
	mu    sync.Mutex
	taken []outbox.Message
	from  map[string]int
}

func (g *gathered) publisher(name string) outbox.Publisher { return &part{g, name} }

func (g *gathered) len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.taken)
}

func (g *gathered) all() []outbox.Message {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]outbox.Message(nil), g.taken...)
}

func (g *gathered) by() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	by := map[string]int{}
	for name, n := range g.from {
		by[name] = n
	}
	return by
}

type part struct {
	*gathered
	name string
}

func (*part) Check(context.Context) error { return nil }
func (*part) Close() error                { return nil }
func (*part) Limits() outbox.Limits       { return outbox.Limits{Batch: 10, Parallel: 1} }

func (p *part) Publish(_ context.Context, all []outbox.Message) []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.from == nil {
		p.from = map[string]int{}
	}
	p.taken = append(p.taken, all...)
	p.from[p.name] += len(all)
	return make([]error, len(all))
}

// owners are how many shards each relay has.
func (r *rig) owners() map[string]int {
	r.t.Helper()
	rows, err := r.pool.Query(r.ctx, `SELECT owner, count(*)::int FROM outbox_readers WHERE lease_until > now() GROUP BY owner`)
	if err != nil {
		r.t.Fatal(err)
	}
	defer rows.Close()
	all := map[string]int{}
	for rows.Next() {
		var owner string
		var n int
		if err := rows.Scan(&owner, &n); err != nil {
			r.t.Fatal(err)
		}
		all[owner] = n
	}
	return all
}
