package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// heldUp runs do while the table of streams is locked, so that appends gather behind the first flush, and returns when it has been let go.
func heldUp(t *testing.T, pool *pgxpool.Pool, do func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE streams IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	do()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// appendAll appends each in a goroutine of its own and returns their errors once all have come back.
func appendAll(t *testing.T, store eventstore.Store, appends []eventstore.Append) func() []error {
	t.Helper()
	errs := make([]error, len(appends))
	var wg sync.WaitGroup
	for i, a := range appends {
		wg.Go(func() { _, errs[i] = store.Append(t.Context(), a) })
	}
	return func() []error { wg.Wait(); return errs }
}

func TestALoserInAFlushDoesNotFailTheOthers(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.NewPatient(pool, 1)
	var appends []eventstore.Append
	for i := range 20 {
		a := eventstore.Append{Stream: fmt.Sprintf("s-%d", i), Events: []eventstore.Event{event()}}
		if i%4 == 0 {
			a.Expected = 7 // loses
		}
		appends = append(appends, a)
	}
	var wait func() []error
	heldUp(t, pool, func() {
		wait = appendAll(t, store, appends)
		store.AwaitGathered(t, len(appends))
	})
	for i, err := range wait() {
		if lost := errors.Is(err, eventstore.ErrWrongVersion); lost != (i%4 == 0) || !lost && err != nil {
			t.Errorf("append %d: %v", i, err)
		}
	}
}

func TestARefusedAppendInAFlushDoesNotFailTheOthers(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.NewPatient(pool, 1)
	known := event()
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "first", Events: []eventstore.Event{known}}); err != nil {
		t.Fatal(err)
	}
	var appends []eventstore.Append
	for i := range 20 {
		a := eventstore.Append{Stream: fmt.Sprintf("s-%d", i), Events: []eventstore.Event{event()}}
		if i == 9 {
			a.Events = []eventstore.Event{known}
		}
		appends = append(appends, a)
	}
	var wait func() []error
	heldUp(t, pool, func() {
		wait = appendAll(t, store, appends)
		store.AwaitGathered(t, len(appends))
	})
	for i, err := range wait() {
		if refused := errors.Is(err, eventstore.ErrInvalid); refused != (i == 9) || !refused && err != nil {
			t.Errorf("append %d: %v", i, err)
		}
	}
}

func TestManyAppendsShareARoundTrip(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store := storepg.NewPatient(open(t, url, nil), 1)
	const n = 50
	var appends []eventstore.Append
	for range n {
		uid := uuid.New()
		appends = append(appends, move("saga-"+uid.String(), uid, 0))
	}
	locks := open(t, url, nil)
	var first, rest func() []error
	heldUp(t, locks, func() {
		first = appendAll(t, store, appends[:1])
		store.AwaitFlush(t)
		rest = appendAll(t, store, appends[1:])
		store.AwaitQueued(t, n-1)
	})
	if err := errors.Join(append(first(), rest()...)...); err != nil {
		t.Fatal(err)
	}
	var transactions int
	if err := locks.QueryRow(t.Context(), `SELECT count(DISTINCT txid) FROM event_store`).Scan(&transactions); err != nil {
		t.Fatal(err)
	}
	if transactions != 2 {
		t.Errorf("an append and %d that waited for it took %d transactions, want 2", n-1, transactions)
	}
}

func TestACallerWhoGivesUpBeforeItsFlushHasAppendedNothing(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store := storepg.NewPatient(open(t, url, nil), 1)
	first := make(chan error, 1)
	heldUp(t, open(t, url, nil), func() {
		go func() {
			_, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event()}})
			first <- err
		}()
		store.AwaitFlush(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan error, 1)
		go func() {
			_, err := store.Append(ctx, eventstore.Append{Stream: "s-2", Events: []eventstore.Event{event()}})
			cancelled <- err
		}()
		store.AwaitQueued(t, 1)
		cancel()
		if err := <-cancelled; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
	if err := <-first; err != nil {
		t.Errorf("the append that was under way: %v", err)
	}
	if v, err := store.Version(t.Context(), "s-2"); err != nil || v != 0 {
		t.Errorf("the append that was given up is at version %d, %v", v, err)
	}
}

func TestRivalsForAVersionAreAnsweredByOneFlush(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.NewPatient(pool, 1)
	first := eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event(), event()}}
	if _, err := store.Append(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	busy := eventstore.Append{Stream: "other", Events: []eventstore.Event{event()}}
	at := func(expected int64) eventstore.Append {
		return eventstore.Append{Stream: "s-1", Expected: expected, Events: []eventstore.Event{event()}}
	}
	// In this order: one that wins, one that loses to it, one that the stream has already, one that expects what the winner makes, one that was wrong anyhow.
	rivals := []eventstore.Append{at(2), at(2), first, at(3), at(9)}
	answers := make([]<-chan error, len(rivals))
	var wait func() []error
	heldUp(t, pool, func() {
		wait = appendAll(t, store, []eventstore.Append{busy})
		store.AwaitFlush(t)
		for i, a := range rivals {
			answers[i] = later(t.Context(), store, a)
			store.AwaitQueued(t, i+1)
		}
	})
	if err := errors.Join(wait()...); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{0, 3, 0, 0, 3} { // the version that a loser is told; 0: it succeeds
		err := <-answers[i]
		var wrong *eventstore.WrongVersionError
		switch {
		case want == 0 && err != nil, want > 0 && !errors.As(err, &wrong):
			t.Errorf("rival %d: %v", i, err)
		case want > 0 && wrong.Actual != want:
			t.Errorf("rival %d is told version %d, want %d", i, wrong.Actual, want)
		}
	}
	if v, err := store.Version(t.Context(), "s-1"); err != nil || v != 4 {
		t.Errorf("the stream is at version %d, %v; want 4", v, err)
	}
}
