package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/projection"
)

// measureFollowing measures how fast a read model follows the events: from far behind, and when there is nothing else to do.
func measureFollowing(ctx context.Context, s settings) (rows []Row, err error) {
	server, _, pool, err := database(ctx, s.clients)
	if err != nil {
		return nil, err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, server.Close())
	}()
	rate, err := rebuildRate(ctx, pool, s)
	if err != nil {
		return nil, err
	}
	p50, p99, err := liveLatency(ctx, pool, s)
	if err != nil {
		return nil, err
	}
	const rebuildMark, liveMark = 100_000, 5
	return []Row{
		row("store.rebuild", rate, "events/s", rebuildMark, fmt.Sprintf("a projection with an empty handler built from %d events; limit: the mark", s.events)),
		row("store.live.p50", p50, "ms", liveMark, "from commit to handler, idle, median; limit: the mark"),
		row("store.live.p99", p99, "ms", 0, "the same, 99 of 100"),
	}, nil
}

// fillEvents writes events as appends would have, many at once.
const fillEvents = `WITH s AS (INSERT INTO streams (stream, version) SELECT 'bench-' || n, 10 FROM generate_series(1, $1) n RETURNING stream)
INSERT INTO event_store (stream, version, event_id, type, schema_version, data, metadata)
SELECT stream, v, gen_random_uuid(), 'Happened', 1, '` + eventData + `', '{}' FROM s, generate_series(1, 10) v`

// following runs a projection over the category bench until the function it returns is called.
func following(ctx context.Context, pool *pgxpool.Pool, handle func(eventstore.Recorded)) (*projection.Runner, func(), error) {
	def := projection.Define("bench", 1, "bench").On("Happened", func(_ context.Context, _ *projection.Tx, e eventstore.Recorded) error {
		handle(e)
		return nil
	})
	runner, err := projection.NewRunner(projection.Options{Pool: pool, Store: storepg.New(pool)}, def)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = runner.Run(ctx) })
	return runner, func() { cancel(); wg.Wait() }, nil
}

func rebuildRate(ctx context.Context, pool *pgxpool.Pool, s settings) (float64, error) {
	if _, err := pool.Exec(ctx, fillEvents, s.events/10); err != nil {
		return 0, fmt.Errorf("filling the store: %w", err)
	}
	if _, err := pool.Exec(ctx, `VACUUM ANALYZE event_store`); err != nil {
		return 0, fmt.Errorf("filling the store: %w", err)
	}
	var seen atomic.Int64
	var began, ended atomic.Int64
	_, stop, err := following(ctx, pool, func(eventstore.Recorded) {
		switch n := seen.Add(1); n {
		case 1:
			began.Store(time.Now().UnixNano())
		case int64(s.events):
			ended.Store(time.Now().UnixNano())
		}
	})
	if err != nil {
		return 0, err
	}
	defer stop()
	for ended.Load() == 0 {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return float64(s.events) / (time.Duration(ended.Load() - began.Load())).Seconds(), nil
}

// liveLatency appends one event after the other, each after the one before has been handled and a pause, and returns milliseconds.
func liveLatency(ctx context.Context, pool *pgxpool.Pool, s settings) (p50, p99 float64, err error) {
	handled := make(chan time.Time, 1)
	var expected atomic.Pointer[uuid.UUID]
	runner, stop, err := following(ctx, pool, func(e eventstore.Recorded) {
		if id := expected.Load(); id != nil && *id == e.ID { // the last page of the rebuild may come again: its runner was stopped
			select {
			case handled <- time.Now():
			default: // this one may come again, too
			}
		}
	})
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	var committed time.Time
	store := storepg.NewGathering(pool, 1, storepg.OnCommit(func() { committed = time.Now(); runner.Wake() }))
	took := make([]float64, 0, s.samples)
	for range s.samples {
		e := event()
		e.Type = "Happened"
		expected.Store(&e.ID)
		if _, err := store.Append(ctx, eventstore.Append{Stream: "bench-" + uuid.Must(uuid.NewV7()).String(), Events: []eventstore.Event{e}}); err != nil {
			return 0, 0, err
		}
		select {
		case at := <-handled:
			took = append(took, max(at.Sub(committed), 0).Seconds()*1000)
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
		<-time.After(5 * time.Millisecond)
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}
