package sagas_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/internal/projection/sagas"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

var noon = time.Date(2030, 5, 6, 12, 0, 0, 0, time.UTC)

// at is a moment so many seconds after noon.
func at(seconds int) saga.At { return saga.At{At: noon.Add(time.Duration(seconds) * time.Second)} }

func started(uid, name string) saga.Event {
	return saga.SagaStarted{At: at(0), UID: uid, Namespace: "shop", Name: name, CreatedBy: "ada"}
}

func reserve(n int) saga.Attempt {
	return saga.Attempt{EffectID: saga.EffectID{Step: "reserve", Direction: saga.Action}, Number: n}
}

func undo(n int) saga.Attempt {
	return saga.Attempt{EffectID: saga.EffectID{Step: "reserve", Direction: saga.Compensation}, Number: n}
}

type world struct {
	*testing.T
	pool  *pgxpool.Pool
	store *storepg.Store
}

func newWorld(t *testing.T) *world {
	t.Helper()
	pool, err := postgres.Open(context.Background(), postgres.Config{URL: throwaway.Database(t), StatementTimeout: time.Hour, LockTimeout: time.Hour, IdleInTxTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w := &world{T: t, pool: pool, store: storepg.New(pool)}
	runner, err := projection.NewRunner(projection.Options{Pool: pool, Store: w.store, Patience: time.Hour}, sagas.History(), sagas.Summary())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = runner.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

// record appends the events of a saga and returns the token by which to wait for them.
func (w *world) record(uid string, events ...saga.Event) eventstore.Token {
	w.Helper()
	a := eventstore.Append{Stream: "saga-" + uid}
	for _, e := range events {
		typ, schema, data, err := saga.Marshal(e)
		if err != nil {
			w.Fatal(err)
		}
		a.Events = append(a.Events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: typ, SchemaVersion: schema, Data: data})
	}
	done, err := w.store.Append(w.Context(), a)
	if err != nil {
		w.Fatal(err)
	}
	return done.Token
}

// shows waits until both read models show an append.
func (w *world) shows(token eventstore.Token) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Minute)
	defer cancel()
	for _, name := range []string{"saga_history", "saga_summary"} {
		for {
			err := projection.Wait(ctx, w.pool, name, token)
			if err == nil {
				break
			}
			if ctx.Err() != nil || strings.Contains(err.Error(), "stopped") {
				w.Fatal(err)
			}
			<-time.After(10 * time.Millisecond) // its first generation is not there yet
		}
	}
}

func (w *world) rows(sql string, args ...any) []string {
	w.Helper()
	rows, err := w.pool.Query(w.Context(), sql, args...)
	if err != nil {
		w.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.Fatal(err)
	}
	return all
}

func TestHistoryRowsCarryNamespaceUID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	uid, older := uuid.NewString(), uuid.NewString()
	first := saga.SagaStarted{At: at(0), UID: uid, Namespace: "shop", NamespaceUID: "in-shop", Name: "order-1"}
	w.shows(w.record(uid, first, saga.AttemptStarted{At: at(1), Attempt: reserve(1)}))
	w.shows(w.record(older, started(older, "order-2"), saga.AttemptStarted{At: at(1), Attempt: reserve(1)}))
	for of, want := range map[string]string{uid: "in-shop", older: ""} {
		if got := w.rows(`SELECT namespace_uid FROM saga_history WHERE uid = $1`, of); len(got) != 2 || got[0] != want || got[1] != want {
			t.Errorf("the uids of the namespace are %q, want %q", got, want)
		}
	}
}

