package aggregate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/eventtype"
)

func TestAnAggregateComesBackAsItWasLeft(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		r := carts(t, store, options{})
		at := time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC)
		meta := eventstore.Metadata{CorrelationID: "c", CausationID: "d", TraceParent: "t", Actor: "ann"}
		created, err := r.Create(t.Context(), "7", add("A", 2))
		if err != nil {
			t.Fatal(err)
		}
		var during *cart
		changed := update(t, r, "7", func(c *cart) error {
			during = c
			c.Apply(added{SKU: "B", Quantity: 1, Note: "ü"}, removed{SKU: "A"}, paid{At: at})
			return nil
		}, aggregate.WithMetadata(meta))

		want := cartState{Items: map[string]int{"B": 1}, History: []string{"+2 A", "+1 B", "-A"}, PaidAt: &at}
		for name, c := range map[string]*cart{"loaded": load(t, r, "7"), "in the command's hands": during} {
			if diff := cmp.Diff(want, c.State()); diff != "" || c.ID() != "7" || c.Version() != 4 || len(c.Uncommitted()) != 0 {
				t.Errorf("%s: %q at version %d, %d uncommitted\n%s", name, c.ID(), c.Version(), len(c.Uncommitted()), diff)
			}
		}
		if created.Version != 1 || changed.Version != 4 || len(changed.Events) != 3 || created.Token == changed.Token || changed.Token == (eventstore.Token{}) {
			t.Errorf("results %+v and %+v", created, changed)
		}
		stored, err := store.Load(t.Context(), "cart-7", 2, 10)
		if err != nil || len(stored) != 3 {
			t.Fatal(stored, err)
		}
		for i, e := range stored {
			if e.ID != changed.Events[i].ID || e.Metadata != meta {
				t.Errorf("event %d is stored as %+v", i, e)
			}
		}
	})
}

func TestWhatDoesNotExistIsNotFound(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := snapshotting(t, store, 2, options{})
	if c, err := r.Load(t.Context(), "7"); !errors.Is(err, aggregate.ErrNotFound) || c != nil {
		t.Errorf("loading: %v, %v", c, err)
	}
	if _, err := r.Update(t.Context(), "7", add("A", 1)); !errors.Is(err, aggregate.ErrNotFound) || !strings.Contains(err.Error(), "cart-7") {
		t.Errorf("updating: %v", err)
	}
	version(t, store, "cart-7", 0)
}

func TestWhatExistsIsNotCreatedAgain(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		r := carts(t, store, options{})
		fill(t, r, "7", 2)
		if _, err := r.Create(t.Context(), "7", add("A", 1)); !errors.Is(err, aggregate.ErrExists) {
			t.Error(err)
		}
		version(t, store, "cart-7", 2)
	})
}

func TestACommandThatAppliesNothingAppendsNothing(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	fill(t, r, "7", 2)
	result := update(t, r, "7", func(*cart) error { return nil })
	if diff := cmp.Diff(aggregate.Result{Version: 2}, result); diff != "" {
		t.Error(diff)
	}
	version(t, store, "cart-7", 2)
}

func TestACommandsErrorIsReturnedAsItIs(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	fill(t, r, "7", 2)
	// Also one that looks like a lost race, for instance over another aggregate: it is the command's business.
	for _, want := range []error{errBroken, &eventstore.WrongVersionError{Stream: "other-1"}} {
		runs := 0
		_, err := r.Update(t.Context(), "7", func(c *cart) error {
			runs++
			c.Apply(removed{SKU: "A"})
			return want
		})
		if err != want || runs != 1 { //nolint:errorlint // as it is, and not wrapped
			t.Errorf("%v after %d runs", err, runs)
		}
	}
	version(t, store, "cart-7", 2)
}

func TestAViolatedInvariantRefusesTheCommand(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	fill(t, r, "7", 2)
	_, err := r.Update(t.Context(), "7", func(c *cart) error {
		c.Apply(added{SKU: "ok", Quantity: 1}, added{SKU: "much", Quantity: maxQuantity + 1})
		return nil
	})
	var refused *aggregate.InvariantError
	if !errors.As(err, &refused) || refused.Stream != "cart-7" || !strings.Contains(err.Error(), "1001 of much") {
		t.Error(err)
	}
	version(t, store, "cart-7", 2)
}

func TestAnUnregisteredEventIsNeitherFoldedNorAppended(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	fill(t, r, "7", 2)
	for _, event := range []any{nil, "text", struct{}{}, &added{SKU: "A"}} {
		_, err := r.Update(t.Context(), "7", func(c *cart) error { // Evolve panics when it is given something else
			c.Apply(added{SKU: "A", Quantity: 1}, event)
			return nil
		})
		var panicked *eventtype.PanicError
		if err == nil || errors.As(err, &panicked) || !strings.Contains(err.Error(), "cart-7") || !strings.Contains(err.Error(), fmt.Sprintf("%T", event)) {
			t.Errorf("%T: %v", event, err)
		}
	}
	version(t, store, "cart-7", 2)
}

