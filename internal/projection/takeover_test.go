package projection_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/projection"
)

// waiting is how many sessions wait for a lock with a statement that begins so.
func (r *rig) waiting(statement string) int64 {
	r.t.Helper()
	return r.int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND starts_with(query, $1)`, statement)
}

const takingOver = `SELECT pg_advisory_xact_lock(`

// begin begins a transaction that the test ends.
func (r *rig) begin() pgx.Tx {
	r.t.Helper()
	tx, err := r.pool.Begin(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// heldTakeOver has a generation be built, and holds its takeover up at its beginning until the transaction that it returns ends.
func (r *rig) heldTakeOver() pgx.Tx {
	r.t.Helper()
	tx := r.begin()
	if _, err := tx.Exec(context.Background(), `SELECT pg_advisory_xact_lock_shared(hashtextextended('projection:sums', 0))`); err != nil {
		r.t.Fatal(err)
	}
	if err := projection.Rebuild(context.Background(), r.pool, "sums"); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("the new generation is about to take over", func() error {
		if r.waiting(takingOver) == 0 {
			return fmt.Errorf("it is not: %+v", r.states("sums"))
		}
		return nil
	})
	return tx
}

// TestTheOldReadModelShowsNothingThatTheNewOneLacks stops a takeover right after it has read the last events: what is appended then is shown by neither until it is over.
func TestTheOldReadModelShowsNothingThatTheNewOneLacks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	last := func(ctx context.Context, tx *projection.Tx, e projection.Event[fact]) error {
		if tx.Generation() == 2 && e.Fact.N == 1000 {
			select {
			case entered <- struct{}{}:
			default: // it is tried again
			}
			<-leave
		}
		return add(ctx, tx, e)
	}
	r.append("account-1", 1, 2)
	runner, _ := r.run(projection.Options{}, projection.Define("sums", 1, "account").Tables("seen_rows", "sums_rows").On("Added", projection.For(decode, last)))
	r.eventually("it catches up", r.same)
	held := r.heldTakeOver()
	r.append("account-1", 1000)
	if err := held.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-entered // within the takeover
	r.append("account-2", 1)
	runner.Wake()
	shown := func() bool { return r.int(`SELECT count(*) FROM sums WHERE stream = 'account-2'`) > 0 }
	r.eventually("the old generation waits for the takeover", func() error {
		if r.waiting(`UPDATE projections SET epoch`) == 0 && !shown() {
			return errors.New("not yet")
		}
		return nil
	})
	if shown() {
		t.Error("the old read model shows an event that the new one does not have when it takes over")
	}
	close(leave)
	r.rebuilt("sums", 2)
	r.eventually("the new one is right", r.same)
}

// TestATakeoverWaitsForTheAppendsThatWriteTheOldGeneration has one be under way that the new generation cannot see yet, and would never be given.
func TestATakeoverWaitsForTheAppendsThatWriteTheOldGeneration(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	def := sums(1)
	r.prepareInline(def)
	store, err := projection.NewInlineStore(r.pool, def)
	if err != nil {
		t.Fatal(err)
	}
	tx := r.begin()
	if _, err := store.Within(tx).Append(t.Context(), eventstore.Append{Stream: "account-1", Events: []eventstore.Event{event("Added", 1)}}); err != nil {
		t.Fatal(err)
	}
	if err := projection.Rebuild(t.Context(), r.pool, "sums"); err != nil {
		t.Fatal(err)
	}
	r.run(projection.Options{Inline: []*projection.Definition{def}})
	r.eventually("the takeover waits for the append", func() error {
		if live := r.states("sums")["live"]; r.waiting(takingOver) == 0 && live.Generation == 1 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.rebuilt("sums", 2)
	if err := r.same(); err != nil {
		t.Error(err)
	}
}
