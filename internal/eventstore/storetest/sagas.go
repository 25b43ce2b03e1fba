package storetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

var sagas = []behaviour{
	{"a state row takes the place of the one before", func(t *testing.T, f *fixture) {
		uid := uuid.New()
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), State: state(uid)})
		next := state(uid)
		next.Phase, next.Finished, next.State = "Completed", true, json.RawMessage(`{"phase":"Completed"}`)
		f.append(eventstore.Append{Stream: "s-1", Expected: 1, Events: events(2), State: next})
		want := *next
		want.Version = 3
		got, err := f.SagaState(t.Context(), uid)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}},
	{"an append without a state row leaves the one before", func(t *testing.T, f *fixture) {
		uid := uuid.New()
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), State: state(uid)})
		f.append(eventstore.Append{Stream: "s-1", Expected: 1, Events: events(1)})
		if got, err := f.SagaState(t.Context(), uid); err != nil || got.Version != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	}},
	{"a saga that nobody knows is not found", func(t *testing.T, f *fixture) {
		if _, err := f.SagaState(t.Context(), uuid.New()); !errors.Is(err, eventstore.ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
	}},
	{"the time to wake comes back, to the microsecond, or as none", func(t *testing.T, f *fixture) {
		at := time.Date(2030, 1, 2, 3, 4, 5, 678_901_000, time.UTC)
		for i, wake := range []time.Time{{}, at, at.In(time.FixedZone("x", 3600))} {
			s := state(uuid.New())
			s.WakeAt = wake
			f.append(eventstore.Append{Stream: fmt.Sprintf("s-%d", i), Events: events(1), State: s})
			got, err := f.SagaState(t.Context(), s.UID)
			if err != nil || !got.WakeAt.Equal(wake) || got.WakeAt.IsZero() != wake.IsZero() || got.WakeAt.Location() != time.UTC {
				t.Errorf("%v came back as %v, %v", wake, got.WakeAt, err)
			}
		}
	}},
	{"a time to wake goes away again", func(t *testing.T, f *fixture) {
		s := state(uuid.New())
		s.WakeAt = time.Now()
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), State: s})
		f.append(eventstore.Append{Stream: "s-1", Expected: 1, Events: events(1), State: state(s.UID)})
		if got, err := f.SagaState(t.Context(), s.UID); err != nil || !got.WakeAt.IsZero() {
			t.Errorf("%v, %v", got.WakeAt, err)
		}
	}},
	{"unfinished sagas are listed in the order of their uids, page by page", func(t *testing.T, f *fixture) {
		var want []uuid.UUID
		for i := range 25 {
			s := state(uuid.New())
			s.Finished = i%5 == 0
			f.append(eventstore.Append{Stream: fmt.Sprintf("s-%d", i), Events: events(1), State: s})
			if !s.Finished {
				want = append(want, s.UID)
			}
		}
		slices.SortFunc(want, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
		var got []uuid.UUID
		for after := uuid.Nil; ; after = got[len(got)-1] {
			page := f.unfinished(after, 7)
			for _, s := range page {
				got = append(got, s.UID)
			}
			if len(page) < 7 {
				break
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}},
	{"a saga that finishes is no longer listed, and can be again", func(t *testing.T, f *fixture) {
		s := state(uuid.New())
		for i, finished := range []bool{false, true, false} {
			s.Finished = finished
			f.append(eventstore.Append{Stream: "s-1", Expected: int64(i), Events: events(1), State: s})
			if got := len(f.unfinished(uuid.Nil, 10)); (got == 0) != finished {
				t.Errorf("finished %t, but %d are listed", finished, got)
			}
		}
	}},
}

var outbox = []behaviour{
	{"messages come back in the order of their append", func(t *testing.T, f *fixture) {
		first, second := []eventstore.Message{message("a"), message("b"), message("a")}, []eventstore.Message{message("b")}
		first[1].Destination = "billing"
		first[2].Metadata = eventstore.Metadata{TraceParent: "00-x"}
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), Messages: first})
		f.append(eventstore.Append{Stream: "s-2", Events: events(1), Messages: second})
		var got []eventstore.Message
		var last int64
		for _, m := range f.messages() {
			if m.Position <= last {
				t.Errorf("position %d follows %d", m.Position, last)
			}
			last = m.Position
			got = append(got, m.Message)
		}
		if diff := cmp.Diff(append(first, second...), got); diff != "" {
			t.Error(diff)
		}
	}},
	{"messages are read from a position and up to a limit", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), Messages: []eventstore.Message{message("a"), message("b"), message("c")}})
		all := f.messages()
		got, err := f.Messages(t.Context(), all[0].Position, 1)
		if err != nil || len(got) != 1 || got[0].Key != "b" {
			t.Errorf("%+v, %v", got, err)
		}
	}},
	{"message data comes back byte for byte", func(t *testing.T, f *fixture) {
		m := message("k")
		m.Data = json.RawMessage(`{"nul":"\u0000", "b":1,"a":2}`)
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), Messages: []eventstore.Message{m}})
		if got := f.messages()[0].Data; !bytes.Equal(got, m.Data) {
			t.Errorf("%s", got)
		}
	}},
}

