package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/engine"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/testenv/driver"
)

// inFlight is how many sagas are under way when the operator ends.
const inFlight = 10_000

// dead is a participant that is called by an operator which ends before it hears of it.
type dead struct{ participant.Participant }

func (dead) Do(ctx context.Context, _ participant.Call) participant.Result {
	<-ctx.Done()
	return participant.Result{Kind: saga.Unknown}
}

// measureRecovery begins sagas, drops the engine, and measures how long another one takes until each has been sent again.
func measureRecovery(ctx context.Context, s settings) (rows []Row, err error) {
	server, _, pool, err := database(ctx, s.clients)
	if err != nil {
		return nil, err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, server.Close())
	}()
	parts, err := startParticipants()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, parts.stop()) }()
	streams, err := begin(ctx, s, pool, parts.url)
	if err != nil {
		return nil, err
	}
	bare, err := readStreams(ctx, pool, streams)
	if err != nil {
		return nil, err
	}
	took, err := recoverAll(ctx, s, pool, parts)
	if err != nil {
		return nil, err
	}
	return []Row{row("recovery.10000", took.Seconds(), "s", bare.Seconds(),
		"until the last of 10,000 sagas in flight has been sent again after a kill; limit: reading their streams by one connection")}, nil
}

// begin starts the sagas; their first step is under way.
func begin(ctx context.Context, s settings, pool *pgxpool.Pool, url string) ([]string, error) {
	http, err := caller()
	if err != nil {
		return nil, err
	}
	defer http.Close()
	e, err := engine.New(engine.Options{Store: storepg.NewGathering(pool, 2), Notify: func(engine.Key) {}, Participants: participant.Registry{"http": dead{http}}})
	if err != nil {
		return nil, err
	}
	obs := engine.Observation{Definition: threeSteps(url), Input: json.RawMessage(sagaInput)}
	streams := make([]string, inFlight)
	errs := make([]error, s.gatherers)
	var wg sync.WaitGroup
	for c := range s.gatherers {
		wg.Go(func() {
			for i := c; i < inFlight && errs[c] == nil; i += s.gatherers {
				k := engine.Key{Namespace: "bench", Name: fmt.Sprintf("saga-%d", i), UID: uuid.Must(uuid.NewV7()).String()}
				streams[i] = engine.StreamOf(k.UID)
				_, errs[c] = e.Advance(ctx, k, obs)
				e.Forget(k)
			}
		})
	}
	wg.Wait()
	return streams, errors.Join(errs...)
}

// readStreams reads the streams one after the other.
func readStreams(ctx context.Context, pool *pgxpool.Pool, streams []string) (time.Duration, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	began := time.Now()
	for _, stream := range streams {
		rows, err := conn.Query(ctx, `SELECT version, type, data FROM event_store WHERE stream = $1 ORDER BY version`, stream)
		if err != nil {
			return 0, err
		}
		for rows.Next() {
			_ = rows.RawValues()
		}
		if err := rows.Err(); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// recoverAll drives what is unfinished, until the first step of each saga has been sent.
func recoverAll(ctx context.Context, s settings, pool *pgxpool.Pool, parts *participants) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	began := time.Now()
	var mu sync.Mutex
	sent := 0
	parts.seen = func(r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path != "/reserve" {
			return
		}
		if sent++; sent == inFlight {
			took = time.Since(began)
			cancel()
		}
	}
	http, err := caller()
	if err != nil {
		return 0, err
	}
	defer http.Close()
	runner := &driver.Runner{Workers: s.clients}
	e, err := engine.New(engine.Options{Store: storepg.NewGathering(pool, 2), Notify: runner.Enqueue, Participants: participant.Registry{"http": http}})
	if err != nil {
		return 0, err
	}
	runner.Engine = e
	if err := runner.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	if sent < inFlight {
		return 0, fmt.Errorf("of %d sagas in flight %d were sent again", inFlight, sent)
	}
	return took, nil
}
