package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/eventstore/storetest"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

// open makes a pool on a fresh database. The tracer, where given, sees every query.
func open(t testing.TB, url string, tracer pgx.QueryTracer) *pgxpool.Pool {
	t.Helper()
	return openTraced(t, url, 8, tracer)
}

func openTraced(t testing.TB, url string, connections int32, tracer pgx.QueryTracer) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns, cfg.ConnConfig.Tracer = connections, tracer
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func TestThePostgresStoreConforms(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t testing.TB) eventstore.Store { return storepg.New(open(t, throwaway.Database(t), nil)) })
}

func TestTheGatheringStoreConforms(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t testing.TB) eventstore.Store {
		return storepg.NewGathering(open(t, throwaway.Database(t), nil), 2)
	})
}

func event() eventstore.Event {
	return eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Happened", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
}

func move(stream string, uid uuid.UUID, expected int64) eventstore.Append {
	e := []eventstore.Event{event(), event()}
	return eventstore.Append{
		Stream: stream, Expected: expected, Events: e,
		State:    &eventstore.SagaState{UID: uid, Namespace: "shop", Name: "order", Phase: "Running", WakeAt: time.Now(), State: json.RawMessage(`{}`)},
		Messages: []eventstore.Message{{ID: e[0].ID, Type: "happened", Key: "k", Data: json.RawMessage(`{}`)}},
	}
}

// roundTrips counts what is sent to the server.
type roundTrips struct{ atomic.Int64 }

func (r *roundTrips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	r.Add(1)
	return ctx
}
func (*roundTrips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestAnAppendIsOneRoundTripAlsoForTheLoser(t *testing.T) {
	t.Parallel()
	var trips roundTrips
	store := storepg.New(open(t, throwaway.Database(t), &trips))
	uid := uuid.New()
	for expected := range int64(3) {
		if _, err := store.Append(t.Context(), move("s-1", uid, 2*expected)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Append(t.Context(), move("s-1", uid, 99)); !errors.Is(err, eventstore.ErrWrongVersion) {
		t.Fatal(err)
	}
	if n := trips.Load(); n != 4 {
		t.Errorf("4 appends took %d round trips", n)
	}
}

// TestAppendAtAnOldVersionLoses takes both ways through the server's functions: events alone, and
// with a state row.
func TestAppendAtAnOldVersionLoses(t *testing.T) {
	t.Parallel()
	store := storepg.New(open(t, throwaway.Database(t), nil))
	alone := func(expected int64) eventstore.Append {
		return eventstore.Append{Stream: "s-1", Expected: expected, Events: []eventstore.Event{event(), event()}}
	}
	uid := uuid.New()
	for name, next := range map[string]func(int64) eventstore.Append{
		"events alone": alone, "with a state row": func(expected int64) eventstore.Append { return move("s-2", uid, expected) },
	} {
		for expected := int64(0); expected <= 4; expected += 2 {
			if _, err := store.Append(t.Context(), next(expected)); err != nil {
				t.Fatalf("%s at version %d: %v", name, expected, err)
			}
		}
		for _, old := range []int64{2, 4} {
			var wrong *eventstore.WrongVersionError
			if _, err := store.Append(t.Context(), next(old)); !errors.As(err, &wrong) || wrong.Actual != 6 {
				t.Errorf("%s at version %d, where the stream has 6: %v", name, old, err)
			}
		}
	}
}

// TestCallbackStaysWithItsSaga records a token a second time, for another saga.
func TestCallbackStaysWithItsSaga(t *testing.T) {
	t.Parallel()
	store := storepg.New(open(t, throwaway.Database(t), nil))
	c := eventstore.Callback{TokenHash: [32]byte{1}, UID: uuid.New(), Step: "pay", Direction: "action", Attempt: 1, ExpiresAt: time.Now().Add(time.Hour)}
	stolen := c
	stolen.UID = uuid.New()
	for _, put := range []eventstore.Callback{c, stolen} {
		if err := store.PutCallback(t.Context(), put); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := store.Callback(t.Context(), c.TokenHash); err != nil || got.UID != c.UID {
		t.Errorf("it is one of saga %s, %v; want %s", got.UID, err, c.UID)
	}
}

func TestALoserBurnsNoPosition(t *testing.T) {
	t.Parallel()
	store := storepg.New(open(t, throwaway.Database(t), nil))
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event()}}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		for _, expected := range []int64{0, 7} {
			if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: expected, Events: []eventstore.Event{event()}}); !errors.Is(err, eventstore.ErrWrongVersion) {
				t.Fatal(err)
			}
		}
	}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: 1, Events: []eventstore.Event{event()}}); err != nil {
		t.Fatal(err)
	}
	events, err := store.Load(t.Context(), "s-1", 1, 2)
	if err != nil || events[1].Position != events[0].Position+1 {
		t.Errorf("positions %d and %d, %v", events[0].Position, events[1].Position, err)
	}
}

