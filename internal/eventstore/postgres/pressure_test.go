package postgres_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// room is what some of these tests have; a huge append takes nearly half of it, so that two of them are all that may wait.
const room = 1 << 20

func huge(stream string) eventstore.Append { return sized(stream, 1, room/2-8<<10) }

// sized is an append of so many events of a size.
func sized(stream string, events, bytes int) eventstore.Append {
	a := eventstore.Append{Stream: stream}
	for range events {
		e := event()
		e.Data = json.RawMessage(`"` + strings.Repeat("x", bytes-2) + `"`)
		a.Events = append(a.Events, e)
	}
	return a
}

// later does an append in the background.
func later(ctx context.Context, store eventstore.Store, a eventstore.Append) <-chan error {
	answer := make(chan error, 1)
	go func() {
		_, err := store.Append(ctx, a)
		answer <- err
	}()
	return answer
}

func TestAnAppendWaitsForRoomAndHonoursItsContext(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store := storepg.NewNarrow(open(t, url, nil), 1, room)
	var answers []<-chan error
	more := huge("huge-3")
	heldUp(t, open(t, url, nil), func() {
		answers = append(answers, later(t.Context(), store, huge("huge-1")))
		store.AwaitFlush(t)
		answers = append(answers, later(t.Context(), store, huge("huge-2")))
		store.AwaitQueued(t, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		answer := later(ctx, store, more)
		store.AwaitWaitingForRoom(t)
		cancel()
		if err := <-answer; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "room") {
			t.Errorf("error %v, want that it waited for room until its caller gave up", err)
		}
		store.AwaitQueued(t, 1)
	})
	for i, answer := range answers {
		if err := <-answer; err != nil {
			t.Errorf("append %d: %v", i+1, err)
		}
	}
	if v, err := store.Version(t.Context(), "huge-3"); err != nil || v != 0 {
		t.Errorf("what never got room is at version %d, %v", v, err)
	}
	if err := <-later(t.Context(), store, more); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

func TestGivingUpGivesTheRoomBack(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store := storepg.NewNarrow(open(t, url, nil), 1, room)
	var first, third <-chan error
	heldUp(t, open(t, url, nil), func() {
		first = later(t.Context(), store, eventstore.Append{Stream: "small-1", Events: []eventstore.Event{event()}})
		store.AwaitFlush(t)
		for i := range 2 {
			ctx, cancel := context.WithCancel(t.Context())
			answer := later(ctx, store, huge(fmt.Sprintf("huge-%d", i)))
			store.AwaitQueued(t, i+1)
			cancel()
			if err := <-answer; !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want context.Canceled", err)
			}
		}
		third = later(t.Context(), store, huge("huge-9"))
	})
	if err := errors.Join(<-first, <-third); err != nil {
		t.Errorf("after others have given up: %v", err)
	}
	for i := range 2 {
		if v, err := store.Version(t.Context(), fmt.Sprintf("huge-%d", i)); err != nil || v != 0 {
			t.Errorf("what was given up is at version %d, %v", v, err)
		}
	}
}

func TestClosingWaitsForTheLastAnswersAndThenRefuses(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store := storepg.NewPatient(open(t, url, nil), 1)
	small := func(i int) eventstore.Append {
		return eventstore.Append{Stream: fmt.Sprintf("s-%d", i), Events: []eventstore.Event{event()}}
	}
	refused := func() {
		t.Helper()
		if err := <-later(t.Context(), store, small(99)); !errors.Is(err, eventstore.ErrUnavailable) || !strings.Contains(err.Error(), "closed") {
			t.Errorf("error %v, want that the store is closed", err)
		}
	}
	var answers []<-chan error
	heldUp(t, open(t, url, nil), func() {
		answers = append(answers, later(t.Context(), store, small(0)))
		store.AwaitFlush(t)
		for i := 1; i < 5; i++ {
			answers = append(answers, later(t.Context(), store, small(i)))
		}
		store.AwaitQueued(t, 4)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := store.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("closing while appends wait: %v, want it to wait", err)
		}
		refused()
	})
	if err := store.Close(t.Context()); err != nil {
		t.Errorf("closing: %v", err)
	}
	for i := range answers { // all has been committed by now, whether or not the callers have picked their answers up
		if v, err := store.Version(t.Context(), fmt.Sprintf("s-%d", i)); err != nil || v != 1 {
			t.Errorf("when it is closed, stream %d is at version %d, %v", i, v, err)
		}
	}
	for i, answer := range answers {
		if err := <-answer; err != nil {
			t.Errorf("append %d: %v", i, err)
		}
	}
	refused()
	if err := store.Close(t.Context()); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

func TestAnIdleStoreClosesAtOnce(t *testing.T) {
	t.Parallel()
	store := storepg.NewPatient(open(t, throwaway.Database(t), nil), 2)
	if err := <-later(t.Context(), store, eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event()}}); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if v, err := store.Version(t.Context(), "s-1"); err != nil || v != 1 {
		t.Errorf("a closed store does not read: version %d, %v", v, err)
	}
}

