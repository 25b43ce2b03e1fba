package storetest

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// values are behaviours about what a store keeps as it is and what it refuses to keep.
var values = []behaviour{
	{"data that is not UTF-8 is refused", func(_ *testing.T, f *fixture) {
		for _, data := range []string{"\"\xff\"", "\"\xed\xa0\x80\"", "{\"a\":\"\xc3\"}"} {
			f.refused(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event(data)}})
			bad := state(uuid.New())
			bad.State = json.RawMessage(data)
			f.refused(eventstore.Append{Stream: "s-1", Events: events(1), State: bad})
			m := message("k")
			m.Data = json.RawMessage(data)
			f.refused(eventstore.Append{Stream: "s-1", Events: events(1), Messages: []eventstore.Message{m}})
		}
	}},
	{"metadata that is not UTF-8 is refused", func(_ *testing.T, f *fixture) {
		for _, bad := range []eventstore.Metadata{{CorrelationID: "\xff"}, {CausationID: "\xff"}, {TraceParent: "\xff"}, {Actor: "\xff"}} {
			e, m := event(`{}`), message("k")
			e.Metadata, m.Metadata = bad, bad
			f.refused(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{e}})
			f.refused(eventstore.Append{Stream: "s-1", Events: events(1), Messages: []eventstore.Message{m}})
		}
	}},
	{"any other text in metadata comes back as it is", func(t *testing.T, f *fixture) {
		e := event(`{}`)
		e.Metadata = eventstore.Metadata{CorrelationID: "a\x00b", CausationID: `"\u0000"`, TraceParent: "<é&漢>", Actor: "\u2028🚀\n"}
		f.append(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{e}})
		if diff := cmp.Diff(e, f.load("s-1", 1, 1)[0].Event); diff != "" {
			t.Error(diff)
		}
	}},
	{"a schema version below 1 or beyond 32 bits is refused, the largest is not", func(t *testing.T, f *fixture) {
		e := event(`{}`)
		for _, version := range []int{-1, 0, math.MaxInt32 + 1} {
			e.SchemaVersion = version
			f.refused(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{e}})
		}
		e.SchemaVersion = math.MaxInt32
		f.append(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{e}})
		if got := f.load("s-1", 1, 1)[0].SchemaVersion; got != math.MaxInt32 {
			t.Errorf("it came back as %d", got)
		}
	}},
	{"the deepest JSON comes back", func(t *testing.T, f *fixture) {
		const depth = 9_000 // a little less than what is valid JSON to Go
		data := strings.Repeat(`{"a":[`, depth/2) + strings.Repeat(`]}`, depth/2)
		f.append(eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event(data)}})
		if got := string(f.load("s-1", 1, 1)[0].Data); got != data {
			t.Errorf("%d bytes came back as %d", len(data), len(got))
		}
	}},
	{"too many messages are refused, as many as allowed are not", func(t *testing.T, f *fixture) {
		all := make([]eventstore.Message, eventstore.MaxMessagesPerAppend+1)
		for i := range all {
			all[i] = message("k")
		}
		f.refused(eventstore.Append{Stream: "s-1", Events: events(1), Messages: all})
		f.append(eventstore.Append{Stream: "s-1", Events: events(1), Messages: all[1:]})
		if got := len(f.messages()); got != eventstore.MaxMessagesPerAppend {
			t.Errorf("%d messages", got)
		}
	}},
	{"an append that is too large in all is refused", func(t *testing.T, f *fixture) {
		data := `"` + strings.Repeat("x", eventstore.MaxEventBytes-2) + `"`
		a := eventstore.Append{Stream: "s-1"}
		for range eventstore.MaxAppendBytes / eventstore.MaxEventBytes {
			a.Events = append(a.Events, event(data))
		}
		f.refused(a) // its names count too
		last := &a.Events[len(a.Events)-1]
		last.Data = last.Data[:len(last.Data)-1-(a.Size()-eventstore.MaxAppendBytes)]
		last.Data = append(last.Data[:len(last.Data):len(last.Data)], '"')
		if err := a.Validate(); err != nil || a.Size() != eventstore.MaxAppendBytes {
			t.Fatalf("the largest, of %d bytes, is refused: %v", a.Size(), err)
		}
		last.Metadata.Actor = "x"
		f.refused(a)
		last.Metadata.Actor, a.State = "", state(uuid.New())
		f.refused(a)
	}},
	{"a limit below 1 reads nothing, the largest everything", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3), State: state(uuid.New()), Messages: []eventstore.Message{message("k")}})
		for limit, want := range map[int]int{math.MinInt: 0, -1: 0, 0: 0, math.MaxInt: 1} {
			m, err := f.Messages(t.Context(), 0, limit)
			if err != nil {
				t.Fatal(err)
			}
			if e, s := len(f.load("s-1", 3, limit)), len(f.unfinished(uuid.Nil, limit)); e != want || s != want || len(m) != want {
				t.Errorf("limit %d: %d events, %d states, %d messages, want %d of each", limit, e, s, len(m), want)
			}
		}
	}},
	{"a version below 1 loads from the first event on", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3)})
		for _, from := range []int64{math.MinInt64, -1, 0} {
			if got := f.load("s-1", from, 2); len(got) != 2 || got[0].Version != 1 {
				t.Errorf("from %d: %d events", from, len(got))
			}
		}
	}},
}
