package postgres_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

const contenders = 32

// contend has many writers append to one stream until so many appends have succeeded, and returns how many were each one's, and by how many others an append was overtaken at most.
func contend(t *testing.T, total int, write func(ctx context.Context, writer int) error) (shares []int, overtaken int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var left, done atomic.Int64
	left.Store(int64(total))
	most, failed := make([]int64, contenders), make([]error, contenders)
	shares = make([]int, contenders)
	var wg sync.WaitGroup
	for w := range contenders {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				before := done.Load()
				if err := write(ctx, w); err != nil {
					failed[w] = err
					return
				}
				most[w] = max(most[w], done.Add(1)-before)
				shares[w]++
			}
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	return shares, slices.Max(most)
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

// starves fails when one of the writers succeeded much less often, for what it tried, than all together. How much each tried is the machine's choice.
func starves(t *testing.T, shares, tries []int, total int) {
	t.Helper()
	all := 0
	for _, n := range tries {
		all += n
	}
	for w := range shares {
		if fair := tries[w] * total / all; shares[w] < fair/8 {
			t.Errorf("writer %d had %d appends of %d tries; at the rate of all it were %d", w, shares[w], tries[w], fair)
		}
	}
}

func TestManyWritersOfOneStreamAtItsVersion(t *testing.T) {
	t.Parallel()
	total := 2000
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
			shares, _ := contend(t, total, atExpected(store, tries))
			t.Logf("%d appends in %v; tries from %d to %d, shares from %d to %d", total, time.Since(began).Round(time.Millisecond), slices.Min(tries), slices.Max(tries), slices.Min(shares), slices.Max(shares))
			holds(t, store, total)
			starves(t, shares, tries, total)
		})
	}
}

func TestManyWritersOfOneStreamAtAnyVersion(t *testing.T) {
	t.Parallel()
	const total = 10_000
	pool := openWide(t, throwaway.Database(t), contenders)
	for name, store := range map[string]eventstore.Store{"one by one": storepg.New(pool), "gathered": storepg.NewGathering(openWide(t, throwaway.Database(t), 4), 2)} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, overtaken := contend(t, total, atAny(store))
			t.Logf("%d appends in %v; one was overtaken by %d others", total, time.Since(began).Round(time.Millisecond), overtaken)
			holds(t, store, total)
			if overtaken > total/2 { // nobody is told to come again, so an append waits for those before it only
				t.Errorf("one append was overtaken by %d of %d", overtaken, total)
			}
		})
	}
}
