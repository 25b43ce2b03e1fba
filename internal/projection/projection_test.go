package projection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

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
	logger, lost := hears("a projection is somebody else's now")
	_, stop := r.run(projection.Options{Logger: logger}, slow)
	<-entered
	// Somebody else takes the lease while the handler works.
	r.exec(`UPDATE projections SET lease_epoch = lease_epoch + 1, owner = 'another', lease_until = now() + interval '1 hour' WHERE name = 'slow'`)
	close(leave)
	r.eventually("the old owner notices, or commits", func() error {
		select {
		case <-lost:
			return nil
		default:
		}
		if n := r.int(`SELECT count(*) FROM seen_rows`); n == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if n := r.int(`SELECT count(*) FROM seen_rows`); n != 0 {
		t.Fatalf("what the old owner had begun was committed: %d rows", n)
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

// TestCheckpointMovesOnlyWithItsReadModel has a handler whose rows are refused when they are to be
// committed.
func TestCheckpointMovesOnlyWithItsReadModel(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`CREATE TABLE refused_rows (id integer REFERENCES refused_rows DEFERRABLE INITIALLY DEFERRED, of integer PRIMARY KEY)`)
	late := projection.Define("late", 1, "account").Tables("seen_rows").On("Added", func(ctx context.Context, tx *projection.Tx, _ eventstore.Recorded) error {
		_, err := tx.Exec(ctx, `INSERT INTO refused_rows VALUES (1, 2)`)
		return err
	})
	r.append("account-1", 1)
	r.run(projection.Options{}, late)
	r.eventually("it stops", func() error {
		if live := r.states("late")["live"]; live.Failure == nil {
			return fmt.Errorf("it has not: %+v", live)
		}
		return nil
	})
	if live := r.states("late")["live"]; live.Handled != 0 || live.Checkpoint.Floor != 0 {
		t.Errorf("the checkpoint has moved past an event whose rows were refused: %+v", live)
	}
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
	if _, err := projection.Skip(t.Context(), r.pool, "lax", uuid.Nil, "ada", ""); err == nil {
		t.Error("it was skipped without a reason")
	}
	skipped, err := projection.Skip(t.Context(), r.pool, "lax", uuid.Nil, "ada", "the number is a word")
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
		"an error that looks like a database that is away": {func(context.Context, *projection.Tx, eventstore.Recorded) error {
			return fmt.Errorf("reading a template: %w", io.EOF)
		}, "Added", 0, "reading a template: EOF"},
		"an error of another server": {func(context.Context, *projection.Tx, eventstore.Recorded) error {
			return &net.OpError{Op: "dial", Err: errors.New("no such service")}
		}, "Added", 0, "no such service"},
		"an error of another database": {func(context.Context, *projection.Tx, eventstore.Recorded) error {
			return &pgconn.PgError{Code: "57P01", Message: "another database is shut down"}
		}, "Added", 0, "another database"},
		"a context of the handler's own that ended": {func(ctx context.Context, tx *projection.Tx, _ eventstore.Recorded) error {
			ctx, cancel := context.WithTimeout(ctx, time.Nanosecond)
			defer cancel()
			_, err := tx.Exec(ctx, `SELECT pg_sleep(10)`)
			return err
		}, "Added", 0, "context deadline exceeded"},
		"a context of the handler's own that was cancelled": {func(ctx context.Context, _ *projection.Tx, _ eventstore.Recorded) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx.Err()
		}, "Added", 0, "context canceled"},
		"a row that is there already": {func(ctx context.Context, tx *projection.Tx, e eventstore.Recorded) error {
			for range 2 {
				if err := tx.Queue(ctx, `INSERT INTO seen_rows (generation, event_id, stream, version) VALUES ($1, $2, '', 0)`, tx.Generation(), e.ID); err != nil {
					return err
				}
			}
			return nil
		}, "Added", 0, "seen_rows_pkey"},
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
			var o projection.Options
			if name == "a handler that is too slow" {
				o.Patience = 10 * time.Millisecond
			}
			r.run(o, def)
			if failure := r.stopped("careful"); failure.EventID != e.ID || !strings.Contains(failure.Error, c.want) {
				t.Errorf("it stopped at %v, want an error with %q", failure, c.want)
			}
			if live := r.states("careful")["live"]; live.Handled != 1 {
				t.Errorf("%d events handled, want the one before it", live.Handled)
			}
		})
	}
}

func TestWhatTheDatabaseDoesNotDoNowIsTriedAgain(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"the connection is lost":      `SELECT pg_terminate_backend(pg_backend_pid())`,
		"a conflict with others":      `DO $$ BEGIN RAISE EXCEPTION 'try again' USING ERRCODE = 'serialization_failure'; END $$`,
		"the database has no room":    `DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$`,
		"a lock that others hold":     `DO $$ BEGIN RAISE EXCEPTION 'held' USING ERRCODE = 'lock_not_available'; END $$`,
		"the server is shutting down": `DO $$ BEGIN RAISE EXCEPTION 'bye' USING ERRCODE = 'admin_shutdown'; END $$`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			var failed atomic.Int32
			def := projection.Define("patient", 1, "account").On("Added", func(ctx context.Context, tx *projection.Tx, _ eventstore.Recorded) error {
				if failed.Add(1) > 2 {
					return nil
				}
				return tx.Queue(ctx, sql)
			})
			r.append("account-1", 1, 2)
			r.run(projection.Options{}, def)
			r.handled("patient", 2)
		})
	}
}

