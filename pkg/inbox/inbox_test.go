package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/pkg/inbox"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

// patience bounds what a test waits for; nothing takes that long.
const patience = 10 * time.Minute

// rig is a consumer's database: the inbox, and effects, which has no key that would hide a second one.
type rig struct {
	t    *testing.T
	ctx  context.Context
	pool *pgxpool.Pool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	ctx := t.Context()
	config, err := pgxpool.ParseConfig(throwaway.EmptyDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 20
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	r := &rig{t, ctx, pool}
	r.exec(inbox.Schema)
	r.exec(`CREATE TABLE effects (message text)`)
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

// effects is how often a message had its effect.
func (r *rig) effects(id string) int {
	r.t.Helper()
	return r.count(`SELECT count(*) FROM effects WHERE message = $1`, id)
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

// waiting is how many calls wait for another one's transaction.
func (r *rig) waiting() int {
	r.t.Helper()
	return r.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'transactionid'`)
}

func key(id string) inbox.Key { return inbox.Key{Consumer: "billing", Source: "/orders", ID: id} }

// effect is the work for a message.
func effect(id string) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO effects VALUES ($1)`, id)
		return err
	}
}

func TestAMessageThatComesTwiceIsHandledOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, want := range []bool{true, false, false} {
		if done, err := inbox.Do(r.ctx, r.pool, key("1"), effect("1")); done != want || err != nil {
			t.Errorf("handling: %t, %v, want %t", done, err, want)
		}
	}
	if n := r.effects("1"); n != 1 {
		t.Errorf("there are %d effects", n)
	}
}

func TestTheSameIDOfAnotherSourceOrForAnotherConsumerIsAnotherMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, k := range []inbox.Key{
		{Consumer: "billing", Source: "/orders", ID: "1"}, {Consumer: "billing", Source: "/returns", ID: "1"}, {Consumer: "shipping", Source: "/orders", ID: "1"},
		{Consumer: "a", Source: "bc", ID: "d"}, {Consumer: "ab", Source: "c", ID: "d"}, {Consumer: "a", Source: "b", ID: "cd"},
	} {
		if done, err := inbox.Do(r.ctx, r.pool, k, effect(k.ID)); !done || err != nil {
			t.Errorf("handling %s: %t, %v", k, done, err)
		}
	}
}

func TestOfManyAtOnceOneHandlesTheMessageAndTheOthersWaitForIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const all = 16
	var wg sync.WaitGroup
	var did atomic.Int32
	gate, under := make(chan struct{}), make(chan struct{}, all)
	for range all {
		wg.Go(func() {
			done, err := inbox.Do(r.ctx, r.pool, key("1"), func(ctx context.Context, tx pgx.Tx) error {
				under <- struct{}{}
				<-gate
				return effect("1")(ctx, tx)
			})
			if err != nil {
				t.Error(err)
			}
			if done {
				did.Add(1)
			}
		})
	}
	<-under
	r.eventually("the others wait", func() bool { return r.waiting() == all-1 })
	close(gate)
	wg.Wait()
	if did.Load() != 1 || len(under) != 0 || r.effects("1") != 1 {
		t.Errorf("%d handled it, %d more tried, and there are %d effects", did.Load(), len(under), r.effects("1"))
	}
}

func TestWhoeverWaitedHandlesTheMessageWhenTheFirstFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	began, gate := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	broken := errors.New("broken")
	wg.Go(func() {
		done, err := inbox.Do(r.ctx, r.pool, key("1"), func(ctx context.Context, tx pgx.Tx) error {
			if err := effect("1")(ctx, tx); err != nil {
				t.Error(err)
			}
			close(began)
			<-gate
			return broken
		})
		if done || !errors.Is(err, broken) || !strings.Contains(err.Error(), `"1" of "/orders" for consumer "billing"`) {
			t.Errorf("the first: %t, %v", done, err)
		}
	})
	<-began
	wg.Go(func() {
		if done, err := inbox.Do(r.ctx, r.pool, key("1"), effect("1")); !done || err != nil {
			t.Errorf("the second: %t, %v", done, err)
		}
	})
	r.eventually("the second waits", func() bool { return r.waiting() == 1 })
	close(gate)
	wg.Wait()
	if n := r.effects("1"); n != 1 {
		t.Errorf("there are %d effects", n)
	}
}

func TestNothingIsKeptOfAMessageWhoseHandlerFails(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for what, fail := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"an error":              func(context.Context, pgx.Tx) error { return errors.New("no") },
		"an error of SQL":       func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, `SELECT 1/0`); return err },
		"one that is swallowed": func(ctx context.Context, tx pgx.Tx) error { _, _ = tx.Exec(ctx, `SELECT 1/0`); return nil },
		"its own rollback":      func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) },
		"a panic":               func(context.Context, pgx.Tx) error { panic("boom") },
	} {
		func() {
			defer func() { _ = recover() }()
			done, err := inbox.Do(r.ctx, r.pool, key(what), func(ctx context.Context, tx pgx.Tx) error {
				return errors.Join(effect(what)(ctx, tx), fail(ctx, tx))
			})
			if done || err == nil {
				t.Errorf("%s: %t, %v", what, done, err)
			}
		}()
		if n := r.effects(what); n != 0 {
			t.Errorf("%s: there are %d effects", what, n)
		}
		if done, err := inbox.Do(r.ctx, r.pool, key(what), effect(what)); !done || err != nil || r.effects(what) != 1 {
			t.Errorf("after %s: %t, %v, and %d effects", what, done, err, r.effects(what))
		}
	}
	r.eventually("all connections have been given back", func() bool { return r.pool.Stat().AcquiredConns() == 0 })
}

