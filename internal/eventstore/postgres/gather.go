package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

const (
	// maxFlush bounds the appends of one transaction: more of them gain nothing, and all of them wait for it.
	maxFlush = 100
	// maxFlushBytes bounds their size: large ones need no company.
	maxFlushBytes = 8 << 20
	// flushTimeout bounds a transaction. Callers have contexts of their own; a flush belongs to all of them.
	flushTimeout = 30 * time.Second
)

// Gathering is a Store that commits the appends of many callers together. Each append still succeeds or loses by itself; what is shared is the round trip
// and the commit, which cost most. There is no timer: whatever has come together while earlier flushes were under way goes into the next one, so an
// append that finds nobody else waits for nobody.
type Gathering struct {
	*Store
	flushers int

	mu     sync.Mutex
	queue  []*pending
	active int
}

var _ eventstore.Store = (*Gathering)(nil)

// pending is an append that waits for its flush.
type pending struct {
	append    *eventstore.Append
	args      []any
	bytes     int
	done      chan struct{}
	version   int64
	err       error
	abandoned bool // guarded by Gathering.mu
}

// NewGathering returns a store on a pool that runs up to so many flushes at once; two are enough to keep the database busy while results are handed out.
// It takes as many of the pool's connections.
func NewGathering(pool *pgxpool.Pool, flushers int) *Gathering {
	return &Gathering{Store: New(pool), flushers: max(flushers, 1)}
}

// Append implements eventstore.Store. When ctx ends first, the append has not been sent or its fate is unknown; either way nothing is half done.
func (g *Gathering) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if err := a.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	args, err := arguments(&a)
	if err != nil {
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, err)
	}
	if err := ctx.Err(); err != nil {
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, err)
	}
	p := &pending{append: &a, args: args, bytes: size(&a), done: make(chan struct{})}
	g.enqueue(p)
	select {
	case <-p.done:
		return eventstore.Appended{Version: p.version}, p.err
	case <-ctx.Done():
		g.mu.Lock()
		p.abandoned = true
		g.mu.Unlock()
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, ctx.Err())
	}
}

func (g *Gathering) enqueue(p *pending) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = append(g.queue, p)
	if g.active < g.flushers {
		g.active++
		go g.flushAll()
	}
}

// flushAll flushes until nothing waits.
func (g *Gathering) flushAll() {
	for batch := g.take(); len(batch) > 0; batch = g.take() {
		g.flush(batch)
	}
}

// take removes the next batch from the queue: the oldest appends, one of each stream. An empty batch ends its flusher.
func (g *Gathering) take() []*pending {
	g.mu.Lock()
	defer g.mu.Unlock()
	var batch, rest []*pending
	bytes := 0
	streams := make(map[string]bool, min(len(g.queue), maxFlush))
	for _, p := range g.queue {
		switch {
		case p.abandoned: // nobody waits for it, and it has not been sent
		case len(batch) < maxFlush && (len(batch) == 0 || bytes+p.bytes <= maxFlushBytes) && !streams[p.append.Stream]:
			bytes += p.bytes
			streams[p.append.Stream] = true
			batch = append(batch, p)
		default:
			rest = append(rest, p)
		}
	}
	g.queue = rest
	if len(batch) == 0 {
		g.active--
	}
	return batch
}

// size is about how many bytes an append sends.
func size(a *eventstore.Append) int {
	n := 0
	for i := range a.Events {
		n += len(a.Events[i].Data)
	}
	for i := range a.Messages {
		n += len(a.Messages[i].Data)
	}
	if a.State != nil {
		n += len(a.State.State)
	}
	return n
}

// flush commits a batch in one transaction and one round trip. A panic in the driver is this batch's, not the process's: what became of it is unknown.
func (g *Gathering) flush(batch []*pending) {
	defer func() {
		if r := recover(); r != nil {
			for _, p := range batch {
				p.finish(0, fmt.Errorf("appending to stream %s: %w: panic: %v", p.append.Stream, eventstore.ErrUnavailable, r))
			}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	// Rows are locked in one order everywhere, so that two flushes, of two processes perhaps, never wait for each other in a circle.
	slices.SortFunc(batch, func(a, b *pending) int { return strings.Compare(a.append.Stream, b.append.Stream) })
	results, err := g.send(ctx, batch)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && len(batch) > 1 {
		// One append that the server refuses takes the whole transaction with it. Nothing was committed, so each is tried alone and gets its own answer.
		for _, p := range batch {
			done, err := g.Store.Append(ctx, *p.append)
			p.finish(done.Version, err)
		}
		return
	}
	for i, p := range batch {
		switch {
		case err != nil:
			p.finish(0, appendError(p.append, err))
		case !results[i].done:
			p.finish(0, &eventstore.WrongVersionError{Stream: p.append.Stream, Expected: p.append.Expected, Actual: results[i].version})
		default:
			p.finish(results[i].version, nil)
		}
	}
}

// result is what the server-side function answers.
type result struct {
	done    bool
	version int64
}

// send runs a batch. The statements of a pipeline without a transaction of its own are one: all of them are committed when the last one has succeeded, or none.
func (g *Gathering) send(ctx context.Context, batch []*pending) ([]result, error) {
	b := &pgx.Batch{}
	for _, p := range batch {
		b.Queue(appendSQL, p.args...)
	}
	answers := g.pool.SendBatch(ctx, b)
	results := make([]result, len(batch))
	for i := range results {
		if err := answers.QueryRow().Scan(&results[i].done, &results[i].version); err != nil {
			return nil, errors.Join(err, answers.Close())
		}
	}
	// The commit happens at the end of the pipeline, and so do its errors.
	return results, answers.Close()
}

// finish tells the caller, once.
func (p *pending) finish(version int64, err error) {
	select {
	case <-p.done:
	default:
		p.version, p.err = version, err
		close(p.done)
	}
}
