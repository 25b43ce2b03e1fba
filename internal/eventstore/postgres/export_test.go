package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/budget"
)

// NewPatient is NewGathering for a test that holds flushes up, on a machine that may be busy besides.
func NewPatient(pool *pgxpool.Pool, flushers int) *Gathering {
	g := NewGathering(pool, flushers)
	g.timeout = time.Hour
	return g
}

// AnnounceEvery is the least time between two announcements.
const AnnounceEvery = announceEvery

// NewNarrow is NewPatient with so much room only for one namespace.
func NewNarrow(pool *pgxpool.Pool, flushers, bytes int) *Gathering {
	g := NewPatient(pool, flushers)
	g.room = budget.New(2 * int64(bytes))
	return g
}

// Pending reports whether something is left to be announced.
func (a *Announcer) Pending() bool { return len(a.pending) > 0 }

// AwaitFlush waits until a flush has taken everything that waited.
func (g *Gathering) AwaitFlush(t testing.TB) {
	t.Helper()
	g.await(t, func() bool { return g.active > 0 && len(g.queue) == 0 })
}

// AwaitQueued waits until so many appends wait for a flush.
func (g *Gathering) AwaitQueued(t testing.TB, n int) {
	t.Helper()
	g.await(t, func() bool { return len(g.queue) == n })
}

// AwaitGathered waits until so many appends are in a flush or wait for one.
func (g *Gathering) AwaitGathered(t testing.TB, n int) {
	t.Helper()
	g.await(t, func() bool { return len(g.busy)+len(g.queue) == n })
}

// AwaitFlushers waits until so many flushes are under way.
func (g *Gathering) AwaitFlushers(t testing.TB, n int) {
	t.Helper()
	g.await(t, func() bool { return g.active == n && len(g.busy) == n })
}

// AwaitWaitingForRoom waits until an append waits for room.
func (g *Gathering) AwaitWaitingForRoom(t testing.TB) {
	t.Helper()
	g.await(t, func() bool { return g.room.Waiting() > 0 })
}

func (g *Gathering) await(t testing.TB, reached func() bool) {
	t.Helper()
	for t.Context().Err() == nil {
		g.mu.Lock()
		ok := reached()
		g.mu.Unlock()
		if ok {
			return
		}
		<-time.After(time.Millisecond) // the pause between two looks
	}
	t.Fatal("the test ended first")
}
