package aggregate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/eventtype"
)

// snapshotVersion returns the version of the stored snapshot; 0 when there is none.
func snapshotVersion(t testing.TB, store eventstore.Store, stream string) int64 {
	t.Helper()
	snap, err := store.LoadSnapshot(t.Context(), stream)
	if err != nil && !errors.Is(err, eventstore.ErrNotFound) {
		t.Fatal(err)
	}
	return snap.Version
}

func TestASnapshotIsTakenEverySoManyEvents(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		r := snapshotting(t, store, 3, options{})
		fill(t, r, "7", 2)
		for i, want := range []int64{3, 3, 3, 6, 6} { // after versions 3, 4, …
			update(t, r, "7", add("A", 1))
			if got := snapshotVersion(t, store, "cart-7"); got != want {
				t.Errorf("at version %d the snapshot is of version %d, want %d", i+3, got, want)
			}
		}
		update(t, r, "7", func(c *cart) error {
			for range 5 {
				c.Apply(added{SKU: "B", Quantity: 1})
			}
			return nil
		})
		if got := snapshotVersion(t, store, "cart-7"); got != 12 {
			t.Errorf("after 5 events at once the snapshot is of version %d, want 12", got)
		}
	})
}

func TestASnapshotIsTakenWhenFoldingWasSlow(t *testing.T) {
	t.Parallel()
	store := memory.New()
	var now time.Time
	var step time.Duration
	kind := cartKind
	kind.Snapshots.Slower = 10 * time.Millisecond
	r, err := aggregate.NewRepository(store, kind, options{SnapshotTimeout: time.Hour, Clock: func() time.Time { now = now.Add(step); return now }})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, r, "7", 5)
	for _, c := range []struct {
		step time.Duration
		want int64
	}{{10 * time.Millisecond, 0}, {11 * time.Millisecond, 7}, {time.Millisecond, 7}} {
		step = c.step
		update(t, r, "7", add("A", 1))
		if got := snapshotVersion(t, store, "cart-7"); got != c.want {
			t.Errorf("after folding for %v the snapshot is of version %d, want %d", c.step, got, c.want)
		}
	}
}

func TestWithoutAPolicyThereAreNoSnapshots(t *testing.T) {
	t.Parallel()
	h := &hooked{Store: memory.New()}
	r := carts(t, h, options{})
	fill(t, r, "7", 500)
	h.calls.Store(0)
	update(t, r, "7", add("A", 1))
	if h.saving.Load() != 0 || h.calls.Load() != 2 {
		t.Errorf("%d snapshots were saved, and %d calls read 2 pages", h.saving.Load(), h.calls.Load())
	}
}

func TestNothingIsSnapshottedThatWasNotAppended(t *testing.T) {
	t.Parallel()
	h := &hooked{Store: memory.New()}
	r := snapshotting(t, h, 1, options{})
	fill(t, r, "7", 1)
	h.saving.Store(0)
	h.afterAppend = func() error { return eventstore.ErrUnavailable }
	for _, command := range []func(*cart) error{
		func(*cart) error { return nil }, func(*cart) error { return errBroken }, add("A", maxQuantity+1), add("A", 1), // the last one's fate is unknown
	} {
		_, _ = r.Update(t.Context(), "7", command) // what comes of it is the business of other tests
	}
	if n := h.saving.Load(); n != 0 {
		t.Errorf("%d snapshots were saved", n)
	}
}

// sent counts what is sent to PostgreSQL.
type sent struct{ atomic.Int64 }

func (s *sent) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.Add(1)
	return ctx
}
func (*sent) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestLoadingFromASnapshotTakesTwoRoundTrips(t *testing.T) {
	t.Parallel()
	var trips sent
	r := snapshotting(t, storepg.New(open(t, &trips)), 600, options{})
	fill(t, r, "7", 600) // more than two pages
	for range 3 {        // at the snapshot's version, and behind it
		trips.Store(0)
		want := load(t, r, "7").Version() + 1
		if n := trips.Load(); n != 2 {
			t.Errorf("loading took %d round trips", n)
		}
		if got := update(t, r, "7", add("A", 1)).Version; got != want {
			t.Errorf("version %d, want %d", got, want)
		}
	}
}

