package projection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/projection"
)

func TestAReadModelFollowsTheEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fill(20, 50)
	runner, _ := r.run(projection.Options{Page: 70}, sums(1))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 30 {
				r.append(fmt.Sprintf("account-%d", (w+i)%25), i, w)
				runner.Wake()
			}
		})
	}
	r.append("other-1", 1) // of a category that it does not read
	wg.Wait()
	r.eventually("it catches up", r.same)
	if live := r.states("sums")["live"]; live.Handled != 20*50+8*60 || live.Version != 1 {
		t.Errorf("the projection says %+v", live)
	}
}

func TestTwoReplicasNeverBothAdvanceOneProjection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stops := make([]func(), 3)
	for i := range stops {
		_, stops[i] = r.run(projection.Options{Page: 20, Lease: 300 * time.Millisecond}, sums(1))
	}
	for i := range 60 {
		r.append(fmt.Sprintf("account-%d", i%7), i, i, i)
		if i == 30 {
			stops[0]() // whoever fed it, the others go on
			stops[1]()
		}
	}
	r.eventually("it catches up", r.same) // an event that was handled twice would stop it
}

func TestACommitOfAnOwnerThatHasLostItsLeaseIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	var calls atomic.Int32
	slow := projection.Define("slow", 1, "account").Tables("seen_rows").On("Added", func(ctx context.Context, tx *projection.Tx, e eventstore.Recorded) error {
		if calls.Add(1) == 1 {
			entered <- struct{}{}
			<-leave
		}
		_, err := tx.Exec(ctx, `INSERT INTO seen_rows (generation, event_id, stream, version) VALUES ($1, $2, $3, $4)`, tx.Generation(), e.ID, fmt.Sprint(calls.Load()), e.Version)
		return err
	})
	r.append("account-1", 1)
	_, stop := r.run(projection.Options{}, slow)
	<-entered
	// Somebody else takes the lease while the handler works.
	r.exec(`UPDATE projections SET lease_epoch = lease_epoch + 1, owner = 'another', lease_until = now() + interval '1 hour' WHERE name = 'slow'`)
	close(leave)
	pauseUntil := time.Now().Add(500 * time.Millisecond)
	for time.Now().Before(pauseUntil) {
		if n := r.int(`SELECT count(*) FROM seen_rows`); n != 0 {
			t.Fatalf("what the old owner had begun was committed: %d rows", n)
		}
		pause(20 * time.Millisecond)
	}
	if live := r.states("slow")["live"]; live.Handled != 0 || live.Owner != "another" {
		t.Errorf("the old owner moved the checkpoint: %+v", live)
	}
	stop()
	r.exec(`UPDATE projections SET lease_until = '-infinity' WHERE name = 'slow'`)
	r.run(projection.Options{}, slow)
	r.eventually("the next owner handles it", func() error {
		if n := r.int(`SELECT count(*) FROM seen_rows`); n != 1 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
}

func TestAPoisonEventStopsOnlyItsProjection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var mended atomic.Bool
	picky := projection.Define("picky", 1, "account").On("Added", projection.For(decode, func(_ context.Context, _ *projection.Tx, e projection.Event[fact]) error {
		if e.Fact.N == 13 && !mended.Load() {
			return errors.New("13 brings bad luck")
		}
		return nil
	}))
	r.append("account-1", 1, 2, 13, 4)
	r.append("account-2", 5, 6)
	r.run(projection.Options{}, sums(1), picky)
	failure := r.stopped("picky")
	if failure.Stream != "account-1" || failure.Version != 3 || failure.Type != "Added" || !strings.Contains(failure.Error, "bad luck") {
		t.Errorf("it stopped at %+v", failure)
	}
	if live := r.states("picky")["live"]; live.Handled != 2 {
		t.Errorf("%d events were handled before it, want 2", live.Handled)
	}
	r.eventually("the other goes on", r.same)

	mended.Store(true)
	if err := projection.Retry(t.Context(), r.pool, "picky"); err != nil {
		t.Fatal(err)
	}
	r.handled("picky", 6)
	if err := projection.Retry(t.Context(), r.pool, "picky"); !errors.Is(err, projection.ErrNotStopped) {
		t.Errorf("retrying one that runs: %v", err)
	}
}

// handled waits until the live generation has handled so many events without stopping.
func (r *rig) handled(name string, n int64) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("%s handles %d events", name, n), func() error {
		if live := r.states(name)["live"]; live.Handled != n || live.Failure != nil {
			return fmt.Errorf("it says %+v, failure %v", live, live.Failure)
		}
		return nil
	})
}

func TestASkippedEventStaysSkippedAndSomebodySaidSo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := eventstore.Append{Stream: "account-1", Events: []eventstore.Event{event("Added", 1), event("Added", 2), event("Added", 3)}}
	a.Events[1].Data = json.RawMessage(`{"n":"two"}`)
	r.do(a)
	def := projection.Define("lax", 1, "account").On("Added", projection.For(decode, func(context.Context, *projection.Tx, projection.Event[fact]) error { return nil }))
	r.run(projection.Options{}, def)
	r.stopped("lax")
	if _, err := projection.Skip(t.Context(), r.pool, "lax", "ada", ""); err == nil {
		t.Error("it was skipped without a reason")
	}
	skipped, err := projection.Skip(t.Context(), r.pool, "lax", "ada", "the number is a word")
	if err != nil || len(skipped) != 1 || skipped[0].EventID != a.Events[1].ID {
		t.Fatalf("skipped %v, %v", skipped, err)
	}
	r.handled("lax", 3)
	if n := r.int(`SELECT count(*) FROM projection_skips WHERE name = 'lax' AND event_id = $1 AND actor = 'ada' AND reason = 'the number is a word'`, a.Events[1].ID); n != 1 {
		t.Error("nobody knows who skipped it")
	}
	if err := projection.Rebuild(t.Context(), r.pool, "lax"); err != nil {
		t.Fatal(err)
	}
	r.eventually("a rebuild does without it too", func() error {
		if live := r.states("lax")["live"]; live.Generation != 2 || live.Handled != 3 {
			return fmt.Errorf("it says %+v", live)
		}
		return nil
	})
}

