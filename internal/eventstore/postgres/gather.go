package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/eventstore"
)

const (
	// maxFlush bounds the appends of one transaction: more of them gain nothing, and all of them wait for it.
	maxFlush = 100
	// maxFlushBytes bounds their size: large ones need no company.
	maxFlushBytes = 8 << 20
	// flushTimeout bounds a transaction. Callers have contexts of their own; a flush belongs to all of them.
	flushTimeout = 30 * time.Second
	// maxWaitingBytes bounds what waits for a flush or is in one. Further callers wait until there is room. A namespace has
	// at most half of what the others leave, so that half of it is the size of the largest append.
	maxWaitingBytes = 2 * eventstore.MaxAppendBytes
	// pendingBytes is what an append costs besides its data.
	pendingBytes = 2 << 10
)

// Gathering is a Store that commits the appends of many callers together. Each append still succeeds or loses by itself; what is shared is the round trip
// and the commit, which cost most. There is no timer: whatever has come together while earlier flushes were under way goes into the next one, so an
// append does not wait if no other does. The appends of one stream are committed one after the other, in the order in which they came. Where more
// waits than fits into a flush, namespaces take turns.
type Gathering struct {
	*Store
	flushers int
	timeout  time.Duration  // of a flush
	room     *budget.Budget // in bytes

	mu     sync.Mutex
	queue  []*pending
	active int
	busy   map[string]bool // streams that a flush is about
	closed bool
	idle   chan struct{} // closed when the store is closed and the last flush is over
}

var _ eventstore.Store = (*Gathering)(nil)

// pending is an append that waits for its flush.
type pending struct {
	append    *eventstore.Append
	bytes     int
	namespace string // of the saga, if it is one's
	room      *budget.Account
	done      chan struct{}
	result    result
	abandoned bool // guarded by Gathering.mu
	// rivals expect a version of the same stream too. At most one of them can be right, so they are not sent: what becomes of this append tells what becomes of them.
	rivals []*pending
}

// NewGathering returns a store on a pool that runs up to so many flushes at once; two are enough to keep the database busy while results are handed out.
// It takes as many of the pool's connections. Close it before the pool.
func NewGathering(pool *pgxpool.Pool, flushers int, options ...Option) *Gathering {
	g := &Gathering{Store: New(pool, options...), flushers: max(flushers, 1), timeout: flushTimeout, busy: map[string]bool{}, idle: make(chan struct{})}
	g.room = budget.New(maxWaitingBytes)
	return g
}

// Append implements eventstore.Store. It waits for room where too much waits for the database already. When ctx ends first, the append has not been sent or
// its fate is unknown; either way nothing is half done.
func (g *Gathering) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if err := a.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	p := &pending{append: &a, bytes: a.Size() + pendingBytes, done: make(chan struct{})}
	if a.State != nil {
		p.namespace = a.State.Namespace
	}
	p.room = g.room.Open(p.namespace)
	if err := ctx.Err(); err != nil {
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, err)
	}
	if err := p.room.Wait(ctx, min(int64(p.bytes), g.room.Share())); err != nil {
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: waiting for room: %w", a.Stream, err)
	}
	if !g.enqueue(p) {
		p.room.Close()
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w: the store is closed", a.Stream, eventstore.ErrUnavailable)
	}
	select {
	case <-p.done:
		return p.result.done, p.result.err
	case <-ctx.Done():
		g.mu.Lock()
		p.abandoned = true
		g.mu.Unlock()
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, ctx.Err())
	}
}

// Close takes no more appends and waits until all that wait have their answers, or until ctx is done.
func (g *Gathering) Close(ctx context.Context) error {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		g.signalIdle()
	}
	g.mu.Unlock()
	select {
	case <-g.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the last appends: %w", ctx.Err())
	}
}

// signalIdle tells Close when nothing is left to do; g.mu is held.
func (g *Gathering) signalIdle() {
	if g.closed && g.active == 0 {
		close(g.idle)
	}
}

func (g *Gathering) enqueue(p *pending) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.queue = append(g.queue, p)
	if g.active < g.flushers {
		g.active++
		go g.flushAll()
	}
	return true
}

// flushAll flushes until nothing waits that it may take.
func (g *Gathering) flushAll() {
	for batch := g.take(nil); len(batch) > 0; batch = g.take(batch) {
		g.flush(batch)
	}
}

// takeTurns brings what waits into the order in which it is taken, if it is more than one flush takes: that
// of which the namespace has the fewest bytes before it comes first. The order within a namespace, and so of
// a stream, stays.
func takeTurns(queue []*pending) {
	total, before := 0, map[string]int{}
	ahead := make(map[*pending]int, len(queue))
	for _, p := range queue {
		ahead[p] = before[p.namespace]
		before[p.namespace] += p.bytes
		total += p.bytes
	}
	if len(before) > 1 && (len(queue) > maxFlush || total > maxFlushBytes) {
		slices.SortStableFunc(queue, func(a, b *pending) int { return cmp.Compare(ahead[a], ahead[b]) })
	}
}

