package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// roles is a server with a database, as its owner, as the superuser and as the operator's role see it.
func roles(t *testing.T) map[string]*pgxpool.Pool {
	t.Helper()
	server := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, _, err := server.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	as := func(url, user, password string) *pgxpool.Pool {
		cfg, err := pgxpool.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			cfg.ConnConfig.User, cfg.ConnConfig.Password = user, password
		}
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	admin, err := pgx.ParseConfig(server.SuperuserURL())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*pgxpool.Pool{"owner": as(url, "", ""), "superuser": as(url, admin.User, admin.Password)}
	if _, err := all["superuser"].Exec(t.Context(), `CREATE ROLE saga_runtime LOGIN PASSWORD 'x'; `+postgres.Grants("saga_runtime")); err != nil {
		t.Fatal(err)
	}
	all["operator"] = as(url, "saga_runtime", "x")
	return all
}

// finished makes a saga that is finished.
func finished(t *testing.T, store eventstore.Store) (uid uuid.UUID, last eventstore.Appended) {
	t.Helper()
	uid = uuid.New()
	a := move("saga-"+uid.String(), uid, 0)
	a.State.Finished = true
	last, err := store.Append(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return uid, last
}

func count(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNobodyChangesEvents(t *testing.T) {
	t.Parallel()
	as := roles(t)
	if _, err := storepg.New(as["owner"]).Append(t.Context(), move("s-1", uuid.New(), 0)); err != nil {
		t.Fatal(err)
	}
	for who, pool := range as {
		for _, sql := range []string{
			`UPDATE event_store SET type = 'x'`, `UPDATE event_store SET data = '{}' WHERE stream = 'nobody'`, `DELETE FROM event_store`, `DELETE FROM event_store WHERE stream = 's-1'`,
			`TRUNCATE event_store`, `TRUNCATE event_store, streams CASCADE`, `INSERT INTO event_store (stream, version, event_id, type, schema_version, data, metadata)
				SELECT stream, version, event_id, 'x', 1, '{}', '{}' FROM event_store ON CONFLICT (event_id) DO UPDATE SET type = 'x'`,
			`MERGE INTO event_store e USING (SELECT 1) one ON e.stream = 's-1' WHEN MATCHED THEN DELETE`,
		} {
			_, err := pool.Exec(t.Context(), sql)
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != "42501" {
				t.Errorf("the %s's %s: %v, want it refused for want of a right", who, sql, err)
				continue
			}
			// The operator has no right to it; whoever has is refused by the trigger.
			if byTrigger := strings.Contains(refused.Message, "events are never changed"); byTrigger != (who != "operator") {
				t.Errorf("the %s's %s was refused with %q", who, sql, refused.Message)
			}
		}
	}
	for _, right := range []string{"UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"} {
		if count(t, as["owner"], `SELECT (has_table_privilege('saga_runtime', 'event_store', $1) OR has_any_column_privilege('saga_runtime', 'event_store', CASE WHEN $1 IN ('UPDATE', 'REFERENCES') THEN $1 ELSE 'UPDATE' END))::integer`, right) != 0 {
			t.Errorf("the operator has the right to %s events", right)
		}
	}
	if n := count(t, as["owner"], `SELECT count(*) FROM event_store WHERE type = 'Happened'`); n != 2 {
		t.Errorf("%d events are as they were, want 2", n)
	}
}

func TestOnlyWholeFinishedSagasAreRemoved(t *testing.T) {
	t.Parallel()
	as := roles(t)
	store := storepg.New(as["operator"])
	uid, _ := finished(t, store)
	running := uuid.New()
	if _, err := store.Append(t.Context(), move("saga-"+running.String(), running, 0)); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`DELETE FROM saga_state`, `DELETE FROM streams`, `DELETE FROM snapshots`, `DELETE FROM outbox_events`} {
		if _, err := as["operator"].Exec(t.Context(), sql); err == nil {
			t.Errorf("the operator's %s was allowed", sql)
		}
	}
	if n, err := store.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 10); err != nil || n != 1 {
		t.Errorf("the operator removed %d, %v, want 1", n, err)
	}
	if n := count(t, as["owner"], `SELECT count(*) FROM event_store WHERE stream = 'saga-' || $1::text`, uid); n != 0 {
		t.Errorf("%d events of the finished saga are left", n)
	}
	if n := count(t, as["owner"], `SELECT count(*) FROM event_store`); n != 2 {
		t.Errorf("%d events are left, want the 2 of the saga that runs", n)
	}
}

