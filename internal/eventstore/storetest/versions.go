package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

var versions = []behaviour{
	{"the first append makes the stream", func(t *testing.T, f *fixture) {
		if got := f.append(eventstore.Append{Stream: "s-1", Events: events(2)}); got.Version != 2 || f.version("s-1") != 2 {
			t.Errorf("appended to version %d, the stream is at %d, want 2", got.Version, f.version("s-1"))
		}
	}},
	{"an append continues the stream", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(2)})
		if got := f.append(eventstore.Append{Stream: "s-1", Expected: 2, Events: events(3)}); got.Version != 5 {
			t.Errorf("version %d, want 5", got.Version)
		}
	}},
	{"a stream that does not exist is at version 0", func(t *testing.T, f *fixture) {
		if v := f.version("s-1"); v != 0 {
			t.Errorf("version %d", v)
		}
	}},
	{"the loser learns the actual version", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3)})
		for _, expected := range []int64{0, 1, 2, 4} {
			f.loses(eventstore.Append{Stream: "s-1", Expected: expected, Events: events(1)}, 3)
		}
		f.loses(eventstore.Append{Stream: "s-2", Expected: 7, Events: events(1)}, 0)
	}},
	{"losing changes nothing", func(t *testing.T, f *fixture) {
		uid := uuid.New()
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), State: state(uid)})
		changed := state(uid)
		changed.Phase = "Completed"
		f.loses(eventstore.Append{Stream: "s-1", Events: events(2), State: changed, Messages: []eventstore.Message{message("k")}}, 1)
		if s, err := f.SagaState(t.Context(), uid); err != nil || s.Phase != "Running" || f.version("s-1") != 1 || len(f.messages()) > 0 || len(f.load("s-1", 1, 10)) != 1 {
			t.Errorf("state %+v, %v; version %d; %d messages", s, err, f.version("s-1"), len(f.messages()))
		}
	}},
	{"any version makes a stream that is new", func(t *testing.T, f *fixture) {
		got := f.append(eventstore.Append{Stream: "s-1", Expected: eventstore.AnyVersion, Events: events(2), State: state(uuid.New()), Messages: []eventstore.Message{message("k")}})
		if got.Version != 2 || got.Repeated || f.version("s-1") != 2 || len(f.unfinished(uuid.Nil, 10)) != 1 || len(f.messages()) != 1 {
			t.Errorf("%+v, the stream is at %d", got, f.version("s-1"))
		}
	}},
	{"any version continues a stream wherever it is", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3)})
		uid := uuid.New()
		for i := range int64(3) {
			got := f.append(eventstore.Append{Stream: "s-1", Expected: eventstore.AnyVersion, Events: events(2), State: state(uid)})
			if s, err := f.SagaState(t.Context(), uid); err != nil || got.Version != 5+2*i || s.Version != got.Version {
				t.Errorf("append %d: %+v; the state is of version %d, %v", i, got, s.Version, err)
			}
		}
		if got := f.load("s-1", 1, 100); len(got) != 9 || got[8].Version != 9 {
			t.Errorf("%d events", len(got))
		}
	}},
	{"streams are independent", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
		f.append(eventstore.Append{Stream: "s-10", Events: events(2)})
		if f.version("s-1") != 1 || f.version("s-10") != 2 || len(f.load("s-1", 1, 10)) != 1 {
			t.Error("the streams are mixed up")
		}
	}},
}

// loses does an append that has to lose its compare-and-set.
func (f *fixture) loses(a eventstore.Append, actual int64) {
	f.t.Helper()
	_, err := f.Append(f.t.Context(), a)
	var wrong *eventstore.WrongVersionError
	if !errors.As(err, &wrong) || !errors.Is(err, eventstore.ErrWrongVersion) {
		f.t.Fatalf("error %v, want a WrongVersionError", err)
	}
	if want := (eventstore.WrongVersionError{Stream: a.Stream, Expected: a.Expected, Actual: actual}); *wrong != want {
		f.t.Errorf("error %+v, want %+v", *wrong, want)
	}
}