func TestALostRaceRunsTheCommandAgainOnTheNewState(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		rival := carts(t, store, options{})
		fill(t, rival, "7", 1)
		losses := 2
		h := &hooked{Store: store, beforeAppend: func(context.Context) error {
			if losses > 0 {
				losses--
				update(t, rival, "7", add("rival", 1))
			}
			return nil
		}}
		var seen []int
		result := update(t, carts(t, h, options{}), "7", func(c *cart) error {
			seen = append(seen, c.State().Items["rival"])
			c.Apply(added{SKU: "A", Quantity: 1})
			return nil
		})
		if !slices.Equal(seen, []int{0, 1, 2}) || result.Version != 4 {
			t.Errorf("the command saw %v and led to version %d", seen, result.Version)
		}
	})
}

func TestRacesAreLostABoundedNumberOfTimes(t *testing.T) {
	t.Parallel()
	store := memory.New()
	fill(t, carts(t, store, options{}), "7", 1)
	lost := &eventstore.WrongVersionError{Stream: "cart-7", Expected: 1, Actual: 2}
	for _, attempts := range []int{0, 1, 12} {
		var most, pauses []time.Duration
		r := carts(t, &hooked{Store: store, beforeAppend: func(context.Context) error { return lost }}, options{
			Attempts: attempts,
			Random:   func(n int64) int64 { most = append(most, time.Duration(n-1)); return n / 2 },
			Sleep:    func(_ context.Context, d time.Duration) error { pauses = append(pauses, d); return nil },
		})
		runs := 0
		_, err := r.Update(t.Context(), "7", func(c *cart) error { runs++; return add("A", 1)(c) })
		want := attempts
		if attempts == 0 {
			want = aggregate.DefaultAttempts
		}
		var conflict *aggregate.ConflictError
		if !errors.As(err, &conflict) || conflict.Attempts != want || runs != want || !errors.Is(err, eventstore.ErrWrongVersion) {
			t.Errorf("%d runs: %v", runs, err)
		}
		for i := range most {
			if ceiling := min(5*time.Millisecond<<i, 500*time.Millisecond); most[i] != ceiling || pauses[i] != (ceiling+1)/2 {
				t.Errorf("pause %d is %v of at most %v, want at most %v", i+1, pauses[i], most[i], ceiling)
			}
		}
		if len(pauses) != want-1 {
			t.Errorf("%d pauses between %d runs", len(pauses), want)
		}
	}
	version(t, store, "cart-7", 1)
}

func TestThePauseAfterALostRaceEndsWithItsContext(t *testing.T) {
	t.Parallel()
	store := memory.New()
	fill(t, carts(t, store, options{}), "7", 1)
	ctx, cancel := context.WithCancel(t.Context())
	h := &hooked{Store: store, beforeAppend: func(context.Context) error {
		cancel()
		return &eventstore.WrongVersionError{}
	}}
	_, err := carts(t, h, options{Random: func(n int64) int64 { return n - 1 }}).Update(ctx, "7", add("A", 1))
	if !errors.Is(err, context.Canceled) || errors.Is(err, aggregate.ErrUnknownFate) {
		t.Error(err)
	}
}

func TestTwoRepositoriesRacingLoseNoUpdate(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		const writers, each = 6, 25
		o := options{Attempts: 1000}
		repositories := []*repository{snapshotting(t, store, 7, o), snapshotting(t, store, 10, o)}
		fill(t, repositories[0], "7", 1)
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for range each {
					if _, err := repositories[w%2].Update(t.Context(), "7", func(c *cart) error {
						// What is appended depends on what was seen: a lost update would show as a number that comes twice.
						c.Apply(added{SKU: fmt.Sprintf("n-%d", len(c.State().History)), Quantity: 1})
						return nil
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		c := load(t, repositories[1], "7")
		if got := len(c.State().Items); got != writers*each+1 || c.Version() != writers*each+1 {
			t.Errorf("%d updates left %d items at version %d", writers*each, got, c.Version())
		}
	})
}

func TestOnlyOneOfManyCreates(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = r.Create(t.Context(), "7", add("A", 1)) })
	}
	wg.Wait()
	created := 0
	for _, err := range errs {
		if err == nil {
			created++
		} else if !errors.Is(err, aggregate.ErrExists) {
			t.Error(err)
		}
	}
	if created != 1 {
		t.Errorf("%d have created it", created)
	}
	version(t, store, "cart-7", 1)
}

