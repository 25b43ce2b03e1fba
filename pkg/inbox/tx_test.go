package inbox_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/inbox"
)

func (r *rig) begin() pgx.Tx {
	r.t.Helper()
	tx, err := r.pool.Begin(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return unhurriedTx{tx}
}

// unhurriedTx is a transaction whose savepoints are undone however long that takes. The package's bound is for databases that hang, and those of tests may be slower than that.
type unhurriedTx struct{ pgx.Tx }

func (tx unhurriedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	savepoint, err := tx.Tx.Begin(ctx)
	return unhurriedTx{savepoint}, err
}

func (tx unhurriedTx) Rollback(ctx context.Context) error {
	return tx.Tx.Rollback(context.WithoutCancel(ctx))
}

func TestSeveralMessagesAreHandledInOneTransactionAndOneThatFailsHoldsNoOtherUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tx := r.begin()
	fail := errors.New("no")
	for _, c := range []struct {
		id   string
		err  error
		done bool
	}{{"1", nil, true}, {"2", fail, false}, {"1", nil, false}, {"3", nil, true}} {
		done, err := inbox.Do(r.ctx, tx, key(c.id), func(ctx context.Context, tx pgx.Tx) error { return errors.Join(effect(c.id)(ctx, tx), c.err) })
		if done != c.done || !errors.Is(err, c.err) {
			t.Errorf("message %s: %t, %v", c.id, done, err)
		}
	}
	if err := tx.Commit(r.ctx); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"1": false, "2": true, "3": false} {
		if done, err := inbox.Do(r.ctx, r.pool, key(id), effect(id)); done != want || err != nil || r.effects(id) != 1 {
			t.Errorf("message %s again: %t, %v, and %d effects", id, done, err, r.effects(id))
		}
	}
}

func TestAMessageWhoseOwnContextEndsIsUndoneInTheCallersTransactionToo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for what, result := range map[string]error{"an error": context.Canceled, "no error": nil} {
		tx := r.begin()
		ctx, cancel := context.WithCancel(r.ctx)
		done, err := inbox.Do(ctx, tx, key(what), func(ctx context.Context, tx pgx.Tx) error {
			if err := effect(what)(ctx, tx); err != nil {
				t.Error(err)
			}
			cancel()
			return result
		})
		if done || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %t, %v", what, done, err)
		}
		if err := tx.Commit(r.ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if n := r.effects(what); n != 0 {
			t.Errorf("%s: there are %d effects", what, n)
		}
		if done, err := inbox.Do(r.ctx, r.pool, key(what), effect(what)); !done || err != nil {
			t.Errorf("%s: handling it again: %t, %v", what, done, err)
		}
	}
}

func TestFirstGoesWithTheCallersTransaction(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tx := r.begin()
	if first, err := inbox.First(r.ctx, tx, key("1")); !first || err != nil {
		t.Errorf("%t, %v", first, err)
	}
	if first, err := inbox.First(r.ctx, tx, key("1")); first || err != nil {
		t.Errorf("the same again: %t, %v", first, err)
	}
	if _, err := inbox.First(r.ctx, tx, inbox.Key{}); !errors.Is(err, inbox.ErrInvalidKey) {
		t.Errorf("no key: %v", err)
	}
	if err := tx.Rollback(r.ctx); err != nil {
		t.Fatal(err)
	}
	tx = r.begin()
	if first, err := inbox.First(r.ctx, tx, key("1")); !first || err != nil {
		t.Errorf("after a rollback: %t, %v", first, err)
	}
	if err := tx.Commit(r.ctx); err != nil {
		t.Fatal(err)
	}
	if first, err := inbox.First(r.ctx, r.begin(), key("1")); first || err != nil {
		t.Errorf("after a commit: %t, %v", first, err)
	}
}
