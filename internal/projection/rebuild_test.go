package projection_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/projection"
)

// rebuilt waits until a generation is live, and what the old ones wrote is gone.
func (r *rig) rebuilt(name string, generation int) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("generation %d of %s takes over", generation, name), func() error {
		s := r.states(name)
		if s["live"].Generation != generation || len(s) != 1 {
			return fmt.Errorf("it says %+v", s)
		}
		return nil
	})
}

func TestARebuildTakesOverWithoutDowntime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fill(30, 100)
	runner, _ := r.run(projection.Options{Page: 100}, sums(1))
	r.eventually("it catches up", r.same)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // events keep coming
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				r.append(fmt.Sprintf("account-%d", i%30), 1)
				runner.Wake()
			}
		}
	})
	wg.Go(func() { // a reader never sees less than it has seen
		var last int64
		for {
			select {
			case <-stop:
				return
			default:
				if n := r.int(`SELECT sum(version)::bigint FROM sums`); n < last {
					t.Errorf("the read model went back from %d to %d", last, n)
					return
				} else {
					last = n
				}
			}
		}
	})
	for generation := 2; generation <= 4; generation++ {
		if err := projection.Rebuild(t.Context(), r.pool, "sums"); err != nil {
			t.Fatal(err)
		}
		if err := projection.Rebuild(t.Context(), r.pool, "sums"); err != nil && !errors.Is(err, projection.ErrBuilding) {
			t.Error(err)
		} else if err == nil {
			generation++ // the first one was that quick
		}
		r.rebuilt("sums", generation)
		generation = r.states("sums")["live"].Generation
	}
	close(stop)
	wg.Wait()
	r.eventually("it equals a fold from scratch", r.same)
	if n := r.int(`SELECT count(DISTINCT generation) FROM (SELECT generation FROM seen_rows UNION ALL SELECT generation FROM sums_rows) g`); n != 1 {
		t.Errorf("the rows of %d generations are left", n)
	}
}

func TestNewerCodeBuildsItsReadModelBesideAndOlderCodeLeavesItAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fill(5, 20)
	_, stopOld := r.run(projection.Options{}, sums(1))
	r.eventually("the old version catches up", r.same)
	_, stopNew := r.run(projection.Options{}, sums(2))
	r.rebuilt("sums", 2)
	r.eventually("the new version is right", r.same)
	stopNew()
	handled := r.states("sums")["live"].Handled
	r.append("account-1", 1)
	var sent statements
	runner, _ := r.run(projection.Options{Pool: r.traced(&sent)}, sums(1))
	runner.Wake()
	r.eventually("the older code has looked twice", func() error {
		if looks := sent.count(`SELECT generation FROM projections WHERE name = $1 AND status = 'retired'`); looks < 2 { // a look ends with this
			return fmt.Errorf("it has looked %d times", looks)
		}
		return nil
	})
	if s := r.states("sums"); s["live"].Version != 2 || s["live"].Handled != handled || len(s) != 1 || sent.count(`UPDATE projections`) > 0 {
		t.Fatalf("older code touched the read model of newer code: %+v", s)
	}
	stopOld()
	r.run(projection.Options{}, sums(2))
	r.eventually("newer code goes on", r.same)
}