func TestTheHistoryTellsWhatHappenedInASaga(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	uid := uuid.NewString()
	w.shows(w.record(uid, started(uid, "order-1"),
		saga.AttemptStarted{At: at(1), Attempt: reserve(1)},
		saga.AttemptFailed{At: at(2), Attempt: reserve(1), Outcome: saga.Retryable, Reason: "Unavailable", Message: "try later", Next: saga.NextRetry, RetryAt: noon.Add(5 * time.Second)},
		saga.SagaSuspended{At: at(3)}, saga.SagaResumed{At: at(4)},
		saga.AttemptStarted{At: at(5), Attempt: reserve(2)},
		saga.AttemptSucceeded{At: at(6), Attempt: reserve(2), Output: []byte(`{"secret":"not for the history"}`)},
		saga.SagaCompensating{At: at(7), Cause: saga.CauseCancelled},
		saga.AttemptStarted{At: at(8), Attempt: undo(1)},
		saga.AttemptSucceeded{At: at(9), Attempt: undo(1)},
		saga.SagaCompensated{At: at(10)}))
	got := w.rows(`SELECT concat_ws(' ', version, namespace || '/' || name, extract(epoch FROM at - $2)::integer, type, step, direction, nullif(attempt, 0), outcome, reason, message, actor)
		FROM saga_history WHERE uid = $1 ORDER BY version`, uid, noon)
	for i := range got {
		got[i] = strings.Join(strings.Fields(got[i]), " ")
	}
	want := []string{
		"1 shop/order-1 0 SagaStarted ada",
		"2 shop/order-1 1 AttemptStarted reserve action 1",
		"3 shop/order-1 2 AttemptFailed reserve action 1 Retryable Unavailable try later",
		"4 shop/order-1 3 SagaSuspended",
		"5 shop/order-1 4 SagaResumed",
		"6 shop/order-1 5 AttemptStarted reserve action 2",
		"7 shop/order-1 6 AttemptSucceeded reserve action 2 Succeeded",
		"8 shop/order-1 7 SagaCompensating Cancelled",
		"9 shop/order-1 8 AttemptStarted reserve compensation 1",
		"10 shop/order-1 9 AttemptSucceeded reserve compensation 1 Succeeded",
		"11 shop/order-1 10 SagaCompensated",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := w.rows(`SELECT count(*)::text FROM saga_history_rows h WHERE h::text LIKE '%secret%'`); n[0] != "0" {
		t.Error("an output is in the history")
	}
}

func TestTheSummaryCountsSagasByPhaseAndDay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var last eventstore.Token
	add := func(n int, rest ...saga.Event) {
		for range n {
			uid := uuid.NewString()
			last = w.record(uid, append([]saga.Event{started(uid, "order")}, rest...)...)
		}
	}
	compensating := saga.SagaCompensating{At: at(2), Cause: saga.CauseStepRejected}
	add(3)
	add(4, saga.SagaCompleted{At: at(10)})
	add(1, saga.SagaCompleted{At: at(30)})
	add(2, compensating)
	add(2, compensating, saga.SagaParked{At: at(3), Step: "reserve"})
	add(1, compensating, saga.SagaParked{At: at(3), Step: "reserve"}, compensating, saga.SagaCompensated{At: at(20)})
	w.shows(last)
	want := []string{
		"2030-05-06 shop Compensated 1 20 20", "2030-05-06 shop Compensating 2 0 0", "2030-05-06 shop CompensationFailed 2 0 0",
		"2030-05-06 shop Completed 5 70 30", "2030-05-06 shop Running 3 0 0",
	}
	summary := func() []string {
		return w.rows(`SELECT concat_ws(' ', day, namespace, phase, sagas, seconds, slowest) FROM saga_summary ORDER BY day, phase COLLATE "C"`)
	}
	if diff := cmp.Diff(want, summary()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if open := w.rows(`SELECT count(*)::text FROM saga_summary_open`); open[0] != "7" {
		t.Errorf("%s sagas are kept as open, want 7", open[0])
	}
	// Built anew it is the same.
	if err := projection.Rebuild(t.Context(), w.pool, "saga_summary"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Minute)
	for {
		live := w.rows(`SELECT generation::text FROM projections WHERE name = 'saga_summary' AND status = 'live'`)
		if fmt.Sprint(live) == "[2]" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("generation %v is live", live)
		}
		<-time.After(10 * time.Millisecond)
	}
	if diff := cmp.Diff(want, summary()); diff != "" {
		t.Errorf("built anew (-want +got):\n%s", diff)
	}
}
