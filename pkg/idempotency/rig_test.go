package idempotency_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		os.Exit(child(url))
	}
	os.Exit(throwaway.Main(m))
}

// patience bounds what a test waits for; nothing takes that long.
const patience = 10 * time.Minute

// unhurried is a store that keeps an answer however long that takes. The middleware's bound is for databases that hang, and those of tests may be slower than that.
type unhurried struct{ idempotency.Store }

func (s unhurried) Complete(ctx context.Context, c idempotency.Claim, r idempotency.Response) error {
	return s.Store.Complete(context.WithoutCancel(ctx), c, r)
}

func (s unhurried) Fail(ctx context.Context, c idempotency.Claim, r idempotency.Response) error {
	return s.Store.Fail(context.WithoutCancel(ctx), c, r)
}

func (s unhurried) Release(ctx context.Context, c idempotency.Claim) error {
	return s.Store.Release(context.WithoutCancel(ctx), c)
}

func (s unhurried) Abandon(ctx context.Context, c idempotency.Claim) error {
	return s.Store.Abandon(context.WithoutCancel(ctx), c)
}

// unhurriedTx is a transaction whose savepoints are undone however long that takes.
type unhurriedTx struct{ pgx.Tx }

func (tx unhurriedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	savepoint, err := tx.Tx.Begin(ctx)
	return unhurriedTx{savepoint}, err
}

func (tx unhurriedTx) Rollback(ctx context.Context) error {
	return tx.Tx.Rollback(context.WithoutCancel(ctx))
}

// clock is one that tests put forward.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is a service's database: the keys, and effects, which has nothing that would hide a second one.
type rig struct {
	t    *testing.T
	ctx  context.Context
	url  string
	pool *pgxpool.Pool
}

func newRig(t *testing.T, tracer ...pgx.QueryTracer) *rig {
	t.Helper()
	ctx := t.Context()
	r := &rig{t: t, ctx: ctx, url: throwaway.EmptyDatabase(t)}
	config, err := pgxpool.ParseConfig(r.url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 20
	for _, tr := range tracer {
		config.ConnConfig.Tracer = tr
	}
	if r.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	r.exec(idempotency.Schema)
	r.exec(`CREATE TABLE effects (what text)`)
	return r
}

func (r *rig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.pool.Exec(r.ctx, sql, args...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) count(sql string, args ...any) (n int) {
	r.t.Helper()
	if err := r.pool.QueryRow(r.ctx, sql, args...).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	for deadline := time.Now().Add(patience); !is(); <-ticks.C {
		if time.Now().After(deadline) {
			r.t.Fatalf("not in time: %s", what)
		}
	}
}