func TestNothingIsSkippedByAccident(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		handle projection.Handler
		typ    string
		size   int
		want   string
	}{
		"a handler that panics":    {func(context.Context, *projection.Tx, eventstore.Recorded) error { panic("oh no") }, "Added", 0, "panicked: oh no"},
		"a type that nobody knows": {func(context.Context, *projection.Tx, eventstore.Recorded) error { return nil }, "Subtracted", 0, `no event type "Subtracted"`},
		"a handler that is too slow": {func(ctx context.Context, _ *projection.Tx, _ eventstore.Recorded) error {
			<-ctx.Done()
			return ctx.Err()
		}, "Added", 0, "took longer"},
		"a statement that fails late": {func(ctx context.Context, tx *projection.Tx, _ eventstore.Recorded) error {
			return tx.Queue(ctx, `SELECT 1 / $1::integer`, 0)
		}, "Added", 0, "division by zero"},
		"an event of 1 MiB": {func(context.Context, *projection.Tx, eventstore.Recorded) error { return errors.New("it is large") }, "Added", 1 << 20, "it is large"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			e := event(c.typ, 7)
			if c.size > 0 {
				e.Data = json.RawMessage(`"` + strings.Repeat("x", c.size) + `"`)
			}
			r.do(eventstore.Append{Stream: "account-1", Events: []eventstore.Event{event("Fine", 1), e, event("Fine", 2)}})
			def := projection.Define("careful", 1, "account").On("Added", c.handle).Ignore("Fine")
			r.run(projection.Options{Patience: 400 * time.Millisecond}, def)
			if failure := r.stopped("careful"); failure.EventID != e.ID || !strings.Contains(failure.Error, c.want) {
				t.Errorf("it stopped at %v, want an error with %q", failure, c.want)
			}
			if live := r.states("careful")["live"]; live.Handled != 1 {
				t.Errorf("%d events handled, want the one before it", live.Handled)
			}
		})
	}
}

func TestWhoeverAppendedCanWaitForTheReadModel(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	runner, _ := r.run(projection.Options{}, sums(1))
	for i := range 20 {
		done := r.append("account-1", 1)
		runner.Wake()
		if err := projection.Wait(t.Context(), r.pool, "sums", done.Token); errors.Is(err, projection.ErrUnknown) && i == 0 {
			r.eventually("the projection is there", func() error { return projection.Wait(t.Context(), r.pool, "sums", done.Token) })
		} else if err != nil {
			t.Fatal(err)
		}
		if n := r.int(`SELECT sum FROM sums WHERE stream = 'account-1'`); n != int64(i)+1 {
			t.Fatalf("after waiting the sum is %d, want %d", n, i+1)
		}
	}
	// An event that the projection does not read is seen too.
	done := r.append("other-1", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := projection.Wait(ctx, r.pool, "sums", done.Token); err != nil {
		t.Error(err)
	}
	if err := projection.Wait(t.Context(), r.pool, "none", done.Token); !errors.Is(err, projection.ErrUnknown) {
		t.Errorf("waiting for a projection that is not there: %v", err)
	}
}

func TestLagIsMeasured(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var block atomic.Bool
	block.Store(true)
	def := projection.Define("held", 1, "account").On("Added", func(context.Context, *projection.Tx, eventstore.Recorded) error {
		if block.Load() {
			return errors.New("not now")
		}
		return nil
	})
	r.append("account-1", 1, 2, 3)
	registry := prometheus.NewRegistry()
	r.run(projection.Options{Metrics: registry}, def)
	r.stopped("held")
	gauge := func(name, want string) func() error {
		return func() error {
			return testutil.GatherAndCompare(registry, strings.NewReader(want), name)
		}
	}
	r.eventually("it says that it has stopped", gauge("saga_projection_stopped",
		"# HELP saga_projection_stopped 1 while the projection has stopped at an event and waits for a person.\n# TYPE saga_projection_stopped gauge\nsaga_projection_stopped{generation=\"1\",projection=\"held\"} 1\n"))
	block.Store(false)
	if err := projection.Retry(t.Context(), r.pool, "held"); err != nil {
		t.Fatal(err)
	}
	r.eventually("the lag is gone", gauge("saga_projection_lag_events",
		"# HELP saga_projection_lag_events Positions between the read model and the newest event; at least as many as events are left to handle.\n# TYPE saga_projection_lag_events gauge\nsaga_projection_lag_events{generation=\"1\",projection=\"held\"} 0\n"))
}

func TestADefinitionThatCannotWorkIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	handler := func(context.Context, *projection.Tx, eventstore.Recorded) error { return nil }
	for want, defs := range map[string][]*projection.Definition{
		"needs a name":       {projection.Define("Capital Letters", 1, "account")},
		"a version from 1":   {projection.Define("x", 0, "account")},
		"the categories":     {projection.Define("x", 1)},
		"one handler":        {projection.Define("x", 1, "account").On("A", handler).Ignore("A")},
		"Added needs one":    {projection.Define("x", 1, "account").On("Added", nil)},
		"is not a name such": {projection.Define("x", 1, "account").Tables("rows; DROP TABLE streams")},
		"defined twice":      {projection.Define("x", 1, "account"), projection.Define("x", 2, "account")},
	} {
		if _, err := projection.NewRunner(projection.Options{Pool: r.pool, Store: r.store}, defs...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}