// copied returns a store with the first n events of a stream, and then others: what a restore to an earlier day leaves.
func copied(t testing.TB, store eventstore.Store, stream string, n, others int) *memory.Store {
	t.Helper()
	stored, err := store.Load(t.Context(), stream, 1, n)
	if err != nil {
		t.Fatal(err)
	}
	to, events := memory.New(), []eventstore.Event{}
	for i := range stored {
		events = append(events, stored[i].Event)
	}
	for range others {
		events = append(events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Added", SchemaVersion: 1, Data: json.RawMessage(`{"sku":"other","quantity":1}`)})
	}
	if _, err := to.Append(t.Context(), eventstore.Append{Stream: stream, Events: events}); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestABadSnapshotOnlyCostsTime(t *testing.T) {
	t.Parallel()
	origin := memory.New()
	fill(t, snapshotting(t, origin, 6, options{}), "7", 6)
	good, err := origin.LoadSnapshot(t.Context(), "cart-7")
	if err != nil {
		t.Fatal(err)
	}
	data := func(d string) func(*eventstore.Snapshot) {
		return func(s *eventstore.Snapshot) { s.Data = json.RawMessage(d) }
	}
	state := func(state string) func(*eventstore.Snapshot) {
		return func(s *eventstore.Snapshot) {
			var v struct{ Event uuid.UUID }
			if err := json.Unmarshal(s.Data, &v); err != nil {
				t.Error(err)
			}
			s.Data = json.RawMessage(fmt.Sprintf(`{"event":%q,"state":%s}`, v.Event, state))
		}
	}
	for name, c := range map[string]struct {
		change       func(*eventstore.Snapshot)
		keep, others int
		failing      bool
	}{
		"missing":               {keep: 6},
		"not an object":         {data(`[]`), 6, 2, false},
		"null":                  {data(`null`), 6, 2, false},
		"without a state":       {data(`{"event":"0190163d-8694-739b-aea5-966c26f8ad91"}`), 6, 2, false},
		"with a null state":     {state(`null`), 6, 2, false},
		"of another form":       {state(`{"items":[]}`), 6, 2, false},
		"of a violated state":   {state(`{"items":{"A":1001}}`), 6, 2, false},
		"whose Validate panics": {state(`{"items":{"A":13}}`), 6, 2, false},
		"of an older schema":    {func(s *eventstore.Snapshot) { s.SchemaVersion--; state(`{"items":{"wrong":1}}`)(s) }, 6, 2, false},
		"of a newer schema":     {func(s *eventstore.Snapshot) { s.SchemaVersion++; state(`{"items":{"wrong":1}}`)(s) }, 6, 2, false},
		"too new":               {func(*eventstore.Snapshot) {}, 4, 0, false},
		"of another history":    {func(*eventstore.Snapshot) {}, 4, 5, false},
		"that cannot be read":   {func(*eventstore.Snapshot) {}, 6, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := copied(t, origin, "cart-7", c.keep, c.others)
			if c.change != nil {
				snap := good
				c.change(&snap)
				if err := store.SaveSnapshot(t.Context(), snap); err != nil {
					t.Fatal(err)
				}
			}
			h := &hooked{Store: store, loadSnapshot: func() error {
				if c.failing {
					return errBroken
				}
				return nil
			}}
			want, got := load(t, carts(t, store, options{}), "7"), load(t, snapshotting(t, h, 6, options{}), "7")
			if diff := cmp.Diff(want.State(), got.State()); diff != "" || got.Version() != want.Version() || got.Version() != int64(c.keep+c.others) {
				t.Errorf("version %d, want %d\n%s", got.Version(), want.Version(), diff)
			}
			if h.calls.Load() > 3 {
				t.Errorf("%d calls", h.calls.Load())
			}
		})
	}
}

func TestASnapshotThatIsNotUsedIsReplaced(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		for id, bad := range map[string]eventstore.Snapshot{
			"too new": {Version: 1000, SchemaVersion: cartKind.SchemaVersion}, "older schema": {Version: 3, SchemaVersion: cartKind.SchemaVersion - 1},
		} {
			fill(t, carts(t, store, options{}), id, 6)
			bad.Stream, bad.Data = "cart-"+id, json.RawMessage(`{"event":"0190163d-8694-739b-aea5-966c26f8ad91","state":{"items":{"wrong":1}}}`)
			if err := store.SaveSnapshot(t.Context(), bad); err != nil {
				t.Fatal(err)
			}
			r := snapshotting(t, store, 6, options{})
			update(t, r, id, add("A", 1))
			if got := snapshotVersion(t, store, bad.Stream); got != 7 {
				t.Errorf("%s: the snapshot is of version %d, want 7", id, got)
			}
			if diff := cmp.Diff(load(t, carts(t, store, options{}), id).State(), load(t, r, id).State()); diff != "" {
				t.Errorf("%s: %s", id, diff)
			}
		}
	})
}

