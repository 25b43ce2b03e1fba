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

// contend has many writers append to one stream until so many appends have succeeded, and returns how many were each one's.
func contend(t *testing.T, total int, write func(ctx context.Context, writer int) error) []int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var left atomic.Int64
	left.Store(int64(total))
	shares, failed := make([]int, contenders), make([]error, contenders)
	var wg sync.WaitGroup
	for w := range contenders {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := write(ctx, w); err != nil {
					failed[w] = err
					return
				}
				shares[w]++
			}
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	return shares
}

// atExpected looks where the stream is, as whoever decides something does, appends one event there, and tries again at the version that it is told.
func atExpected(store eventstore.Store, tried *atomic.Int64) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		at, err := store.Version(ctx, "s-1")
		if err != nil {
			return err
		}
		for e := []eventstore.Event{event()}; ; tried.Add(1) {
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

// starves fails when one of the writers had much less than its share.
func starves(t *testing.T, shares []int, total int) {
	t.Helper()
	if least := slices.Min(shares); least < total/contenders/8 {
		t.Errorf("one writer had %d of %d appends, and its share is %d: %v", least, total, total/contenders, shares)
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
			var tried atomic.Int64
			began := time.Now()
			shares := contend(t, total, atExpected(store, &tried))
			t.Logf("%d appends and %d that lost in %v; shares from %d to %d", total, tried.Load(), time.Since(began).Round(time.Millisecond), slices.Min(shares), slices.Max(shares))
			holds(t, store, total)
			starves(t, shares, total)
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
			shares := contend(t, total, atAny(store))
			t.Logf("%d appends in %v; shares from %d to %d", total, time.Since(began).Round(time.Millisecond), slices.Min(shares), slices.Max(shares))
			holds(t, store, total)
			starves(t, shares, total)
		})
	}
}
