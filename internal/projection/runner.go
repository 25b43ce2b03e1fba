package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// How a runner polls when nobody wakes it, and how often it puts a checkpoint down that has moved without an event of its own.
const (
	minPoll   = 5 * time.Millisecond
	maxPoll   = time.Second
	saveEvery = 200 * time.Millisecond
	// aliveEvery is how often it is put down although nothing has been appended: somebody may wait for a transaction that brought no event.
	aliveEvery = time.Second
	// superviseEvery is how often generations are looked for that nobody feeds.
	superviseEvery = time.Second
)

// Options are what a runner works with. Pool and Store are required.
type Options struct {
	Pool *pgxpool.Pool
	// Store is read from; it has to be on the same database.
	Store eventstore.Store
	// Owner names this process in the leases; made up by default.
	Owner string
	// Lease is how long a replica that has died holds its projections up; 10 s by default.
	Lease time.Duration
	// Patience bounds how long a handler may take for one event, and a page of events together; 20 s by default.
	Patience time.Duration
	// Page is how many events are handled in one transaction; 1000 by default.
	Page    int
	Logger  *slog.Logger
	Metrics prometheus.Registerer
	// Inline are projections that move with the appends themselves, through an InlineStore. The runner only builds them anew.
	Inline []*Definition
}

// Runner keeps read models up to date. Any number of replicas may run one each: a lease in the database decides who feeds what, and a commit of one that has lost its
// lease is refused there.
type Runner struct {
	pool     *pgxpool.Pool
	store    eventstore.Store
	owner    string
	lease    time.Duration
	patience time.Duration
	page     int
	log      *slog.Logger
	metrics  *metrics
	defs     []*Definition
	inline   map[string]bool
	wake     wake
}

// NewRunner returns a runner for some projections, each defined once.
func NewRunner(o Options, defs ...*Definition) (*Runner, error) {
	if o.Pool == nil || o.Store == nil {
		return nil, errors.New("making a projection runner: Pool and Store are required")
	}
	all := append(append([]*Definition(nil), defs...), o.Inline...)
	if err := check(all); err != nil {
		return nil, err
	}
	r := &Runner{
		pool: o.Pool, store: o.Store, owner: o.Owner, lease: o.Lease, patience: o.Patience, page: o.Page, log: o.Logger,
		defs: all, inline: map[string]bool{},
	}
	for _, d := range o.Inline {
		r.inline[d.name] = true
	}
	if r.owner == "" {
		host, _ := os.Hostname() // a name for people; without it the rest is enough
		r.owner = host + "_" + uuid.NewString()
	}
	if r.lease <= 0 {
		r.lease = 10 * time.Second
	}
	if r.patience <= 0 {
		r.patience = 20 * time.Second
	}
	if r.page <= 0 {
		r.page = 1000
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	var err error
	r.metrics, err = newMetrics(o.Metrics)
	return r, err
}

// Wake tells the runner that something has been appended, so that it need not wait for its next poll. It never blocks.
func (r *Runner) Wake() { r.wake.signal() }

// Prepare makes the first generations of the projections where they are missing. Run does so too; a service that appends inline wants them before its first append.
func (r *Runner) Prepare(ctx context.Context) error {
	for _, def := range r.defs {
		if err := r.ensure(ctx, def); err != nil {
			return fmt.Errorf("preparing projection %s: %w", def.name, err)
		}
	}
	return nil
}

// Run feeds the projections until ctx is done. Errors of one projection hold no other up; what passes by itself is tried again.
func (r *Runner) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, def := range r.defs {
		wg.Go(func() { r.supervise(ctx, def) })
	}
	wg.Wait()
	return nil
}