func TestTheSnapshotOfNewerCodeIsLeftInPlace(t *testing.T) {
	t.Parallel()
	h := &hooked{Store: memory.New()}
	newer := cartKind
	newer.SchemaVersion++
	newer.Snapshots.Every = 1
	ahead, err := aggregate.NewRepository(eventstore.Store(h), newer, options{SnapshotTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, ahead, "7", 3)
	h.saving.Store(0)
	update(t, snapshotting(t, h, 1, options{}), "7", add("A", 1))
	if n := h.saving.Load(); n != 0 {
		t.Errorf("older code tried %d times to save its own", n)
	}
	if c := load(t, ahead, "7"); c.Version() != 4 || c.State().Items["A"] != 1 {
		t.Errorf("newer code finds version %d", c.Version())
	}
}

func TestASnapshotThatCannotBeSavedIsNoFailure(t *testing.T) {
	t.Parallel()
	for name, save := range map[string]func(context.Context) error{
		"it fails":  func(context.Context) error { return errBroken },
		"it panics": func(context.Context) error { panic("killed in the middle") },
		"it hangs":  func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log strings.Builder
			store := memory.New()
			r := snapshotting(t, &hooked{Store: store, saveSnapshot: save}, 1, options{
				SnapshotTimeout: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			})
			fill(t, r, "7", 3)
			if v := update(t, r, "7", add("A", 1)).Version; v != 4 {
				t.Errorf("version %d", v)
			}
			if !strings.Contains(log.String(), "saving a snapshot failed") || !strings.Contains(log.String(), "cart-7") {
				t.Errorf("the log says: %s", log.String())
			}
			if diff := cmp.Diff(load(t, carts(t, store, options{}), "7").State(), load(t, r, "7").State()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAnUnavailableStoreIsNotTakenForAMissingSnapshot(t *testing.T) {
	t.Parallel()
	store := memory.New()
	fill(t, carts(t, store, options{}), "7", 3)
	h := &hooked{Store: store, loadSnapshot: func() error { return eventstore.ErrUnavailable }}
	if _, err := snapshotting(t, h, 1, options{}).Load(t.Context(), "7"); !errors.Is(err, eventstore.ErrUnavailable) || h.calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, h.calls.Load())
	}
}

// history draws events that a cart may get.
var history = rapid.SliceOfN(rapid.OneOf(
	rapid.Custom(func(t *rapid.T) any {
		return added{SKU: rapid.SampledFrom([]string{"A", "B", "Ü\n"}).Draw(t, "sku"), Quantity: rapid.IntRange(-2, 3).Draw(t, "quantity")}
	}),
	rapid.Custom(func(t *rapid.T) any { return removed{SKU: rapid.SampledFrom([]string{"A", "B"}).Draw(t, "sku")} }),
	rapid.Custom(func(t *rapid.T) any { return paid{At: time.Unix(rapid.Int64Range(0, 1<<37).Draw(t, "at"), 7).UTC()} }),
), 1, 5)

func TestASnapshotAndTheRestFoldToTheSameAsEverything(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		store := memory.New()
		page := options{PageSize: rapid.IntRange(1, 7).Draw(rt, "page")}
		whole := carts(t, store, page)
		var everything cart
		for i, events := range rapid.SliceOfN(history, 1, 12).Draw(rt, "history") {
			// A snapshot falls, or falls not, on the end of each batch.
			r := snapshotting(t, store, rapid.IntRange(1, 10).Draw(rt, "every"), page)
			apply := func(c *cart) error { c.Apply(events...); return nil }
			run := r.Update
			if i == 0 {
				run = r.Create
			}
			if _, err := run(t.Context(), "7", apply); err != nil {
				rt.Fatal(err)
			}
			everything.Apply(events...)
			for name, from := range map[string]*repository{"snapshot": r, "events": whole} {
				c := load(t, from, "7")
				if diff := cmp.Diff(everything.State(), c.State()); diff != "" || c.Version() != int64(len(everything.Uncommitted())) {
					rt.Fatalf("from the %s, at version %d:\n%s", name, c.Version(), diff)
				}
			}
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	const event = `{"event":"0190163d-8694-739b-aea5-966c26f8ad91","state":`
	for _, seed := range []string{
		event + `{"items":{"A":1},"history":["+1 A"],"paidAt":"2024-02-29T12:00:00Z"}}`, event + `{}}`, event + `null}`, event + `[]}`, `null`, `{}`, `[`, "{\"event\":\"\xff\"}",
		event + `{"items":{"A":1001}}}`,
	} {
		f.Add(int64(1), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, version int64, data []byte) {
		last, state, err := aggregate.DecodeSnapshot[cartState](eventstore.Snapshot{Stream: "cart-7", Version: version, SchemaVersion: 2, Data: data})
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" || last != uuid.Nil {
				t.Fatalf("%v and %v", last, err)
			}
			return
		}
		if last == uuid.Nil || version < 1 {
			t.Fatalf("%+v of version %d, up to event %s", state, version, last)
		}
		if err := state.Validate(); err != nil {
			t.Fatalf("a state was let through that violates an invariant: %v", err)
		}
	})
}

// A registry that knows fewer types than the program before it is what a rollback leaves behind.
func TestASnapshotDoesNotHideAnEventThatNobodyKnows(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := snapshotting(t, store, 3, options{})
	fill(t, r, "7", 3)
	update(t, r, "7", func(c *cart) error { c.Apply(paid{}); return nil })
	kind := cartKind
	kind.Snapshots.Every, kind.Events = 3, eventtype.MustNewRegistry(eventtype.Of[added]("Added", 1))
	older, err := aggregate.NewRepository(eventstore.Store(store), kind, options{})
	if err != nil {
		t.Fatal(err)
	}
	var unknown *eventtype.UnknownTypeError
	if _, err := older.Load(t.Context(), "7"); !errors.As(err, &unknown) || unknown.Type != "Paid" {
		t.Error(err)
	}
}