// writers is how many goroutines contend where a behaviour is about concurrency.
const writers = 32

var concurrency = []behaviour{
	{"of many that make a stream at once exactly one wins", func(t *testing.T, f *fixture) {
		var mu sync.Mutex
		won := 0
		together(t, func(int) error {
			_, err := f.Append(t.Context(), eventstore.Append{Stream: "s-1", Events: events(2)})
			var wrong *eventstore.WrongVersionError
			switch {
			case err == nil:
				mu.Lock()
				won++
				mu.Unlock()
			case !errors.As(err, &wrong) || wrong.Actual != 2:
				return err
			}
			return nil
		})
		if won != 1 || f.version("s-1") != 2 {
			t.Errorf("%d won, the stream is at version %d", won, f.version("s-1"))
		}
	}},
	{"many that append to one stream leave no gap and no double", func(t *testing.T, f *fixture) {
		const each = 5
		together(t, func(int) error {
			at := int64(0)
			for done := 0; done < each; {
				got, err := f.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: at, Events: events(1)})
				var wrong *eventstore.WrongVersionError
				switch {
				case err == nil:
					at = got.Version
					done++
				case errors.As(err, &wrong):
					at = wrong.Actual
				default:
					return err
				}
			}
			return nil
		})
		got := f.load("s-1", 1, 1000)
		if len(got) != writers*each {
			t.Fatalf("%d events, want %d", len(got), writers*each)
		}
		for i := range got {
			if got[i].Version != int64(i)+1 || i > 0 && got[i].Position <= got[i-1].Position {
				t.Errorf("event %d has version %d and position %d", i, got[i].Version, got[i].Position)
			}
		}
	}},
	{"many that append to one stream at any version leave no gap and no double", func(t *testing.T, f *fixture) {
		const each = 5
		together(t, func(int) error {
			last := int64(0)
			for range each {
				got, err := f.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: eventstore.AnyVersion, Events: events(2)})
				if err == nil && got.Version <= last {
					err = fmt.Errorf("version %d follows %d", got.Version, last)
				}
				if err != nil {
					return err
				}
				last = got.Version
			}
			return nil
		})
		for i, e := range f.load("s-1", 1, 1000) {
			if e.Version != int64(i)+1 {
				t.Errorf("event %d has version %d", i, e.Version)
			}
		}
		if v := f.version("s-1"); v != 2*writers*each {
			t.Errorf("version %d, want %d", v, 2*writers*each)
		}
	}},
	{"appends to different streams do not stand in each other's way", func(t *testing.T, f *fixture) {
		together(t, func(w int) error {
			for i := range 5 {
				s := state(uuid.New())
				if _, err := f.Append(t.Context(), eventstore.Append{Stream: fmt.Sprintf("s-%d-%d", w, i), Events: events(2), State: s, Messages: []eventstore.Message{message("k")}}); err != nil {
					return err
				}
			}
			return nil
		})
		if got := len(f.unfinished(uuid.Nil, 1000)); got != writers*5 || len(f.messages()) != writers*5 {
			t.Errorf("%d states and %d messages, want %d of each", got, len(f.messages()), writers*5)
		}
	}},
	{"a reader sees all of an append or nothing", func(t *testing.T, f *fixture) {
		together(t, func(w int) error {
			if w == 0 {
				for i := range int64(20) {
					if _, err := f.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: 3 * i, Events: events(3)}); err != nil {
						return err
					}
				}
				return nil
			}
			got, err := f.Load(t.Context(), "s-1", 1, 1000)
			if err == nil && len(got)%3 != 0 {
				err = fmt.Errorf("saw %d events of appends of 3", len(got))
			}
			return err
		})
	}},
}

// together runs something in many goroutines at once.
func together(t *testing.T, do func(writer int) error) {
	t.Helper()
	var wg sync.WaitGroup
	begin := make(chan struct{})
	failed := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			<-begin
			failed[w] = do(w)
		})
	}
	close(begin)
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
}