func TestMovingASagaUpdatesItsStateRowInPlace(t *testing.T) {
	t.Parallel()
	pool := openWide(t, throwaway.Database(t), 1)
	store, uid := storepg.New(pool), uuid.New()
	const moves = 50
	for i := range int64(moves) {
		if _, err := store.Append(t.Context(), move("s-1", uid, 2*i)); err != nil {
			t.Fatal(err)
		}
	}
	// A session says what it has counted when it is asked to, or some time later. It is the pool's only one.
	if _, err := pool.Exec(t.Context(), `SELECT pg_stat_force_next_flush()`); err != nil {
		t.Fatal(err)
	}
	updated, hot := count(t, pool, `SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'saga_state'`), count(t, pool, `SELECT n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'saga_state'`)
	if updated != moves-1 || hot < updated*9/10 {
		t.Errorf("the server has counted %d updates, want %d; %d of them in place", updated, moves-1, hot)
	}
}

func TestAStoreWhoseServerIsAwayIsUnavailableAndComesBack(t *testing.T) {
	t.Parallel()
	server := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, _, err := server.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	store := storepg.New(open(t, url, nil))
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event()}}); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // once on a broken connection, once without any
		_, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: 1, Events: []eventstore.Event{event()}})
		if !errors.Is(err, eventstore.ErrUnavailable) {
			t.Errorf("appending: %v, want ErrUnavailable", err)
		}
		if err := store.Ping(t.Context()); !errors.Is(err, eventstore.ErrUnavailable) {
			t.Errorf("asking: %v, want ErrUnavailable", err)
		}
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v, err := store.Version(t.Context(), "s-1"); err != nil || v != 1 {
		t.Errorf("after its return: version %d, %v", v, err)
	}
}

func TestAReadOnlyServerIsUnavailable(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store := storepg.New(pool)
	if err := store.Ping(t.Context()); !errors.Is(err, eventstore.ErrUnavailable) {
		t.Errorf("asking: %v, want ErrUnavailable", err)
	}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event()}}); !errors.Is(err, eventstore.ErrUnavailable) {
		t.Errorf("appending: %v, want ErrUnavailable", err)
	}
}

func TestARoleThatCannotChangeEventsSuffices(t *testing.T) {
	t.Parallel()
	server := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, _, err := server.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.ParseConfig(server.SuperuserURL())
	if err != nil {
		t.Fatal(err)
	}
	target, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	admin.Database = target.Database
	conn, err := pgx.ConnectConfig(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `CREATE ROLE saga_runtime LOGIN PASSWORD 'x'; `+postgres.Grants("saga_runtime")); err != nil {
		t.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.User, cfg.ConnConfig.Password = "saga_runtime", "x"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	store, uid := storepg.New(pool), uuid.New()
	for i := range int64(2) {
		if _, err := store.Append(t.Context(), move("s-1", uid, 2*i)); err != nil {
			t.Fatal(err)
		}
	}
	if events, err := store.Load(t.Context(), "s-1", 1, 10); err != nil || len(events) != 4 {
		t.Errorf("%d events, %v", len(events), err)
	}
	usesEverythingElse(t, pool, store, uid)
	for _, sql := range []string{`UPDATE event_store SET type = 'x'`, `DELETE FROM event_store`, `TRUNCATE event_store`, `UPDATE outbox_events SET type = 'x'`, `DELETE FROM streams`} {
		if _, err := pool.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s was allowed", sql)
		}
	}
}

// usesEverythingElse does what the operator does besides appending, with the rights that it has.
func usesEverythingElse(t *testing.T, pool *pgxpool.Pool, store *storepg.Store, uid uuid.UUID) {
	t.Helper()
	ctx := t.Context()
	callback := eventstore.Callback{TokenHash: [32]byte{1}, UID: uid, Step: "pay", Direction: "action", Attempt: 1, ExpiresAt: time.Now().Add(time.Hour)}
	_, noAnswer := store.PutAnswer(ctx, eventstore.Answer{UID: uid, Step: "pay", Direction: "action", Response: json.RawMessage(`{}`)})
	err := errors.Join(noAnswer, store.PutCallback(ctx, callback), store.Nudge(ctx, uid))
	if found, lookUp := store.Callback(ctx, callback.TokenHash); lookUp != nil || found.UID != uid {
		err = errors.Join(err, lookUp)
	}
	_, taken := store.TakeAnswered(ctx, 10)
	keys := idempotency.NewPostgres(pool, idempotency.Options{})
	begun, claimed := keys.Begin(ctx, idempotency.Key{Key: "k-1"}, idempotency.Fingerprint{})
	if err = errors.Join(err, taken, claimed); err != nil {
		t.Fatal(err)
	}
	_, swept := keys.Sweep(ctx, 10)
	_, removed := store.RemoveFinished(ctx, time.Now().Add(time.Hour), 10)
	_, dead := cqrs.DeadLetters(ctx, pool, "none", 10)
	if err := errors.Join(keys.Complete(ctx, *begun.Claim, idempotency.Response{Status: 200}), swept, removed, dead); err != nil {
		t.Error(err)
	}
}