// TestAnOldGenerationIsForgottenOnlyWithItsLastRow has another replica remove rows of the same generation, and end in the middle.
func TestAnOldGenerationIsForgottenOnlyWithItsLastRow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`INSERT INTO projections (name, generation, version, status) VALUES ('sums', 1, 1, 'retired'), ('sums', 2, 1, 'live')`)
	r.exec(`INSERT INTO seen_rows SELECT 1, gen_random_uuid(), 'account-1', n FROM generate_series(1, 6000) n`)
	other, err := r.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback(context.Background()) }()
	if _, err := other.Exec(t.Context(), `DELETE FROM seen_rows WHERE ctid = ANY (ARRAY(SELECT ctid FROM seen_rows WHERE generation = 1 LIMIT 5000))`); err != nil {
		t.Fatal(err)
	}
	r.run(projection.Options{}, sums(1))
	r.eventually("the runner waits for the other replica's rows", func() error {
		if n := r.int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'DELETE FROM seen_rows%'`); n == 0 {
			return errors.New("it does not wait")
		}
		return nil
	})
	if err := other.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.rebuilt("sums", 2)
	if n := r.int(`SELECT count(*) FROM seen_rows WHERE generation = 1`); n != 0 {
		t.Errorf("the generation is forgotten, and %d of its rows are left for good", n)
	}
}

func TestAPoisonEventInARebuildLeavesTheLiveReadModelAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var refuse atomic.Bool
	def := func() *projection.Definition {
		return projection.Define("sums", 1, "account").Tables("seen_rows", "sums_rows").On("Added", projection.For(decode,
			func(ctx context.Context, tx *projection.Tx, e projection.Event[fact]) error {
				if refuse.Load() && tx.Generation() == 2 && e.Fact.N == 3 {
					return errors.New("not in the new one")
				}
				return add(ctx, tx, e)
			}))
	}
	r.append("account-1", 1, 2, 3, 4)
	r.run(projection.Options{}, def())
	r.eventually("it catches up", r.same)
	refuse.Store(true)
	if err := projection.Rebuild(t.Context(), r.pool, "sums"); err != nil {
		t.Fatal(err)
	}
	r.eventually("the rebuild stops", func() error {
		if r.states("sums")["building"].Failure == nil {
			return fmt.Errorf("%+v", r.states("sums"))
		}
		return nil
	})
	r.append("account-1", 5)
	r.eventually("the live one goes on", r.same)
	refuse.Store(false)
	if err := projection.Retry(t.Context(), r.pool, "sums"); err != nil {
		t.Fatal(err)
	}
	r.rebuilt("sums", 2)
	r.eventually("the rebuild is right", r.same)
}

func TestAnInlineReadModelMovesWithTheAppend(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	def := sums(1)
	runner, _ := r.run(projection.Options{Inline: []*projection.Definition{def}})
	store, err := projection.NewInlineStore(r.pool, def)
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("its first generation is there", func() error {
		if len(r.states("sums")) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	a := eventstore.Append{Stream: "account-1", Events: []eventstore.Event{event("Added", 3), event("Added", 4)}}
	for range 2 { // the second time changes nothing
		if _, err := store.Append(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		if n := r.int(`SELECT sum FROM sums WHERE stream = 'account-1'`); n != 7 {
			t.Fatalf("the sum is %d, want 7", n)
		}
	}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "account-1", Expected: 2, Events: []eventstore.Event{event("Unheard", 1)}}); err == nil {
		t.Error("an event that the projection refuses was appended")
	}
	if v, err := r.store.Version(t.Context(), "account-1"); err != nil || v != 2 {
		t.Errorf("the stream is at version %d, %v", v, err)
	}
	var wrong *eventstore.WrongVersionError
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "account-1", Expected: 9, Events: []eventstore.Event{event("Added", 1)}}); !errors.As(err, &wrong) || wrong.Actual != 2 {
		t.Errorf("error %v, want a WrongVersionError", err)
	}

	// It is built anew while appends go on, and misses none.
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				_, err := store.Append(t.Context(), eventstore.Append{Stream: fmt.Sprintf("account-%d", 10+w), Expected: int64(i), Events: []eventstore.Event{event("Added", i)}})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	if err := projection.Rebuild(t.Context(), r.pool, "sums"); err != nil {
		t.Fatal(err)
	}
	runner.Wake()
	wg.Wait()
	r.rebuilt("sums", 2)
	if err := r.same(); err != nil {
		t.Error(err)
	}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "account-1", Expected: 2, Events: []eventstore.Event{event("Added", 1)}}); err != nil {
		t.Fatal(err)
	}
	if err := r.same(); err != nil {
		t.Errorf("after the takeover: %v", err)
	}
}

// childURL names the database of a child process that runs the projection until it is killed.
const childURL = "PROJECTION_TEST_DATABASE"

// childStops says at which event of which generation the child stays until it is killed: generation/stream/version.
const childStops = "PROJECTION_TEST_STOPS"

func child(url string) int {
	ctx := context.Background()
	pool, err := openPool(ctx, url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer pool.Close()
	def := projection.Define("sums", 1, "account").Tables("seen_rows", "sums_rows").On("Added", projection.For(decode, func(ctx context.Context, tx *projection.Tx, e projection.Event[fact]) error {
		if err := add(ctx, tx, e); err != nil {
			return err
		}
		if fmt.Sprintf("%d/%s/%d", tx.Generation(), e.Stream, e.Version) == os.Getenv(childStops) {
			if _, err := tx.Exec(ctx, `SELECT 1`); err != nil { // what is queued is with the server
				return err
			}
			fmt.Fprintln(os.Stdout, "there")
			select {}
		}
		return nil
	}))
	runner, err := projection.NewRunner(projection.Options{
		Pool: pool, Store: storepg.New(pool), Page: 40, Lease: 300 * time.Millisecond, Patience: time.Hour, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}, def)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = runner.Run(ctx)
	return 0
}

// killed runs the projection in a process of its own and kills it in the middle of a page, at an event.
func (r *rig) killed(generation int, stream string, version int) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childURL+"="+r.url, fmt.Sprintf("%s=%d/%s/%d", childStops, generation, stream, version))
	cmd.Stderr = r.t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "there\n" {
		r.t.Errorf("the process did not come to its event: %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
}

func TestAProcessKilledInAProjectionOrARebuildLosesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fill(40, 100)
	for _, at := range []int{0, 12, 13, 39} {
		r.killed(1, fmt.Sprintf("account-%d", at), 1+at)
	}
	_, stop := r.run(projection.Options{}, sums(1))
	r.eventually("the read model equals a fold from scratch", r.same)
	stop()
	if err := projection.Rebuild(t.Context(), r.pool, "sums"); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 9, 39} {
		r.killed(2, fmt.Sprintf("account-%d", at), 100-at)
		if err := r.same(); err != nil {
			t.Errorf("the live read model changed: %v", err)
		}
	}
	r.run(projection.Options{}, sums(1))
	r.rebuilt("sums", 2)
	r.eventually("the new one equals a fold from scratch", r.same)
}
