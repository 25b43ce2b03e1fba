package postgres_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestAStreamThatLostItsRowIsNotAnOutage(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	a := move("s-1", uuid.New(), 0)
	if _, err := store.Append(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `DELETE FROM streams`); err != nil {
		t.Fatal(err)
	}
	_, err := store.Append(t.Context(), move("s-1", uuid.New(), 0))
	if err == nil || errors.Is(err, eventstore.ErrUnavailable) || errors.Is(err, eventstore.ErrInvalid) {
		t.Errorf("error %v: trying again would never help", err)
	}
	if messages, err := store.Messages(t.Context(), 0, 10); err != nil || len(messages) != 1 {
		t.Errorf("%d messages, %v: a part of the refused append stayed", len(messages), err)
	}
}

func TestAnAppendCutOffWhileItWaitsLeavesAllOrNothing(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store, uid := storepg.New(open(t, url, nil)), uuid.New()
	locks := open(t, url, nil)
	heldUp(t, locks, func() {
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := store.Append(ctx, move("s-1", uid, 0))
			failed <- err
		}()
		for waiting := false; !waiting; {
			select {
			case err := <-failed:
				t.Fatalf("the append does not wait for the lock: %v", err)
			default:
			}
			if err := locks.QueryRow(t.Context(), `SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
	// Its fate is unknown until the stream is asked; the same decision can then be appended again, or has been.
	version, err := store.Version(t.Context(), "s-1")
	if err != nil {
		t.Fatal(err)
	}
	events, err := store.Load(t.Context(), "s-1", 1, 10)
	messages, outbox := store.Messages(t.Context(), 0, 10)
	if err != nil || outbox != nil || int64(len(events)) != version || int64(len(messages)) != version/2 {
		t.Errorf("version %d, %d events, %d messages; %v, %v", version, len(events), len(messages), err, outbox)
	}
	if _, err := store.Append(t.Context(), move("s-1", uid, version)); err != nil {
		t.Errorf("the stream cannot go on: %v", err)
	}
}

func TestAnAppendIsOneTransactionAndSaysWhich(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	for i := range int64(3) {
		if _, err := store.Append(t.Context(), move("s-1", uuid.New(), 2*i)); err != nil {
			t.Fatal(err)
		}
	}
	// Readers of the order of all events go by this: each append has a transaction of its own, its messages have the same, and all are of this cluster's epoch.
	var ids, pairs, epochs int
	if err := pool.QueryRow(t.Context(), `SELECT count(DISTINCT e.txid), count(DISTINCT o.txid), count(DISTINCT e.epoch)
		FROM event_store e JOIN outbox_events o USING (epoch, txid)`).Scan(&ids, &pairs, &epochs); err != nil {
		t.Fatal(err)
	}
	if ids != 3 || pairs != 3 || epochs != 1 {
		t.Errorf("%d transactions of events, %d of messages, %d epochs, want 3, 3, 1", ids, pairs, epochs)
	}
}
