package aggregate_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/aggregate"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// childURL names the database of a child process that adds to a cart until it is killed.
const childURL = "AGGREGATE_TEST_DATABASE"

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		child(url)
		os.Exit(1)
	}
	os.Exit(throwaway.Main(m))
}

// child adds to a cart, with a snapshot every 5 events.
func child(url string) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer pool.Close()
	kind := cartKind
	kind.Snapshots.Every = 5
	repo, err := aggregate.NewRepository(storepg.New(pool), kind, options{SnapshotTimeout: time.Hour})
	for i := 0; err == nil; i++ {
		_, err = repo.Update(ctx, "1", add(fmt.Sprintf("sku-%d", i%3), 1))
	}
	fmt.Fprintln(os.Stderr, err)
}

// TestAProcessKilledInTheMiddleOfASnapshotWriteLosesNothing has the snapshot wait within the database when its process is killed: it is written then, or not.
func TestAProcessKilledInTheMiddleOfASnapshotWriteLosesNothing(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store := storepg.New(pool)
	fill(t, snapshotting(t, store, 5, options{}), "1", 5)
	snapshot := func() (version int64) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT version FROM snapshots`).Scan(&version); err != nil {
			t.Fatal(err)
		}
		return version
	}
	for round, completes := range []bool{true, false, true, false} {
		before := snapshot()
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
		if _, err := tx.Exec(t.Context(), `SELECT FROM snapshots FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childURL+"="+url)
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		backend := writesASnapshot(t, pool)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		if !completes {
			if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1)`, backend); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		ended(t, pool, backend)
		if written := snapshot() > before; written != completes {
			t.Errorf("round %d: the snapshot was written: %t, want %t", round, written, completes)
		}
		withSnapshot, err := snapshotting(t, store, 5, options{}).Load(t.Context(), "1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `CREATE TABLE IF NOT EXISTS kept AS SELECT * FROM snapshots WITH NO DATA; WITH gone AS (DELETE FROM snapshots RETURNING *) INSERT INTO kept SELECT * FROM gone`); err != nil {
			t.Fatal(err)
		}
		scratch, err := carts(t, store, options{}).Load(t.Context(), "1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `WITH back AS (DELETE FROM kept RETURNING *) INSERT INTO snapshots SELECT * FROM back`); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(scratch.State(), withSnapshot.State()); diff != "" || withSnapshot.Version() != scratch.Version() {
			t.Errorf("round %d: with the snapshot it is at version %d, from scratch at %d (-scratch +snapshot):\n%s", round, withSnapshot.Version(), scratch.Version(), diff)
		}
	}
}

// writesASnapshot waits until a snapshot is being written, and returns the server's process that waits for its row.
func writesASnapshot(t *testing.T, pool *pgxpool.Pool) (backend int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; <-time.After(5 * time.Millisecond) {
		err := pool.QueryRow(t.Context(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND starts_with(query, 'INSERT INTO snapshots')`).Scan(&backend)
		if err == nil {
			return backend
		}
		if !errors.Is(err, pgx.ErrNoRows) || time.Now().After(deadline) {
			t.Fatalf("no snapshot is written: %v", err)
		}
	}
}

func ended(t *testing.T, pool *pgxpool.Pool, backend int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; <-time.After(5 * time.Millisecond) {
		var there bool
		if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, backend).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if !there {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the server goes on for a client that is dead")
		}
	}
}