// refused does an append that has to be refused as invalid, and to leave no trace.
func (f *fixture) refused(a eventstore.Append) {
	f.t.Helper()
	if _, err := f.Append(f.t.Context(), a); !errors.Is(err, eventstore.ErrInvalid) {
		f.t.Errorf("error %v, want ErrInvalid", err)
	}
	if len(f.messages()) > 0 {
		f.t.Error("it left a message")
	}
}

var atomicity = []behaviour{
	{"events, state and messages are committed together", func(t *testing.T, f *fixture) {
		uid := uuid.New()
		f.append(eventstore.Append{Stream: "s-1", Events: events(2), State: state(uid), Messages: []eventstore.Message{message("a"), message("b")}})
		s, err := f.SagaState(t.Context(), uid)
		if err != nil || s.Version != 2 || len(f.messages()) != 2 || len(f.load("s-1", 1, 10)) != 2 {
			t.Errorf("state %+v, %v; %d messages; %d events", s, err, len(f.messages()), len(f.load("s-1", 1, 10)))
		}
	}},
	{"an event id that the store has already is refused, and nothing is appended", func(t *testing.T, f *fixture) {
		twice := events(1)
		f.append(eventstore.Append{Stream: "s-1", Events: twice})
		f.refused(eventstore.Append{Stream: "s-2", Events: append(events(1), twice...), State: state(uuid.New()), Messages: []eventstore.Message{message("k")}})
		if f.version("s-2") != 0 || len(f.load("s-2", 1, 10)) > 0 || len(f.unfinished(uuid.Nil, 10)) > 0 {
			t.Error("a part of it was appended")
		}
	}},
	{"an event id twice in one append is refused", func(t *testing.T, f *fixture) {
		e := event(`{}`)
		f.refused(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{e, e}})
	}},
	{"what the caller changes afterwards does not change the store", func(t *testing.T, f *fixture) {
		uid := uuid.New()
		a := eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event(`{"n":1}`)}, State: state(uid), Messages: []eventstore.Message{message("k")}}
		f.append(a)
		for _, data := range [][]byte{a.Events[0].Data, a.State.State, a.Messages[0].Data} {
			copy(data, bytes.Repeat([]byte("x"), len(data)))
		}
		s, err := f.SagaState(t.Context(), uid)
		if err != nil || !json.Valid(s.State) || !json.Valid(f.load("s-1", 1, 1)[0].Data) || !json.Valid(f.messages()[0].Data) {
			t.Errorf("the store changed with the caller's memory: %s, %v", s.State, err)
		}
	}},
	{"what a reader changes does not change the store", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
		copy(f.load("s-1", 1, 1)[0].Data, "xxxx")
		if !json.Valid(f.load("s-1", 1, 1)[0].Data) {
			t.Error("the store changed with the reader's memory")
		}
	}},
	{"a context that is done appends nothing", func(t *testing.T, f *fixture) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.Append(ctx, eventstore.Append{Stream: "s-1", Events: events(1)}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
		if f.version("s-1") != 0 {
			t.Error("it was appended")
		}
	}},
}

