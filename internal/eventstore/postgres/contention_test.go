package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

const contenders = 32

// contend has many writers append to one stream, so many events in all, and each as many as any other: it ends only when all of them have come through.
func contend(t *testing.T, total int, write func(ctx context.Context, writer int) error) {
	t.Helper()
	failed := make([]error, contenders)
	var wg sync.WaitGroup
	for w := range contenders {
		wg.Go(func() {
			for n := w; n < total && failed[w] == nil; n += contenders {
				failed[w] = write(t.Context(), w)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
}

// atExpected looks where the stream is, as whoever decides something does, appends one event there, and tries again at the version that it is told. It counts the tries of each writer.
func atExpected(store eventstore.Store, tries []int) func(context.Context, int) error {
	return func(ctx context.Context, writer int) error {
		at, err := store.Version(ctx, "s-1")
		if err != nil {
			return err
		}
		for e := []eventstore.Event{event()}; ; {
			tries[writer]++
			_, err := store.Append(ctx, eventstore.Append{Stream: "s-1", Expected: at, Events: e})
			var wrong *eventstore.WrongVersionError
			if !errors.As(err, &wrong) {
				return err
			}
			if wrong.Actual <= at { // somebody else was faster, or it had succeeded
				return fmt.Errorf("refused at version %d, and told that it is at %d", at, wrong.Actual)
			}
			at = wrong.Actual
		}
	}
}

func atAny(store eventstore.Store) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		_, err := store.Append(ctx, eventstore.Append{Stream: "s-1", Expected: eventstore.AnyVersion, Events: []eventstore.Event{event()}})
		return err
	}
}

// holds checks that a stream has the versions 1 to total, each once, in the order of the positions.
func holds(t *testing.T, store eventstore.Store, total int) {
	t.Helper()
	ids := make(map[uuid.UUID]bool, total)
	var last int64
	for from := int64(1); ; {
		page, err := store.Load(t.Context(), "s-1", from, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			if e.Version != from || e.Position <= last || ids[e.ID] {
				t.Fatalf("version %d at position %d, where version %d after position %d is due; seen before: %t", e.Version, e.Position, from, last, ids[e.ID])
			}
			ids[e.ID], last = true, e.Position
			from++
		}
		if len(page) == 0 {
			break
		}
	}
	if len(ids) != total {
		t.Errorf("%d events, want %d", len(ids), total)
	}
}

func TestManyWritersOfOneStreamAtItsVersion(t *testing.T) {
	t.Parallel()
	total := 1000
	if long() {
		total = 10_000
	}
	for name, wide := range map[string]bool{"gathered": false, "one by one": true} {
		t.Run(name, func(t *testing.T) {
			pool := openWide(t, throwaway.Database(t), contenders)
			var store eventstore.Store = storepg.NewGathering(pool, 2)
			if wide {
				store = storepg.New(pool)
			}
			tries := make([]int, contenders)
			began := time.Now()
			contend(t, total, atExpected(store, tries))
			t.Logf("%d appends in %v; tries from %d to %d", total, time.Since(began).Round(time.Millisecond), slices.Min(tries), slices.Max(tries))
			holds(t, store, total)
		})
	}
}

// Nobody is told to come again, so an append at any version costs one round trip however many contend, and waits for those before it only.
func TestManyWritersOfOneStreamAtAnyVersion(t *testing.T) {
	t.Parallel()
	total := 1000
	if long() {
		total = 10_000
	}
	for name, gathered := range map[string]bool{"gathered": true, "one by one": false} {
		t.Run(name, func(t *testing.T) {
			var trips roundTrips
			pool := openTraced(t, throwaway.Database(t), contenders, &trips)
			var store eventstore.Store = storepg.New(pool)
			if gathered {
				store = storepg.NewGathering(pool, 2)
			}
			began := time.Now()
			contend(t, total, atAny(store))
			took := trips.Load()
			t.Logf("%d appends in %v, %d round trips", total, time.Since(began).Round(time.Millisecond), took)
			holds(t, store, total)
			if took > int64(total) {
				t.Errorf("%d appends took %d round trips", total, took)
			}
		})
	}
}
