package idempotency_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// effect is one that leaves a row.
func effect(what string) func(context.Context, pgx.Tx) (idempotency.Response, error) {
	return func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		_, err := tx.Exec(ctx, `INSERT INTO effects VALUES ($1)`, what)
		return created, err
	}
}

func (r *rig) effects() int {
	r.t.Helper()
	return r.count(`SELECT count(*) FROM effects`)
}

func (r *rig) once(key, body string, do func(context.Context, pgx.Tx) (idempotency.Response, error)) (bool, error) {
	r.t.Helper()
	got, replayed, err := idempotency.Once(r.ctx, r.pool, keyOf(key), printOf(body), do)
	if err == nil {
		if diff := cmp.Diff(created, got); diff != "" {
			r.t.Error(diff)
		}
	}
	return replayed, err
}

func TestOnceActsOnceAndAnswersAsBefore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 3 {
		if replayed, err := r.once("1", "a", effect("x")); err != nil || replayed != (i > 0) {
			t.Errorf("replayed: %v, %v", replayed, err)
		}
	}
	if _, err := r.once("1", "b", effect("x")); !errors.Is(err, idempotency.ErrMismatch) {
		t.Errorf("another request: %v", err)
	}
	if n := r.effects(); n != 1 {
		t.Errorf("there are %d effects", n)
	}
}

func TestOfManyAtOnceOneActs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var first atomic.Int32
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			replayed, err := r.once("1", "a", effect("x"))
			if err != nil {
				t.Error(err)
			} else if !replayed {
				first.Add(1)
			}
		})
	}
	wg.Wait()
	if r.effects() != 1 || first.Load() != 1 {
		t.Errorf("there are %d effects, and %d were the first", r.effects(), first.Load())
	}
}

func TestADuplicateThatItsOwnEffectRefusesIsAnsweredAsTheFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`CREATE UNIQUE INDEX ON effects (what)`) // the duplicate fails at this, before it comes to its key
	for i := range 2 {
		if replayed, err := r.once("1", "a", effect("x")); err != nil || replayed != (i > 0) {
			t.Errorf("replayed: %v, %v", replayed, err)
		}
	}
	refusing := func(context.Context, pgx.Tx) (idempotency.Response, error) {
		return idempotency.Response{}, &idempotency.Refusal{Response: idempotency.Response{Status: 409}}
	}
	if replayed, err := r.once("1", "a", refusing); err != nil || !replayed {
		t.Errorf("replayed: %v, %v", replayed, err)
	}
}

func TestARefusalLeavesNothingButItself(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	no := idempotency.Response{Status: 402, Body: []byte("declined")}
	acts := 0
	for i := range 2 {
		got, replayed, err := idempotency.Once(r.ctx, r.pool, keyOf("1"), printOf("a"), func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			acts++
			if _, err := effect("x")(ctx, tx); err != nil {
				t.Error(err)
			}
			if i > 0 { // it would go through now
				return created, nil
			}
			return idempotency.Response{}, &idempotency.Refusal{Response: no}
		})
		if err != nil || replayed != (i > 0) || got.Status != no.Status || string(got.Body) != string(no.Body) {
			t.Errorf("%+v, %v, %v", got, replayed, err)
		}
	}
	if r.effects() != 0 || acts != 2 {
		t.Errorf("there are %d effects after %d acts", r.effects(), acts)
	}
}

func TestAnErrorLeavesNothingAndTheRequestMayComeAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	fail := errors.New("no")
	_, err := r.once("1", "a", func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		_, err := effect("x")(ctx, tx)
		return idempotency.Response{}, errors.Join(fail, err)
	})
	if !errors.Is(err, fail) || r.effects() != 0 || r.count(`SELECT count(*) FROM idempotency_keys`) != 0 {
		t.Errorf("%v, and %d effects", err, r.effects())
	}
	if replayed, err := r.once("1", "a", effect("x")); replayed || err != nil {
		t.Errorf("again: %v, %v", replayed, err)
	}
}

func TestOnceWithinATransactionCountsWithIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, commit := range []bool{false, true} {
		tx, err := r.pool.Begin(r.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if _, replayed, err := idempotency.Once(r.ctx, unhurriedTx{tx}, keyOf("1"), printOf("a"), effect("x")); err != nil || replayed != (i > 0) {
				t.Errorf("replayed: %v, %v", replayed, err)
			}
		}
		end := tx.Rollback
		if commit {
			end = tx.Commit
		}
		if err := end(r.ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.effects(); n != 1 {
		t.Errorf("there are %d effects", n)
	}
}

func TestOnceWaitsForAStoresClaimAndForNoOneElses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := newClock()
	s := idempotency.NewPostgres(r.pool, idempotency.Options{Clock: c.Now})
	if _, err := s.Begin(r.ctx, keyOf("1"), printOf("a")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Once(r.ctx, r.pool, keyOf("1"), printOf("a"), effect("x")); !errors.Is(err, idempotency.ErrInProgress) || r.effects() != 0 {
		t.Errorf("%v, and %d effects", err, r.effects())
	}
	c.forward(idempotency.DefaultLease)
	if _, replayed, err := s.Once(r.ctx, r.pool, keyOf("1"), printOf("a"), effect("x")); err != nil || replayed || r.effects() != 1 {
		t.Errorf("%v, %v, and %d effects", replayed, err, r.effects())
	}
	c.forward(idempotency.DefaultTTL)
	if _, replayed, err := s.Once(r.ctx, r.pool, keyOf("1"), printOf("b"), effect("y")); err != nil || replayed || r.effects() != 2 {
		t.Errorf("after a day: %v, %v, and %d effects", replayed, err, r.effects())
	}
}

func TestAClaimWhoseLeaseIsOverIsNotForAnotherRequest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := newClock()
	s := idempotency.NewPostgres(r.pool, idempotency.Options{Clock: c.Now})
	if _, err := s.Begin(r.ctx, keyOf("1"), printOf("a")); err != nil {
		t.Fatal(err)
	}
	c.forward(idempotency.DefaultLease)
	if _, _, err := s.Once(r.ctx, r.pool, keyOf("1"), printOf("b"), effect("x")); !errors.Is(err, idempotency.ErrMismatch) || r.effects() != 0 {
		t.Errorf("%v, and %d effects", err, r.effects())
	}
	if _, replayed, err := s.Once(r.ctx, r.pool, keyOf("1"), printOf("a"), effect("x")); err != nil || replayed || r.effects() != 1 {
		t.Errorf("%v, %v, and %d effects", replayed, err, r.effects())
	}
}

// counter counts statements.
type counter struct{ n atomic.Int32 }

func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (*counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestOnceCostsOneStatement(t *testing.T) {
	t.Parallel()
	c := &counter{}
	r := newRig(t, c)
	c.n.Store(0)
	if err := pgx.BeginFunc(r.ctx, r.pool, func(tx pgx.Tx) error {
		_, err := effect("x")(r.ctx, tx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	bare := c.n.Swap(0)
	if _, err := r.once("1", "a", effect("x")); err != nil {
		t.Fatal(err)
	}
	if once := c.n.Load(); once != bare+1 {
		t.Errorf("it takes %d statements, and without the key %d", once, bare)
	}
}

func TestOnceRefusesWhatIsNoKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := r.once("", "a", effect("x")); !errors.Is(err, idempotency.ErrInvalidKey) || r.effects() != 0 {
		t.Errorf("%v", err)
	}
	r.exec(`DROP TABLE idempotency_keys`)
	if _, err := r.once("1", "a", effect("x")); err == nil || !strings.Contains(err.Error(), "idempotency.Schema") || r.effects() != 0 {
		t.Errorf("without a table: %v", err)
	}
	ctx, cancel := context.WithDeadline(r.ctx, time.Now().Add(-time.Second))
	defer cancel()
	if _, _, err := idempotency.Once(ctx, r.pool, keyOf("1"), printOf("a"), effect("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without time: %v", err)
	}
}

func TestOnceRefusesNewKeysOverQuota(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	store := idempotency.NewPostgres(r.pool, idempotency.Options{RealmBytes: 1000})
	large := idempotency.Response{Status: 200, Body: make([]byte, 500)}
	once := func(key string) (bool, error) {
		_, replayed, err := store.Once(r.ctx, r.pool, keyOf(key), printOf("a"), func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			_, err := effect(key)(ctx, tx)
			return large, err
		})
		return replayed, err
	}
	for _, key := range []string{"1", "2"} {
		if _, err := once(key); err != nil {
			t.Fatalf("key %s: %v", key, err)
		}
	}
	if _, err := once("3"); !errors.Is(err, idempotency.ErrQuota) {
		t.Errorf("new key: %v, want %v", err, idempotency.ErrQuota)
	}
	if replayed, err := once("1"); err != nil || !replayed {
		t.Errorf("known key: replayed = %v, %v", replayed, err)
	}
	if n := r.effects(); n != 2 {
		t.Errorf("there are %d effects, want 2", n)
	}
}
