package postgres_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// beginDrawn begins a transaction and has it draw its id.
func beginDrawn(t *testing.T, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `SELECT pg_current_xact_id()`)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// TestReaderGetsWhatWasRunningWhenItLooked has an event with the lowest position be committed last.
func TestReaderGetsWhatWasRunningWhenItLooked(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	late := beginDrawn(t, pool)
	if _, err := storepg.AppendAll(t.Context(), late, []eventstore.Append{{Stream: "late-1", Events: []eventstore.Event{event()}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "early-1", Events: []eventstore.Event{event()}}); err != nil {
		t.Fatal(err)
	}
	first, err := store.ReadAll(t.Context(), eventstore.Checkpoint{}, eventstore.Filter{}, 10)
	if err != nil || len(first.Events) != 1 || first.Events[0].Stream != "early-1" {
		t.Fatalf("read %v, %v", first.Events, err)
	}
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, err := store.ReadAll(t.Context(), first.Next, eventstore.Filter{}, 10)
	if err != nil || len(second.Events) != 1 || second.Events[0].Stream != "late-1" {
		t.Errorf("then read %v, %v: the event that was committed late is lost", second.Events, err)
	}
}

// A snapshot ends at the last transaction that had ended: one that was running above that is not in its list.
func TestATransactionThatRanAboveTheSnapshotsEndIsNotLost(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	lower := beginDrawn(t, pool)
	upper := beginDrawn(t, pool)
	add := func(tx pgx.Tx, stream string) {
		t.Helper()
		if _, err := storepg.AppendAll(t.Context(), tx, []eventstore.Append{{Stream: stream, Events: []eventstore.Event{event()}}}); err != nil {
			t.Fatal(err)
		}
	}
	commit := func(tx pgx.Tx) {
		t.Helper()
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	add(upper, "upper-1") // the lower position
	add(lower, "lower-1")
	commit(lower)
	first, err := store.ReadAll(t.Context(), eventstore.Checkpoint{}, eventstore.Filter{}, 10)
	if err != nil || len(first.Events) != 1 || first.Events[0].Stream != "lower-1" {
		t.Fatalf("read %v, %v", first.Events, err)
	}
	commit(upper)
	second, err := store.ReadAll(t.Context(), first.Next, eventstore.Filter{}, 10)
	if err != nil || len(second.Events) != 1 || second.Events[0].Stream != "upper-1" {
		t.Errorf("then read %v, %v: the event that committed late is lost", second.Events, err)
	}
}

// A page looks through so many positions; what comes right behind them is the next page's.
func TestAnEventRightBehindWhatAPageLooksThroughIsNotLost(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	const span = 20_000
	add := func(position int) eventstore.Event {
		t.Helper()
		if _, err := pool.Exec(t.Context(), fmt.Sprintf(`ALTER TABLE event_store ALTER COLUMN position RESTART WITH %d`, position)); err != nil {
			t.Fatal(err)
		}
		e := event()
		if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-" + e.ID.String(), Events: []eventstore.Event{e}}); err != nil {
			t.Fatal(err)
		}
		return e
	}
	var want []uuid.UUID
	for _, position := range []int{span, span + 1, 2*span + 1, 2*span + 2, 5 * span} {
		want = append(want, add(position).ID)
	}
	var got []uuid.UUID
	var from eventstore.Checkpoint
	for more := true; more; {
		page, err := store.ReadAll(t.Context(), from, eventstore.Filter{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		got, from, more = append(got, ids(page.Events)...), page.Next, page.More
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}