// TestWhatTheDatabaseTakesIsNotTheHandlersFault has a patience that nothing but a handler that does nothing meets.
func TestWhatTheDatabaseTakesIsNotTheHandlersFault(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.append("account-1", 1, 2, 3)
	r.run(projection.Options{Patience: time.Nanosecond}, projection.Define("quick", 1, "account").On("Added", func(context.Context, *projection.Tx, eventstore.Recorded) error { return nil }))
	r.handled("quick", 3)
}

// panicking is a store in which reading panics now and then.
type panicking struct {
	eventstore.Store
	calls atomic.Int32
}

func (p *panicking) ReadAll(ctx context.Context, from eventstore.Checkpoint, filter eventstore.Filter, limit int) (eventstore.Page, error) {
	if p.calls.Add(1)%2 == 1 {
		panic("a bug below the handlers")
	}
	return p.Store.ReadAll(ctx, from, filter, limit)
}

func TestAPanicOutsideOfAHandlerIsNoEndOfTheProcess(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.append("account-1", 1, 2)
	r.run(projection.Options{Store: &panicking{Store: r.store}}, sums(1))
	r.eventually("it is tried again", r.same)
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
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := projection.Wait(ctx, r.pool, "sums", done.Token); err != nil {
		t.Error(err)
	}
	if err := projection.Wait(t.Context(), r.pool, "none", done.Token); !errors.Is(err, projection.ErrUnknown) {
		t.Errorf("waiting for a projection that is not there: %v", err)
	}
}

// TestWhoeverAppendedNothingThatIsReadWaitsNoLonger has a lease that would have the checkpoint put down within the hour only.
func TestWhoeverAppendedNothingThatIsReadWaitsNoLonger(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	runner, _ := r.run(projection.Options{Lease: time.Hour}, sums(1))
	r.append("account-1", 1)
	r.eventually("it follows", r.same)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	a := eventstore.Append{Stream: "other-0", Events: []eventstore.Event{event("Added", 1)}}
	r.do(a)
	for i := range 5 {
		done := r.append("other-1", 1)
		if i%2 == 1 {
			done = r.do(a) // which the store has already
		}
		runner.Wake()
		if err := projection.Wait(ctx, r.pool, "sums", done.Token); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLagIsMeasured(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	var mended atomic.Bool
	def := projection.Define("held", 1, "account").On("Added", func(ctx context.Context, _ *projection.Tx, _ eventstore.Recorded) error {
		select {
		case entered <- struct{}{}:
		default: // it is tried again and again
		}
		select {
		case <-leave:
		case <-ctx.Done():
		}
		if !mended.Load() {
			return errors.New("not now")
		}
		return nil
	})
	r.append("account-1", 1, 2, 3)
	registry := prometheus.NewRegistry()
	_, stop := r.run(projection.Options{Metrics: registry}, def)
	gauge := func(name string) float64 { return value(t, registry, name) }
	is := func(name string, want float64) func() error {
		return func() error {
			if got := gauge(name); got != want {
				return fmt.Errorf("%s is %v, want %v", name, got, want)
			}
			return nil
		}
	}
	<-entered // while it is at the first page
	if n, age := gauge("saga_projection_lag_events"), gauge("saga_projection_lag_seconds"); n != 3 || age <= 0 {
		t.Errorf("at the first of 3 events the lag is %v events, %v s", n, age)
	}
	close(leave)
	r.stopped("held")
	r.append("account-1", 4, 5)
	r.eventually("it says that it has stopped", is("saga_projection_stopped", 1))
	r.eventually("it falls behind while it has stopped", is("saga_projection_lag_events", 5))
	age := gauge("saga_projection_lag_seconds")
	r.eventually("it grows old", func() error {
		if now := gauge("saga_projection_lag_seconds"); now <= age {
			return fmt.Errorf("%v s, and before %v s", now, age)
		}
		return nil
	})
	if live := r.states("held")["live"]; live.Behind != 5 {
		t.Errorf("the list says that it is %d behind, want 5", live.Behind)
	}
	stop() // another process says the same
	registry = prometheus.NewRegistry()
	r.run(projection.Options{Metrics: registry}, def)
	r.eventually("the next owner says that it has stopped", is("saga_projection_stopped", 1))
	r.eventually("the next owner says how far it is behind", is("saga_projection_lag_events", 5))
	mended.Store(true)
	if err := projection.Retry(t.Context(), r.pool, "held"); err != nil {
		t.Fatal(err)
	}
	r.handled("held", 5)
	for _, name := range []string{"saga_projection_lag_events", "saga_projection_lag_seconds", "saga_projection_stopped"} {
		r.eventually("the lag is gone", is(name, 0))
	}
}

// value is what a gauge of the only projection says; -1 where it says nothing.
func value(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
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