var reading = []behaviour{
	{"a stream that does not exist has no events", func(t *testing.T, f *fixture) {
		if got := f.load("s-1", 1, 10); len(got) > 0 {
			t.Errorf("%d events", len(got))
		}
	}},
	{"a stream is loaded in order", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(4)})
		f.append(eventstore.Append{Stream: "s-1", Expected: 4, Events: events(3)})
		var last int64
		for i, e := range f.load("s-1", 1, 100) {
			if e.Version != int64(i)+1 || e.Stream != "s-1" || e.Position <= last || e.RecordedAt.IsZero() {
				t.Errorf("event %d is %+v", i, e)
			}
			last = e.Position
		}
	}},
	{"a stream is loaded from a version and up to a limit", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(10)})
		for _, test := range []struct{ from, limit, first, n int64 }{{1, 3, 1, 3}, {4, 3, 4, 3}, {9, 5, 9, 2}, {11, 5, 0, 0}, {99, 5, 0, 0}} {
			got := f.load("s-1", test.from, int(test.limit))
			if int64(len(got)) != test.n || test.n > 0 && got[0].Version != test.first {
				t.Errorf("from %d up to %d: %d events", test.from, test.limit, len(got))
			}
		}
	}},
	{"positions grow over all streams", func(t *testing.T, f *fixture) {
		var last int64
		for i := range 5 {
			stream := fmt.Sprintf("s-%d", i)
			f.append(eventstore.Append{Stream: stream, Events: events(1)})
			if p := f.load(stream, 1, 1)[0].Position; p <= last {
				t.Errorf("position %d follows %d", p, last)
			} else {
				last = p
			}
		}
	}},
	{"data comes back byte for byte", func(t *testing.T, f *fixture) {
		for i, data := range []string{
			`{"b":1, "a" :2,  "b":3}`, `"text"`, `null`, `[1,2.50,1e400]`, `{"nul":"a\u0000b"}`, `{"lone":"\ud800"}`, `"é 漢 🚀 \u00e9"`, "{\n\t\"x\" : 1 }",
		} {
			stream := fmt.Sprintf("s-%d", i)
			f.append(eventstore.Append{Stream: stream, Events: []eventstore.Event{event(data)}})
			if got := string(f.load(stream, 1, 1)[0].Data); got != data {
				t.Errorf("%q came back as %q", data, got)
			}
		}
	}},
	{"everything about an event comes back", func(t *testing.T, f *fixture) {
		e := event(`{"x":1}`)
		e.Type, e.SchemaVersion = "Ereignis/ä", 7
		e.Metadata = eventstore.Metadata{CorrelationID: "c", CausationID: "ca", TraceParent: "00-x", Actor: "ada@example.com"}
		f.append(eventstore.Append{Stream: "s-é", Events: []eventstore.Event{e}})
		got := f.load("s-é", 1, 1)[0]
		if diff := cmp.Diff(e, got.Event); diff != "" {
			t.Error(diff)
		}
	}},
	{"a context that is done reads nothing", func(t *testing.T, f *fixture) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, loaded := f.Load(ctx, "s-1", 1, 1)
		_, versioned := f.Version(ctx, "s-1")
		_, listed := f.UnfinishedSagas(ctx, uuid.Nil, 1)
		for _, err := range []error{loaded, versioned, listed} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want context.Canceled", err)
			}
		}
	}},
	{"a store that can be reached answers a ping", func(t *testing.T, f *fixture) {
		if err := f.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}},
}