func TestTheAppendsOfAStreamAreCommittedInTheOrderInWhichTheyCame(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store := storepg.NewPatient(open(t, url, nil), 3)
	const n = 30
	var answers []<-chan error
	events := make([]eventstore.Event, n)
	gaveUp := 7
	heldUp(t, open(t, url, nil), func() {
		for i := range 3 { // each keeps a flusher busy
			answers = append(answers, later(t.Context(), store, eventstore.Append{Stream: fmt.Sprintf("busy-%d", i), Events: []eventstore.Event{event()}}))
			store.AwaitFlush(t)
			store.AwaitFlushers(t, i+1)
		}
		for i := range events {
			events[i] = event()
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			answer := later(ctx, store, eventstore.Append{Stream: "s-1", Expected: eventstore.AnyVersion, Events: events[i : i+1]})
			store.AwaitQueued(t, i+1)
			if i == gaveUp {
				cancel()
				if err := <-answer; !errors.Is(err, context.Canceled) {
					t.Errorf("error %v, want context.Canceled", err)
				}
				continue
			}
			answers = append(answers, answer)
		}
	})
	for i, answer := range answers {
		if err := <-answer; err != nil {
			t.Errorf("append %d: %v", i, err)
		}
	}
	got, err := store.Load(t.Context(), "s-1", 1, 2*n)
	if err != nil || len(got) != n-1 {
		t.Fatalf("%d events, %v, want those of all that did not give up", len(got), err)
	}
	for i := range got {
		from := i
		if i >= gaveUp {
			from++
		}
		if got[i].ID != events[from].ID {
			t.Errorf("version %d is not what came %d.", i+1, from+1)
		}
	}
}

// An append that does not fit into a flush is left for the next, and what came behind it for the same stream with it.
func TestNothingOvertakesAnAppendThatDoesNotFitIntoAFlush(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	store := storepg.NewPatient(open(t, url, nil), 1)
	large := func(stream string) eventstore.Append { // two of them are too many for a flush
		a := sized(stream, 3, eventstore.MaxEventBytes)
		a.Expected = eventstore.AnyVersion
		return a
	}
	small := func(stream string, expected int64) eventstore.Append {
		return eventstore.Append{Stream: stream, Expected: expected, Events: []eventstore.Event{event()}}
	}
	var answers []<-chan error
	heldUp(t, open(t, url, nil), func() {
		add := func(a eventstore.Append) {
			answers = append(answers, later(t.Context(), store, a))
			store.AwaitQueued(t, len(answers)-1)
		}
		answers = append(answers, later(t.Context(), store, small("busy", 0)))
		store.AwaitFlush(t)
		add(large("other"))
		add(large("s-1"))                        // does not fit beside it
		add(small("s-1", eventstore.AnyVersion)) // would fit
		add(small("s-2", 0))                     // goes with the first flush,
		add(large("s-2"))                        // this one not,
		add(small("s-2", 1))                     // and this one comes too late for its version
	})
	for i, answer := range answers {
		if err := <-answer; (i == 6) != errors.Is(err, eventstore.ErrWrongVersion) || i != 6 && err != nil {
			t.Errorf("append %d: %v", i, err)
		}
	}
	got, err := store.Load(t.Context(), "s-1", 1, 10)
	if err != nil || len(got) != 4 || len(got[3].Data) > 100 {
		t.Errorf("%d events, %v; the last is to be the small one", len(got), err)
	}
}

// One caller that appends again and again, each time after the answer to the time before, finds what it has written.
func TestEachCallersOwnAppendsStayInOrder(t *testing.T) {
	t.Parallel()
	store := storepg.NewPatient(open(t, throwaway.Database(t), nil), 3)
	const callers, each = 8, 25
	failed := make(chan error, callers)
	for c := range callers {
		go func() {
			var err error
			for i := range each {
				e := event()
				e.Data = json.RawMessage(fmt.Sprintf(`[%d,%d]`, c, i))
				_, one := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: eventstore.AnyVersion, Events: []eventstore.Event{e}})
				err = errors.Join(err, one)
			}
			failed <- err
		}()
	}
	for range callers {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	events, err := store.Load(t.Context(), "s-1", 1, 1000)
	if err != nil || len(events) != callers*each {
		t.Fatalf("%d events, %v", len(events), err)
	}
	next := map[int]int{}
	for _, e := range events {
		var from [2]int
		if err := json.Unmarshal(e.Data, &from); err != nil || next[from[0]] != from[1] {
			t.Errorf("version %d is append %d of caller %d, %v, want its %d.", e.Version, from[1], from[0], err, next[from[0]])
		}
		next[from[0]] = from[1] + 1
	}
}
