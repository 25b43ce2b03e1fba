package projection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/projection"
)

// TestNobodySkipsAnEventThatTheyHaveNotLookedAt has the live generation stop at one event, and the one being built at another.
func TestNobodySkipsAnEventThatTheyHaveNotLookedAt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var bad [3]atomic.Int64 // by generation, the number at which it stops
	def := projection.Define("picky", 1, "account").On("Added", projection.For(decode, func(_ context.Context, tx *projection.Tx, e projection.Event[fact]) error {
		if int64(e.Fact.N) == bad[tx.Generation()].Load() {
			return errors.New("it brings bad luck")
		}
		return nil
	}))
	a := eventstore.Append{Stream: "account-1", Events: []eventstore.Event{event("Added", 11), event("Added", 12), event("Added", 13)}}
	bad[1].Store(13)
	bad[2].Store(12)
	r.do(a)
	r.run(projection.Options{}, def)
	r.stopped("picky")
	if err := projection.Rebuild(t.Context(), r.pool, "picky"); err != nil {
		t.Fatal(err)
	}
	r.eventually("the new generation stops too", func() error {
		if r.states("picky")["building"].Failure == nil {
			return errors.New("not yet")
		}
		return nil
	})
	skip := func(event uuid.UUID) ([]projection.Failure, error) {
		return projection.Skip(t.Context(), r.pool, "picky", event, "ada", "it is old")
	}
	if _, err := skip(uuid.Nil); !errors.Is(err, projection.ErrWhich) || !strings.Contains(err.Error(), a.Events[1].ID.String()) || !strings.Contains(err.Error(), a.Events[2].ID.String()) {
		t.Errorf("skipping whatever it stopped at: %v, want an ErrWhich with both events", err)
	}
	if _, err := skip(a.Events[0].ID); !errors.Is(err, projection.ErrNotStopped) {
		t.Errorf("skipping an event at which nothing stopped: %v", err)
	}
	if n := r.int(`SELECT count(*) FROM projection_skips`); n != 0 {
		t.Fatalf("%d events were skipped", n)
	}
	skipped, err := skip(a.Events[1].ID)
	if err != nil || len(skipped) != 1 || skipped[0].EventID != a.Events[1].ID {
		t.Fatalf("skipped %v, %v", skipped, err)
	}
	r.eventually("the new generation goes on and takes over", func() error {
		if live := r.states("picky")["live"]; live.Generation != 2 || live.Handled != 3 {
			return fmt.Errorf("it says %+v", live)
		}
		return nil
	})
	if n := r.int(`SELECT count(*) FROM projection_skips WHERE event_id = $1`, a.Events[2].ID); n != 0 {
		t.Error("the event at which the old generation had stopped was skipped too")
	}
}

func TestARemovedProjectionHoldsRetentionUpNoMore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	uid := uuid.New()
	r.do(eventstore.Append{Stream: "saga-" + uid.String(), Events: []eventstore.Event{event("Done", 1)}, State: &eventstore.SagaState{UID: uid, Finished: true, State: json.RawMessage(`{}`)}})
	remove := func(want int) {
		t.Helper()
		if n, err := r.store.RemoveFinished(t.Context(), time.Now().Add(time.Hour), 10); err != nil || n != want {
			t.Errorf("removed %d, %v, want %d", n, err, want)
		}
	}
	_, stop := r.run(projection.Options{Lease: time.Hour}, sums(1))
	r.append("account-1", 1)
	r.eventually("it follows", r.same)
	if err := projection.Remove(t.Context(), r.pool, "sums"); !errors.Is(err, projection.ErrFed) {
		t.Errorf("removing one that is fed: %v", err)
	}
	stop()
	free := `UPDATE projections SET lease_until = '-infinity'` // who stops gives its lease back where it can at once
	r.exec(free + `, epoch = 0, done = '1:1:'`)                // long before the saga
	remove(0)
	if err := projection.Remove(t.Context(), r.pool, "sums"); err != nil {
		t.Fatal(err)
	}
	remove(1)
	// Should its code come back, it begins anew, and what the old generation wrote goes.
	_, stop = r.run(projection.Options{}, sums(1))
	r.rebuilt("sums", 2)
	r.eventually("it is right", r.same)
	stop()
	r.exec(free)
	for range 2 { // the second time forgets it
		if err := projection.Remove(t.Context(), r.pool, "sums"); err != nil {
			t.Fatal(err)
		}
	}
	if err := projection.Remove(t.Context(), r.pool, "sums"); !errors.Is(err, projection.ErrUnknown) {
		t.Errorf("removing one that is forgotten: %v", err)
	}
}