func TestAnAppendOfUnknownFateSaysSo(t *testing.T) {
	t.Parallel()
	unavailable := fmt.Errorf("the answer got lost: %w", eventstore.ErrUnavailable)
	for name, c := range map[string]struct {
		err     error
		unknown bool
	}{
		"unavailable": {unavailable, true}, "timeout": {context.DeadlineExceeded, true}, "network": {errBroken, true},
		"invalid": {eventstore.ErrInvalid, false}, "archived": {eventstore.ErrArchived, false},
	} {
		store := memory.New()
		fill(t, carts(t, store, options{}), "7", 1)
		appends := 0
		h := &hooked{Store: store, afterAppend: func() error { appends++; return c.err }}
		_, err := carts(t, h, options{}).Update(t.Context(), "7", add("A", 1))
		if !errors.Is(err, c.err) || errors.Is(err, aggregate.ErrUnknownFate) != c.unknown || appends != 1 {
			t.Errorf("%s: %v after %d appends", name, err, appends)
		}
	}
}

func TestACancelledCallerAppendsNothing(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	fill(t, r, "7", 1)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := r.Update(ctx, "7", func(c *cart) error { cancel(); return add("A", 1)(c) })
	if !errors.Is(err, context.Canceled) || errors.Is(err, aggregate.ErrUnknownFate) {
		t.Error(err)
	}
	version(t, store, "cart-7", 1)
}

func TestAPanicIsAnErrorThatNamesTheAggregate(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	fill(t, r, "7", 1)
	raw := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Explosive", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "cart-8", Events: []eventstore.Event{raw}}); err != nil {
		t.Fatal(err)
	}
	talkative := carts(t, store, options{Messages: func(*cart, []eventstore.Event) []eventstore.Message { panic("boom") }})
	kind := cartKind
	kind.New = func() *cart { return nil }
	empty, err := aggregate.NewRepository(store, kind, options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, run := range map[string]func() error{
		"command": func() error {
			_, err := r.Update(t.Context(), "7", func(*cart) error { panic("boom") })
			return err
		},
		"Evolve in a command": func() error {
			_, err := r.Update(t.Context(), "7", func(c *cart) error { c.Apply(explosive{}); return nil })
			return err
		},
		"Evolve in a load": func() error { _, err := r.Load(t.Context(), "8"); return err },
		"Validate":         func() error { _, err := r.Update(t.Context(), "7", add("A", 13)); return err },
		"Messages":         func() error { _, err := talkative.Update(t.Context(), "7", add("A", 1)); return err },
		"New":              func() error { _, err := empty.Load(t.Context(), "7"); return err },
	} {
		err := run()
		var panicked *eventtype.PanicError
		if !errors.As(err, &panicked) || len(panicked.Stack) == 0 || !strings.Contains(err.Error(), "cart-") {
			t.Errorf("%s: %v", name, err)
		}
	}
	version(t, store, "cart-7", 1)
}

func TestMessagesAreCommittedWithTheirEvents(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		r := carts(t, store, options{Messages: func(c *cart, events []eventstore.Event) []eventstore.Message {
			last := events[len(events)-1]
			return []eventstore.Message{{ID: last.ID, Type: "cart changed", Key: c.ID(), Data: json.RawMessage(fmt.Sprint(len(c.State().History)))}}
		}})
		fill(t, r, "7", 2)
		result := update(t, r, "7", add("A", 1))
		messages, err := store.Messages(t.Context(), 0, 10)
		if err != nil || len(messages) != 2 {
			t.Fatalf("%d messages, %v", len(messages), err)
		}
		if m := messages[1]; m.ID != result.Events[0].ID || m.Key != "7" || string(m.Data) != "3" {
			t.Errorf("got %+v", m)
		}
	})
}

func TestALongStreamIsReadInPages(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 4, 9, 10} {
		h := &hooked{Store: memory.New()}
		r := carts(t, h, options{PageSize: 3})
		fill(t, r, "7", n)
		if c := load(t, r, "7"); c.Version() != int64(n) || len(c.State().History) != n {
			t.Errorf("%d events: version %d", n, c.Version())
		}
		if got, want := h.calls.Load(), int64(n/3+1); got != want {
			t.Errorf("%d events were read in %d pages, want %d", n, got, want)
		}
	}
}

func TestMissingEventsAreNoticed(t *testing.T) {
	t.Parallel()
	store := memory.New()
	fill(t, carts(t, store, options{}), "7", 5)
	h := &hooked{Store: store, loaded: func(e []eventstore.Recorded) []eventstore.Recorded { return slices.Delete(e, 2, 3) }}
	if _, err := carts(t, h, options{}).Load(t.Context(), "7"); err == nil || !strings.Contains(err.Error(), "events are missing") {
		t.Error(err)
	}
}

