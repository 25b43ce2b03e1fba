package inbox_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vextrus/saga-operator/pkg/inbox"
)

// age notes messages that were handled so long ago.
func (r *rig) age(messages int, ago time.Duration) {
	r.t.Helper()
	r.exec(`INSERT INTO inbox_messages SELECT 'billing', '/orders', $2 || '-' || n, now() - $2::text::interval FROM generate_series(1, $1) n`, messages, ago.String())
}

func TestASweepForgetsWhatIsOldInSmallBatches(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.age(2_500, 48*time.Hour)
	r.age(70, time.Hour)
	db := &counting{db: r.pool}
	if n, err := inbox.Sweep(r.ctx, db, 24*time.Hour, 100); n != 2_500 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if most := db.most.Load(); most != 100 {
		t.Errorf("there were %d at once", most)
	}
	if n := r.count(`SELECT count(*) FROM inbox_messages`); n != 70 {
		t.Errorf("%d are left", n)
	}
	if n, err := inbox.Sweep(r.ctx, db, 24*time.Hour, 0); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
}

func TestASweepLeavesAloneWhatIsLocked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.age(50, 48*time.Hour)
	tx := r.begin()
	if _, err := tx.Exec(r.ctx, `SELECT FROM inbox_messages LIMIT 20 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if n, err := inbox.Sweep(r.ctx, r.pool, time.Hour, 10); n != 30 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
}

func TestSeveralSweepsShareTheWork(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const old = 5_000
	r.age(old, 48*time.Hour)
	var swept atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			n, err := inbox.Sweep(r.ctx, r.pool, time.Hour, 50)
			if err != nil {
				t.Error(err)
			}
			swept.Add(n)
		})
	}
	wg.Wait()
	n, err := inbox.Sweep(r.ctx, r.pool, time.Hour, 0) // each may have left to another what that was about to sweep
	if err != nil || swept.Load()+n != old {
		t.Errorf("swept %d and %d, %v", swept.Load(), n, err)
	}
}

func TestASweepThatCouldForgetTooMuchIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.age(5, 48*time.Hour)
	for _, c := range []struct {
		olderThan time.Duration
		batch     int
		want      string
	}{{0, 0, "olderThan is 0s"}, {-time.Hour, 0, "olderThan is -1h0m0s"}, {time.Hour, -1, "batch is -1"}, {time.Hour, inbox.MaxBatch + 1, "batch is 100001"}} {
		if n, err := inbox.Sweep(r.ctx, r.pool, c.olderThan, c.batch); n != 0 || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %d, %v", c.want, n, err)
		}
	}
	if n := r.count(`SELECT count(*) FROM inbox_messages`); n != 5 {
		t.Errorf("%d are left", n)
	}
	ctx, cancel := context.WithCancel(r.ctx)
	cancel()
	if _, err := inbox.Sweep(ctx, r.pool, time.Hour, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is over: %v", err)
	}
}

// counting notes how many rows one call changed at most.
type counting struct {
	db   inbox.Executor
	most atomic.Int64
}

func (c *counting) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	tag, err := c.db.Exec(ctx, sql, args...)
	c.most.Store(max(c.most.Load(), tag.RowsAffected()))
	return tag, err
}
