package run

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// finishedSagas appends so many sagas that have finished just now.
func finishedSagas(t *testing.T, store eventstore.Store, n int) {
	t.Helper()
	for left := n; left > 0; {
		var some []eventstore.Append
		for range min(left, eventstore.MaxStreamsPerAppend) {
			uid := uuid.New()
			some = append(some, eventstore.Append{
				Stream: "saga-" + uid.String(),
				Events: []eventstore.Event{{ID: uuid.Must(uuid.NewV7()), Type: "SagaCompleted", SchemaVersion: 1, Data: json.RawMessage(`{}`)}},
				State:  &eventstore.SagaState{UID: uid, Finished: true, State: json.RawMessage(`{}`)},
			})
		}
		if _, err := store.AppendAll(t.Context(), some); err != nil {
			t.Fatal(err)
		}
		left -= len(some)
	}
}

// limited counts the calls that remove sagas, and lets the first panic.
type limited struct {
	eventstore.Store
	calls atomic.Int32
}

func (l *limited) RemoveFinished(ctx context.Context, before time.Time, limit int) (int, error) {
	if l.calls.Add(1) == 1 {
		panic("a bug")
	}
	return l.Store.RemoveFinished(ctx, before, limit)
}

func TestRetentionRemovesWhatFinishedLongAgoInBatches(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: patient(t, throwaway.Database(t))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	store := &limited{Store: storepg.New(pool)}
	const old, young = 2*retentionBatch + 50, 3
	finishedSagas(t, store, old)
	if _, err := pool.Exec(t.Context(), `UPDATE saga_state SET finished_at = finished_at - interval '3 hours'`); err != nil {
		t.Fatal(err)
	}
	finishedSagas(t, store, young)
	// These finished a moment ago, by a clock that was an hour behind.
	if _, err := pool.Exec(t.Context(), `UPDATE saga_state SET finished_at = finished_at - interval '1 hour' WHERE finished_at > now() - interval '2 hours'`); err != nil {
		t.Fatal(err)
	}

	r := &retention{store: store, clock: time.Now, log: slog.New(slog.DiscardHandler)}
	if err := r.Start(t.Context()); err != nil { // everything is kept, and it ends by itself
		t.Fatal(err)
	}
	if n := sagasLeft(t, pool); n != old+young {
		t.Fatalf("%d sagas are left without retention, want %d", n, old+young)
	}
	r.after = time.Hour
	r.remove(t.Context()) // panics, which is caught
	r.remove(t.Context())
	if n := sagasLeft(t, pool); n != young {
		t.Errorf("%d sagas are left, want the %d that may have finished a moment ago", n, young)
	}
	if n := store.calls.Load() - 1; n != old/retentionBatch+1 {
		t.Errorf("%d sagas were removed in %d transactions, want %d", old, n, old/retentionBatch+1)
	}

	finishedSagas(t, store, 1)
	if _, err := pool.Exec(t.Context(), `UPDATE saga_state SET finished_at = finished_at - interval '3 hours'`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Start(ctx) }()
	eventually(t, func() error {
		if n := sagasLeft(t, pool); n > 0 {
			return fmt.Errorf("%d sagas are left, so the runnable removes nothing", n)
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func sagasLeft(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM saga_state`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
