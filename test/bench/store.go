package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// eventData is about as long as a typical event of a saga.
const eventData = `{"at":"2030-01-02T03:04:05.678901Z","step":"reserve-stock","direction":"action","number":1,"output":{"reservation":"r-1042"}}`

// database starts a server that commits durably, as a production server does, and opens a pool on a migrated database.
func database(ctx context.Context, conns int) (*throwaway.Server, string, *pgxpool.Pool, error) {
	server, err := throwaway.Start(ctx, throwaway.Options{Durable: true})
	if err != nil {
		return nil, "", nil, err
	}
	dsn, _, err := server.NewDatabase(ctx)
	if err != nil {
		return nil, "", nil, errors.Join(err, server.Close())
	}
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, "", nil, errors.Join(err, server.Close())
	}
	cfg.MaxConns = int32(conns)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, "", nil, errors.Join(err, server.Close())
	}
	return server, dsn, pool, nil
}

func measureStore(ctx context.Context, s settings) (rows []Row, err error) {
	server, dsn, pool, err := database(ctx, s.clients)
	if err != nil {
		return nil, err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, server.Close())
	}()
	store, gathering := storepg.New(pool), storepg.NewGathering(pool, 2)
	neighbour, err := newPeer(ctx, pool)
	if err != nil {
		return nil, err
	}
	var peers []float64
	var ours, shared, moves, bare, gathered, bulk, told, silent []float64
	many := s
	many.clients = s.gatherers
	for range s.rounds {
		limit, err := pgbench(ctx, dsn, s, limitScript)
		if err != nil {
			return nil, err
		}
		transactions, err := pgbench(ctx, dsn, s, fmt.Sprintf(bulkScript, bulkRows))
		if err != nil {
			return nil, err
		}
		crowd, err := appends(ctx, gathering, many, singleEvent)
		if err != nil {
			return nil, err
		}
		telling, err := appends(ctx, gathering, many, sagaMove)
		if err != nil {
			return nil, err
		}
		quiet, err := appends(ctx, gathering, many, silentMove)
		if err != nil {
			return nil, err
		}
		told, silent = append(told, telling), append(silent, quiet)
		locked, err := appends(ctx, neighbour, s, singleEvent)
		if err != nil {
			return nil, err
		}
		peers = append(peers, locked)
		bulk, gathered = append(bulk, transactions*bulkRows), append(gathered, crowd)
		single, err := appends(ctx, store, s, singleEvent)
		if err != nil {
			return nil, err
		}
		together, err := appends(ctx, gathering, s, singleEvent)
		if err != nil {
			return nil, err
		}
		move, err := appends(ctx, gathering, s, sagaMove)
		if err != nil {
			return nil, err
		}
		bare, ours = append(bare, limit), append(ours, single)
		shared, moves = append(shared, together), append(moves, move)
	}
	limit := median(bare)
	return []Row{
		row("store.append.single", median(ours), "appends/s", limit, "one event per append by 32 clients; limit: pgbench inserting the same rows"),
		row("store.append.shared", median(shared), "appends/s", limit, "the same through the store that the operator uses, which commits the appends of many callers together; same limit"),
		row("store.append.gathered", median(gathered), "events/s", median(bulk), fmt.Sprintf("one event per append by %d clients through that store; limit: pgbench inserting the same rows, %d appends to a transaction", s.gatherers, bulkRows)),
		row("store.append.outbox", median(told), "appends/s", median(silent), fmt.Sprintf("two events, a state row and a message per append by %d clients, through that store; limit: the same without the message", s.gatherers)),
		row("store.append.peer", median(peers), "appends/s", limit, "an honest neighbour: the shape of message-db 1.3, a lock for each category held through the commit, one message a call, 32 clients, one category; same limit"),
		row("store.append.move", median(moves), "appends/s", limit, "two events, a state row and a message per append, through the same store; same limit, which has less to do"),
	}, nil
}

func singleEvent(stream string) eventstore.Append {
	return eventstore.Append{Stream: stream, Events: []eventstore.Event{event()}}
}

// sagaMove is what a saga appends when an attempt has ended and the next one starts.
func sagaMove(stream string) eventstore.Append {
	uid := uuid.MustParse(stream[len("saga-"):])
	a := eventstore.Append{Stream: stream, Events: []eventstore.Event{event(), event()}}
	a.State = &eventstore.SagaState{UID: uid, Namespace: "shop", Name: "order", Phase: "Running", State: json.RawMessage(eventData)}
	a.Messages = []eventstore.Message{{ID: a.Events[0].ID, Type: "io.vextrus.saga.StepSucceeded", Key: uid.String(), Source: "/bench", Subject: "order", Namespace: "shop", Sequence: 1, Data: json.RawMessage(eventData)}}
	return a
}

// silentMove is a move that nobody is told of.
func silentMove(stream string) eventstore.Append {
	a := sagaMove(stream)
	a.Messages = nil
	return a
}

func event() eventstore.Event {
	return eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "AttemptSucceeded", SchemaVersion: 1, Data: json.RawMessage(eventData)}
}

// appends counts how many appends per second the clients get done, each to a stream of its own.
func appends(ctx context.Context, store eventstore.Store, s settings, build func(stream string) eventstore.Append) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.seconds)
	defer cancel()
	var done atomic.Int64
	var wg sync.WaitGroup
	failed := make([]error, s.clients)
	began := time.Now()
	for c := range s.clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := store.Append(ctx, build("saga-"+uuid.Must(uuid.NewV7()).String())); err != nil {
					if ctx.Err() == nil {
						failed[c] = err
					}
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), errors.Join(failed...)
}

// limitScript inserts the rows of one append without its checks: the stream and its event.
const limitScript = `WITH s AS (INSERT INTO streams (stream, version) VALUES ('saga-' || gen_random_uuid(), 1) RETURNING stream)
INSERT INTO event_store (stream, version, event_id, type, schema_version, data, metadata)
SELECT stream, 1, gen_random_uuid(), 'AttemptSucceeded', 1, '` + eventData + `', '{}' FROM s;
`

// bulkScript inserts the rows of many appends in one transaction.
const bulkScript = `WITH s AS (INSERT INTO streams (stream, version) SELECT 'saga-' || gen_random_uuid(), 1 FROM generate_series(1, %d) RETURNING stream)
INSERT INTO event_store (stream, version, event_id, type, schema_version, data, metadata)
SELECT stream, 1, gen_random_uuid(), 'AttemptSucceeded', 1, '` + eventData + `', '{}' FROM s;
`

// bulkRows is how many appends bulkScript puts into a transaction.
const bulkRows = 100

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// pgbench measures what the database does with the same rows and nothing around them.
func pgbench(ctx context.Context, dsn string, s settings, text string) (rate float64, err error) {
	path, err := findPgbench()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return 0, fmt.Errorf("writing the pgbench script: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	script := filepath.Join(dir, "append.sql")
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		return 0, fmt.Errorf("writing the pgbench script: %w", err)
	}
	cmd := exec.CommandContext(ctx, path, "-n", "-M", "prepared", "-c", strconv.Itoa(s.clients), "-j", "2", "-T", strconv.Itoa(int(s.seconds.Seconds())), "-f", script, dsn)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("running pgbench: %w: %s", err, out)
	}
	m := tps.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench did not say its rate: %s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

func findPgbench() (string, error) {
	if path, err := exec.LookPath("pgbench"); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench") // the pattern is well formed
	if len(found) == 0 {
		return "", errors.New("pgbench is not installed; it measures the limits: install PostgreSQL's client tools")
	}
	return found[len(found)-1], nil
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