// supervise sees to it that each generation of a projection that this binary knows is fed by somebody.
func (r *Runner) supervise(ctx context.Context, def *Definition) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var fed sync.Map // the generations that goroutines of this process are busy with
	for ctx.Err() == nil {
		var all []State
		err := guarded(func() (err error) { all, err = r.look(ctx, def); return err })
		if err != nil && ctx.Err() == nil {
			r.log.Warn("a projection cannot be looked up and is tried again", "projection", def.name, "error", err)
		}
		for _, s := range all {
			if s.Version != def.version || s.Inline && s.Status == statusLive {
				continue
			}
			if _, busy := fed.LoadOrStore(s.Generation, true); busy {
				continue
			}
			wg.Go(func() {
				defer fed.Delete(s.Generation)
				r.feedSafely(ctx, def, s.Generation)
			})
		}
		if wait(ctx, nil, superviseEvery) != nil {
			return
		}
	}
}

// look returns the generations of a projection, after those that ought to be there have been made and those that are of no use any more removed.
func (r *Runner) look(ctx context.Context, def *Definition) ([]State, error) {
	if err := r.ensure(ctx, def); err != nil {
		return nil, err
	}
	all, err := generations(ctx, r.pool, def.name)
	if err != nil {
		return nil, err
	}
	return all, r.removeRetired(ctx, def)
}

// feedSafely feeds a generation, and waits after an error so that it is not tried in a hot loop.
func (r *Runner) feedSafely(ctx context.Context, def *Definition, generation int) {
	err := guarded(func() error { return r.feed(ctx, def, generation) })
	if err == nil || ctx.Err() != nil {
		return
	}
	if errors.Is(err, errStale) {
		r.log.Info("a projection is somebody else's now", "projection", def.name, "generation", generation)
		return
	}
	r.log.Warn("a projection is held up and tried again", "projection", def.name, "generation", generation, "error", err)
	_ = wait(ctx, nil, jitter(superviseEvery))
}

// guarded makes an error of a panic: it ends neither the process nor what else this process feeds.
func guarded(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return do()
}

// ensure makes the first generation of a projection, and one to build where the code is newer than the read model. The read model of newer code is left alone.
func (r *Runner) ensure(ctx context.Context, def *Definition) error {
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		all, err := generations(ctx, tx, def.name)
		if err != nil {
			return err
		}
		newest, building := 0, 0
		for _, s := range all {
			if s.Version == def.version && s.Inline != r.inline[def.name] {
				return errMode(s.Version, s.Inline)
			}
			newest = max(newest, s.Version)
			if s.Status == statusBuilding {
				building = s.Version
			}
		}
		switch {
		case len(all) == 0:
			_, err = tx.Exec(ctx, `INSERT INTO projections (name, generation, version, status, inline)
				SELECT $1, coalesce(max(generation), 0) + 1, $2, 'live', $3 FROM projections WHERE name = $1 ON CONFLICT DO NOTHING`, def.name, def.version, r.inline[def.name])
		case newest < def.version:
			if building > 0 {
				if _, err := tx.Exec(ctx, `UPDATE projections SET status = 'retired' WHERE name = $1 AND status = 'building'`, def.name); err != nil {
					return err
				}
			}
			err = beginBuilding(ctx, tx, def.name, def.version, r.inline[def.name])
		}
		return err
	})
}

// beginBuilding makes a generation beside the live one. Where somebody else has just done so it does nothing.
func beginBuilding(ctx context.Context, db database, name string, version int, inline bool) error {
	_, err := db.Exec(ctx, `INSERT INTO projections (name, generation, version, status, inline)
		SELECT $1, max(generation) + 1, $2, 'building', $3 FROM projections WHERE name = $1 ON CONFLICT DO NOTHING`, name, version, inline)
	if err != nil {
		return fmt.Errorf("beginning to build projection %s anew: %w", name, err)
	}
	return nil
}

// wake is a signal to everybody who waits at the moment.
type wake struct {
	mu sync.Mutex
	ch chan struct{}
}

func (w *wake) subscribe() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ch == nil {
		w.ch = make(chan struct{})
	}
	return w.ch
}

func (w *wake) signal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ch != nil {
		close(w.ch)
		w.ch = nil
	}
}