func TestAnEventThatNobodyKnowsIsNotSkipped(t *testing.T) {
	t.Parallel()
	store := memory.New()
	r := carts(t, store, options{})
	fill(t, r, "7", 1)
	raw := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Gifted", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
	if _, err := store.Append(t.Context(), eventstore.Append{Stream: "cart-7", Expected: 1, Events: []eventstore.Event{raw}}); err != nil {
		t.Fatal(err)
	}
	var unknown *eventtype.UnknownTypeError
	if _, err := r.Load(t.Context(), "7"); !errors.As(err, &unknown) || unknown.Type != "Gifted" || unknown.Stream != "cart-7" || unknown.Version != 2 {
		t.Error(err)
	}
	if _, err := r.Update(t.Context(), "7", add("A", 1)); !errors.As(err, &unknown) {
		t.Error(err)
	}
	version(t, store, "cart-7", 2)
}

func TestAnEventOfOneMebibyteIsKeptAndOneOverTheLimitIsRefused(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, store eventstore.Store) {
		r := snapshotting(t, store, 1, options{})
		fill(t, r, "7", 1)
		note := strings.Repeat("n", 1<<20)
		update(t, r, "7", func(c *cart) error { c.Apply(added{SKU: note, Quantity: 1}); return nil })
		if got := load(t, r, "7").State().Items[note]; got != 1 {
			t.Error("it did not come back")
		}
		_, err := r.Update(t.Context(), "7", func(c *cart) error {
			c.Apply(removed{SKU: "A"}, added{Note: strings.Repeat("n", eventstore.MaxEventBytes)})
			return nil
		})
		if !errors.Is(err, eventstore.ErrInvalid) || errors.Is(err, aggregate.ErrUnknownFate) || !strings.Contains(err.Error(), "limit") {
			t.Error(err)
		}
		version(t, store, "cart-7", 2)
	})
}

func TestAnIDThatNoStreamCanHaveIsInvalid(t *testing.T) {
	t.Parallel()
	r := carts(t, memory.New(), options{})
	for _, id := range []string{"", "a\x00", "\xff", strings.Repeat("x", eventstore.MaxStreamIDBytes-4)} {
		_, loading := r.Load(t.Context(), id)
		_, updating := r.Update(t.Context(), id, add("A", 1))
		_, creating := r.Create(t.Context(), id, add("A", 1))
		for _, err := range []error{loading, updating, creating} {
			if !errors.Is(err, eventstore.ErrInvalid) {
				t.Errorf("%q: %v", id, err)
			}
		}
	}
	longest := strings.Repeat("x", eventstore.MaxStreamIDBytes-5)
	if _, err := r.Create(t.Context(), longest, add("A", 1)); err != nil {
		t.Error(err)
	}
}

type leakyState struct{ total int }

func (s leakyState) Evolve(any) leakyState { s.total++; return s }
func (leakyState) Validate() error         { return nil }

type leaky struct{ aggregate.Root[leakyState] }

func TestAKindThatIsNotCompleteIsRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*aggregate.Kind[*cart, cartState]){
		"no category":      func(k *aggregate.Kind[*cart, cartState]) { k.Category = "" },
		"a - in it":        func(k *aggregate.Kind[*cart, cartState]) { k.Category = "shopping-cart" },
		"no New":           func(k *aggregate.Kind[*cart, cartState]) { k.New = nil },
		"no events":        func(k *aggregate.Kind[*cart, cartState]) { k.Events = nil },
		"no schema":        func(k *aggregate.Kind[*cart, cartState]) { k.SchemaVersion = 0 },
		"a wrong policy":   func(k *aggregate.Kind[*cart, cartState]) { k.Snapshots.Every = -1 },
		"a wrong duration": func(k *aggregate.Kind[*cart, cartState]) { k.Snapshots.Slower = -1 },
	} {
		kind := cartKind
		change(&kind)
		if _, err := aggregate.NewRepository(memory.New(), kind, options{}); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
	if _, err := aggregate.NewRepository(nil, cartKind, options{}); err == nil {
		t.Error("no store: was accepted")
	}
}

func TestAStateThatASnapshotWouldCutIsRefused(t *testing.T) {
	t.Parallel()
	kind := aggregate.Kind[*leaky, leakyState]{Category: "leaky", New: func() *leaky { return &leaky{} }, Events: cartEvents, SchemaVersion: 1}
	if _, err := aggregate.NewRepository(memory.New(), kind, aggregate.Options[*leaky]{}); err != nil {
		t.Errorf("without snapshots it is good: %v", err)
	}
	kind.Snapshots.Every = 1
	if _, err := aggregate.NewRepository(memory.New(), kind, aggregate.Options[*leaky]{}); err == nil || !strings.Contains(err.Error(), "leakyState.total") {
		t.Error(err)
	}
}