// The leave to remove ends with the function, also for a session that goes on within the same transaction.
func TestRemovingSagasOpensNoDoor(t *testing.T) {
	t.Parallel()
	as := roles(t)
	store := storepg.New(as["owner"])
	finished(t, store)
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event()}}); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(t.Context(), as["owner"], func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SELECT remove_finished_sagas(now() + interval '1 hour', 10)`); err != nil {
			t.Errorf("removing: %v", err)
		}
		_, err := tx.Exec(t.Context(), `DELETE FROM event_store`)
		return err
	})
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "42501" {
		t.Errorf("%v, want it refused", err)
	}
	if n := count(t, as["owner"], `SELECT count(*) FROM event_store`); n != 3 {
		t.Errorf("%d events, want 3: what the refused transaction removed is back", n)
	}
}

func TestNobodyElseMayRemoveSagas(t *testing.T) {
	t.Parallel()
	as := roles(t)
	finished(t, storepg.New(as["owner"]))
	if _, err := as["superuser"].Exec(t.Context(), `CREATE ROLE reader LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader`); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(t.Context(), as["superuser"], func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SET LOCAL ROLE reader; SELECT remove_finished_sagas(now() + interval '1 hour', 10)`)
		return err
	})
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "42501" {
		t.Errorf("%v, want it refused", err)
	}
	if n := count(t, as["owner"], `SELECT count(*) FROM event_store`); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

// place puts a projection into the table, with a checkpoint.
func place(t *testing.T, pool *pgxpool.Pool, name, status string, inline bool, done eventstore.View) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `INSERT INTO projections (name, generation, version, status, inline, epoch, done) VALUES ($1, 1, 1, $2, $3, $4, $5::text::pg_snapshot)
		ON CONFLICT (name, generation) DO UPDATE SET status = excluded.status, epoch = excluded.epoch, done = excluded.done`, name, status, inline, done.Epoch, done.Snapshot()); err != nil {
		t.Fatal(err)
	}
}

func TestASagaThatAProjectionHasNotReadStays(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status string
		inline bool
		stays  bool
	}{
		"live":                     {"live", false, true},
		"building":                 {"building", false, true},
		"retired":                  {"retired", false, false},
		"live and inline":          {"live", true, false}, // it has read what is appended before anyone can remove it
		"building, to be inline":   {"building", true, true},
		"retired, and was inline":  {"retired", true, false},
		"there is none that reads": {"", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := open(t, throwaway.Database(t), nil)
			store := storepg.New(pool)
			before, err := store.ReadAll(t.Context(), eventstore.Checkpoint{}, eventstore.Filter{}, 10)
			if err != nil {
				t.Fatal(err)
			}
			_, last := finished(t, store)
			if test.status != "" {
				place(t, pool, "reader", test.status, test.inline, before.Next.Done)
			}
			if before.Next.Sees(last.Token) {
				t.Fatal("the checkpoint sees what came after it")
			}
			want := 1
			if test.stays {
				want = 0
			}
			if n, err := store.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 10); err != nil || n != want {
				t.Fatalf("removed %d, %v, want %d", n, err, want)
			}
			if !test.stays {
				return
			}
			after, err := store.ReadAll(t.Context(), before.Next, eventstore.Filter{}, 10)
			if err != nil || len(after.Events) != 2 {
				t.Fatalf("%d events, %v", len(after.Events), err)
			}
			place(t, pool, "reader", test.status, test.inline, after.Next.Done)
			if n, err := store.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 10); err != nil || n != 1 {
				t.Errorf("once it has been read, removed %d, %v, want 1", n, err)
			}
		})
	}
}

// One projection that lags keeps only what it lags behind, and does not keep retention from the rest.
func TestASagaThatStaysDoesNotKeepOthers(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	read, _ := finished(t, store)
	page, err := store.ReadAll(t.Context(), eventstore.Checkpoint{}, eventstore.Filter{}, 10)
	if err != nil {
		t.Fatal(err)
	}
	place(t, pool, "slow", "live", false, page.Next.Done)
	unread, _ := finished(t, store)
	if n, err := store.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 1); err != nil || n != 1 {
		t.Errorf("removed %d, %v, want 1", n, err)
	}
	if _, err := store.SagaState(t.Context(), read); !errors.Is(err, eventstore.ErrNotFound) {
		t.Errorf("the saga that was read: %v", err)
	}
	if _, err := store.SagaState(t.Context(), unread); err != nil {
		t.Errorf("the saga that was not read: %v", err)
	}
}

// A saga of which a part is read is not read.
func TestASagaInTheMiddleOfAWindowStays(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	finished(t, store)
	page, err := store.ReadAll(t.Context(), eventstore.Checkpoint{}, eventstore.Filter{}, 1)
	if err != nil || page.Next.Until == nil {
		t.Fatalf("%+v, %v", page.Next, err)
	}
	place(t, pool, "reader", "live", false, page.Next.Done)
	if n, err := store.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 10); err != nil || n != 0 {
		t.Errorf("removed %d, %v, want 0", n, err)
	}
}

func TestADamagedSnapshotIsNone(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	if err := store.SaveSnapshot(t.Context(), eventstore.Snapshot{Stream: "s-1", Version: 1, SchemaVersion: 1, Data: []byte(`{"a":1}`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(context.Background(), `UPDATE snapshots SET data = '{"a":2}'`); err != nil {
		t.Fatal(err)
	}
	if got, err := store.LoadSnapshot(t.Context(), "s-1"); !errors.Is(err, eventstore.ErrNotFound) {
		t.Errorf("%+v, %v, want ErrNotFound", got, err)
	}
}