var limits = []behaviour{
	{"an append without events is refused", func(_ *testing.T, f *fixture) {
		f.refused(eventstore.Append{Stream: "s-1", Messages: []eventstore.Message{message("k")}})
	}},
	{"a stream without a name, with a long one, or with a NUL is refused", func(_ *testing.T, f *fixture) {
		for _, name := range []string{"", strings.Repeat("s", eventstore.MaxStreamIDBytes+1), "s\x00", "\xff"} {
			f.refused(eventstore.Append{Stream: name, Events: events(1)})
		}
	}},
	{"the longest name and the largest append are not", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: strings.Repeat("s", eventstore.MaxStreamIDBytes), Events: events(eventstore.MaxEventsPerAppend)})
	}},
	{"a negative expected version is refused, unless it means any", func(_ *testing.T, f *fixture) {
		f.refused(eventstore.Append{Stream: "s-2", Expected: eventstore.AnyVersion - 1, Events: events(1)})
	}},
	{"too many events are refused", func(_ *testing.T, f *fixture) {
		f.refused(eventstore.Append{Stream: "s-1", Events: events(eventstore.MaxEventsPerAppend + 1)})
	}},
	{"an event that is too large is refused, the largest is not", func(_ *testing.T, f *fixture) {
		largest := `"` + strings.Repeat("x", eventstore.MaxEventBytes-2) + `"`
		f.append(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event(largest)}})
		f.refused(eventstore.Append{Stream: "s-2", Events: []eventstore.Event{event(largest + " ")}})
	}},
	{"data that is not one JSON value is refused", func(_ *testing.T, f *fixture) {
		for _, data := range []string{"", "{", "{} {}", "nil", "\x00"} {
			f.refused(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event(data)}})
			bad := state(uuid.New())
			bad.State = json.RawMessage(data)
			f.refused(eventstore.Append{Stream: "s-1", Events: events(1), State: bad})
			m := message("k")
			m.Data = json.RawMessage(data)
			f.refused(eventstore.Append{Stream: "s-1", Events: events(1), Messages: []eventstore.Message{m}})
		}
	}},
	{"an event without an id or a type is refused", func(_ *testing.T, f *fixture) {
		noID, noType := event(`{}`), event(`{}`)
		noID.ID, noType.Type = uuid.Nil, ""
		f.refused(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{noID}})
		f.refused(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{noType}})
	}},
	{"a message without an id, a type or a key is refused", func(_ *testing.T, f *fixture) {
		for _, spoil := range []func(*eventstore.Message){
			func(m *eventstore.Message) { m.ID = uuid.Nil }, func(m *eventstore.Message) { m.Type = "" }, func(m *eventstore.Message) { m.Key = "" },
		} {
			m := message("k")
			spoil(&m)
			f.refused(eventstore.Append{Stream: "s-1", Events: events(1), Messages: []eventstore.Message{m}})
		}
	}},
	{"a name or metadata that is too long is refused, the longest is not", func(t *testing.T, f *fixture) {
		long, much := strings.Repeat("n", eventstore.MaxNameBytes), strings.Repeat("m", eventstore.MaxMetadataBytes)
		puts := []func(a *eventstore.Append, name, metadata string){
			func(a *eventstore.Append, name, _ string) { a.Events[0].Type = name },
			func(a *eventstore.Append, _, metadata string) { a.Events[0].Metadata.Actor = metadata },
			func(a *eventstore.Append, _, metadata string) { a.Events[0].Metadata.CorrelationID = metadata },
			func(a *eventstore.Append, name, _ string) { a.Messages[0].Type = name },
			func(a *eventstore.Append, name, _ string) { a.Messages[0].Key = name },
			func(a *eventstore.Append, name, _ string) { a.Messages[0].Destination = name },
			func(a *eventstore.Append, name, _ string) { a.Messages[0].Source = name },
			func(a *eventstore.Append, name, _ string) { a.Messages[0].Subject = name },
			func(a *eventstore.Append, name, _ string) { a.Messages[0].Namespace = name },
			func(a *eventstore.Append, _, metadata string) {
				a.Messages[0].Metadata, a.Messages[0].Labels = eventstore.Metadata{}, map[string]string{"": metadata}
			},
			func(a *eventstore.Append, name, _ string) { a.State.Namespace = name },
			func(a *eventstore.Append, name, _ string) { a.State.Name = name },
			func(a *eventstore.Append, name, _ string) { a.State.Phase = name },
		}
		a := func(i int, name, metadata string) eventstore.Append {
			a := eventstore.Append{Stream: fmt.Sprintf("s-%d", i), Events: events(1), Messages: []eventstore.Message{message("k")}, State: state(uuid.New())}
			a.Events[0].Metadata = eventstore.Metadata{}
			puts[i](&a, name, metadata)
			return a
		}
		for i := range puts {
			long := a(i, long+"n", much+"m")
			if err := long.Validate(); err == nil || !strings.Contains(err.Error(), "more than the limit") {
				t.Errorf("%d: %v, want that it is more than the limit", i, err)
			}
			f.refused(long)
		}
		for i := range puts {
			f.append(a(i, long, much))
		}
	}},
	{"a state row without a uid is refused", func(_ *testing.T, f *fixture) {
		f.refused(eventstore.Append{Stream: "s-1", Events: events(1), State: state(uuid.Nil)})
	}},
}