func TestWhenTheContextEndsInTheMiddleNothingIsKept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, cancel := context.WithCancel(r.ctx)
	done, err := inbox.Do(ctx, r.pool, key("1"), func(ctx context.Context, tx pgx.Tx) error {
		err := effect("1")(ctx, tx)
		cancel()
		return err
	})
	if done || !errors.Is(err, context.Canceled) {
		t.Errorf("handling: %t, %v", done, err)
	}
	if done, err := inbox.Do(r.ctx, r.pool, key("1"), effect("1")); !done || err != nil || r.effects("1") != 1 {
		t.Errorf("handling it again: %t, %v, and %d effects", done, err, r.effects("1"))
	}
}

func TestWhoeverWaitsGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	var wg sync.WaitGroup
	_, err := inbox.Do(r.ctx, r.pool, key("1"), func(outer context.Context, tx pgx.Tx) error {
		wg.Go(func() {
			if done, err := inbox.Do(ctx, r.pool, key("1"), effect("1")); done || !errors.Is(err, context.Canceled) {
				t.Errorf("waiting: %t, %v", done, err)
			}
		})
		r.eventually("the second waits", func() bool { return r.waiting() == 1 })
		cancel()
		wg.Wait()
		return effect("1")(outer, tx)
	})
	if err != nil || r.effects("1") != 1 {
		t.Errorf("the first: %v, and %d effects", err, r.effects("1"))
	}
}

func TestAboveReadCommittedWhoeverWaitedFailsAndFindsItHandledThen(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			strict := at{r.pool, level}
			var wg sync.WaitGroup
			_, err := inbox.Do(r.ctx, strict, key("1"), func(ctx context.Context, tx pgx.Tx) error {
				wg.Go(func() {
					done, err := inbox.Do(r.ctx, strict, key("1"), effect("1"))
					if e, ok := errors.AsType[*pgconn.PgError](err); done || !ok || e.Code != "40001" {
						t.Errorf("the second: %t, %v", done, err)
					}
				})
				r.eventually("the second waits", func() bool { return r.waiting() == 1 })
				return effect("1")(ctx, tx)
			})
			wg.Wait()
			if err != nil {
				t.Error(err)
			}
			if done, err := inbox.Do(r.ctx, strict, key("1"), effect("1")); done || err != nil || r.effects("1") != 1 {
				t.Errorf("once more: %t, %v, and %d effects", done, err, r.effects("1"))
			}
		})
	}
}

// at begins transactions of an isolation level.
type at struct {
	pool  *pgxpool.Pool
	level pgx.TxIsoLevel
}

func (a at) Begin(ctx context.Context) (pgx.Tx, error) {
	return a.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: a.level})
}

func TestEffectsAreTheDistinctMessages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const workers, each, messages = 16, 150, 300
	seed := rand.Uint64()
	t.Logf("the seed is %d", seed)
	sent := make([]atomic.Bool, messages)
	var did, failed atomic.Int32
	var wg sync.WaitGroup
	for worker := range workers {
		chance := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for range each {
				n := chance.IntN(messages)
				id := fmt.Sprint(n)
				sent[n].Store(true)
				for again := true; again; { // as a broker does
					done, err := inbox.Do(r.ctx, r.pool, key(id), func(ctx context.Context, tx pgx.Tx) error {
						if err := effect(id)(ctx, tx); err != nil || chance.IntN(4) > 0 {
							return err
						}
						failed.Add(1)
						return errors.New("not this time")
					})
					if done {
						did.Add(1)
					}
					again = err != nil && r.ctx.Err() == nil
				}
			}
		})
	}
	wg.Wait()
	distinct := 0
	for n := range sent {
		if sent[n].Load() {
			distinct++
			if n := r.effects(fmt.Sprint(n)); n != 1 {
				t.Errorf("a message has %d effects", n)
			}
		}
	}
	if n := r.count(`SELECT count(*) FROM effects`); n != distinct || int(did.Load()) != distinct {
		t.Errorf("%d distinct messages had %d effects, and %d times it was said so", distinct, n, did.Load())
	}
	if failed.Load() == 0 {
		t.Error("nothing failed")
	}
}

func TestAnInvalidKeyIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, c := range []struct {
		key  inbox.Key
		want string
	}{
		{inbox.Key{Source: "s", ID: "1"}, "Consumer is empty"}, {inbox.Key{Consumer: "c", ID: "1"}, "Source is empty"}, {inbox.Key{Consumer: "c", Source: "s"}, "ID is empty"},
		{inbox.Key{Consumer: "c", Source: "s", ID: strings.Repeat("x", inbox.MaxID+1)}, "ID has 1025 bytes, and 1024 are allowed"},
		{inbox.Key{Consumer: "c", Source: "s\x00", ID: "1"}, "Source is not UTF-8"}, {inbox.Key{Consumer: "\xff", Source: "s", ID: "1"}, "Consumer is not UTF-8"},
	} {
		if done, err := inbox.Do(r.ctx, r.pool, c.key, effect("1")); done || !errors.Is(err, inbox.ErrInvalidKey) || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 500 {
			t.Errorf("want %q, got %t, %v", c.want, done, err)
		}
	}
	random := func(n int) string { // text that PostgreSQL cannot make shorter
		var b strings.Builder
		for b.Len() < n {
			b.WriteByte(byte('!' + rand.IntN(90)))
		}
		return b.String()
	}
	longest := inbox.Key{Consumer: random(inbox.MaxConsumer), Source: random(inbox.MaxSource), ID: random(inbox.MaxID)}
	for _, want := range []bool{true, false} {
		if done, err := inbox.Do(r.ctx, r.pool, longest, effect("longest")); done != want || err != nil {
			t.Errorf("the longest key: %t, %v", done, err)
		}
	}
}