// take removes the next batch from the queue: the first appends, one of each stream, and none of a stream that another flush is about. It first lets go of what
// the flusher has done. An empty batch ends the flusher.
func (g *Gathering) take(done []*pending) []*pending {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range done {
		delete(g.busy, p.append.Stream)
		p.rivals = nil
	}
	takeTurns(g.queue)
	var batch, rest []*pending
	bytes := 0
	leaders := make(map[string]*pending, min(len(g.queue), maxFlush))
	passed := map[string]bool{} // a stream whose append was left waiting: those behind it wait too
	for i, p := range g.queue {
		if len(batch) == maxFlush {
			rest = append(rest, g.queue[i:]...)
			break
		}
		stream := p.append.Stream
		switch {
		case p.abandoned: // nobody waits for it, and it has not been sent
			p.room.Close()
		case (len(batch) == 0 || bytes+p.bytes <= maxFlushBytes) && !g.busy[stream] && !passed[stream]:
			bytes += p.bytes
			g.busy[stream] = true
			leaders[stream] = p
			batch = append(batch, p)
		case leaders[stream] != nil && !passed[stream] && p.append.Expected != eventstore.AnyVersion:
			leaders[stream].rivals = append(leaders[stream].rivals, p)
		default:
			passed[stream] = true
			rest = append(rest, p)
		}
	}
	g.queue = rest
	if len(batch) == 0 {
		g.active--
		g.signalIdle()
	}
	return batch
}

// flush commits a batch in one transaction and one round trip. A panic in the driver is this batch's, not the process's: what became of it is unknown.
func (g *Gathering) flush(batch []*pending) {
	defer func() {
		if r := recover(); r != nil {
			for _, p := range batch {
				for _, p := range append(p.rivals, p) {
					g.finish(p, result{err: fmt.Errorf("appending to stream %s: %w: panic: %v", p.append.Stream, eventstore.ErrUnavailable, r)})
				}
			}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), g.timeout)
	defer cancel()
	results, err := g.send(ctx, batch)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && len(batch) > 1 {
		// One append that the server refuses takes the whole transaction with it. Nothing was committed, so each is tried alone and gets its own answer.
		for _, p := range batch {
			done, err := g.Store.Append(ctx, *p.append)
			g.finish(p, result{done, err})
		}
		g.settleRivals(ctx, batch)
		return
	}
	if err == nil {
		g.committed()
	}
	for i, p := range batch {
		if err != nil {
			g.finish(p, result{err: appendError(p.append.Stream, err)})
		} else {
			g.finish(p, results[i])
		}
	}
	g.settleRivals(ctx, batch)
}

// settleRivals answers the appends that the batch's own have made losers, at once instead of one flush each. One that may still win, or that the stream may have already, waits
// for the next flush, ahead of those that came later.
func (g *Gathering) settleRivals(ctx context.Context, batch []*pending) {
	var lost, again []*pending
	at := map[*pending]int64{}
	for _, leader := range batch {
		version, known := leader.result.version()
		for _, p := range leader.rivals {
			if known && p.append.Expected != version {
				lost, at[p] = append(lost, p), version
			} else {
				again = append(again, p)
			}
		}
	}
	ids := make([]uuid.UUID, len(lost))
	for i, p := range lost {
		ids[i] = p.append.Events[0].ID
	}
	repeated, err := g.recorded(ctx, ids)
	for _, p := range lost {
		if err != nil || repeated[p.append.Events[0].ID] {
			again = append(again, p)
			continue
		}
		g.finish(p, result{err: &eventstore.WrongVersionError{Stream: p.append.Stream, Expected: p.append.Expected, Actual: at[p]}})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = append(again, g.queue...)
}

// version is that of the stream after an append, where its result says so.
func (r result) version() (int64, bool) {
	var wrong *eventstore.WrongVersionError
	switch {
	case errors.As(r.err, &wrong):
		return wrong.Actual, true
	case r.err == nil && !r.done.Repeated:
		return r.done.Version, true
	default:
		return 0, false
	}
}

// recorded returns which of some events the store has.
func (g *Gathering) recorded(ctx context.Context, ids []uuid.UUID) (map[uuid.UUID]bool, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	rows, err := g.pool.Query(ctx, `SELECT event_id FROM event_store WHERE event_id = ANY ($1)`, ids)
	if err != nil {
		return nil, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	known := make(map[uuid.UUID]bool, len(found))
	for _, id := range found {
		known[id] = true
	}
	return known, err
}

// send does a batch in one call.
func (g *Gathering) send(ctx context.Context, batch []*pending) ([]result, error) {
	appends := make([]*eventstore.Append, len(batch))
	for i, p := range batch {
		appends[i] = p.append
	}
	c, err := newCall(appends...)
	if err != nil {
		return nil, err
	}
	defer c.close()
	return c.run(ctx, g.pool, false)
}

// finish tells the caller, once.
func (g *Gathering) finish(p *pending, r result) {
	select {
	case <-p.done:
	default:
		p.result = r
		close(p.done)
		p.room.Close()
	}
}
