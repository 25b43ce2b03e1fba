package storetest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// whole is an append with everything that an append can bring.
func whole(stream string, expected int64, n int) eventstore.Append {
	return eventstore.Append{Stream: stream, Expected: expected, Events: events(n), State: state(uuid.New()), Messages: []eventstore.Message{message("k")}}
}

// repeats does an append that the store must recognise as done already, up to a version, and that must change nothing.
func (f *fixture) repeats(a eventstore.Append, version int64) {
	f.t.Helper()
	at, messages, count := f.version(a.Stream), len(f.messages()), len(f.load(a.Stream, 1, 1000))
	if got := f.append(a); !got.Repeated || got.Version != version {
		f.t.Errorf("%+v, want it repeated up to version %d", got, version)
	}
	if v, m, e := f.version(a.Stream), len(f.messages()), len(f.load(a.Stream, 1, 1000)); v != at || m != messages || e != count {
		f.t.Errorf("repeating made version %d, %d messages and %d events of %d, %d and %d", v, m, e, at, messages, count)
	}
}

var repetition = []behaviour{
	{"the append that makes a stream can be repeated", func(_ *testing.T, f *fixture) {
		for i, expected := range []int64{eventstore.NoStream, eventstore.AnyVersion} {
			a := whole(fmt.Sprintf("s-%d", i), expected, 3)
			f.append(a)
			f.repeats(a, 3)
			f.repeats(a, 3)
		}
	}},
	{"an append at an exact version can be repeated", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(2)})
		a := whole("s-1", 2, 2)
		f.append(a)
		f.repeats(a, 4)
		plain := eventstore.Append{Stream: "s-1", Expected: 4, Events: events(1)}
		f.append(plain)
		f.repeats(plain, 5)
	}},
	{"an append at any version can be repeated", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(2)})
		a := whole("s-1", eventstore.AnyVersion, 2)
		f.append(a)
		f.repeats(a, 4)
	}},
	{"an append can be repeated after other events have followed, and comes to its own version", func(_ *testing.T, f *fixture) {
		first := whole("s-1", eventstore.NoStream, 2)
		second := whole("s-1", 2, 2)
		third := whole("s-1", eventstore.AnyVersion, 2)
		f.append(first)
		f.append(second)
		f.append(third)
		f.append(eventstore.Append{Stream: "s-1", Expected: 6, Events: events(1)})
		f.repeats(first, 2)
		f.repeats(second, 4)
		f.repeats(third, 6)
	}},
	{"repeating an append leaves the state row that came later", func(t *testing.T, f *fixture) {
		a := whole("s-1", eventstore.NoStream, 1)
		f.append(a)
		later := state(a.State.UID)
		later.Phase = "Completed"
		f.append(eventstore.Append{Stream: "s-1", Expected: 1, Events: events(1), State: later})
		f.repeats(a, 1)
		if s, err := f.SagaState(t.Context(), a.State.UID); err != nil || s.Phase != "Completed" || s.Version != 2 {
			t.Errorf("the state is %+v, %v", s, err)
		}
	}},
	{"a part of an append that was done counts as repeated where it hangs together", func(_ *testing.T, f *fixture) {
		all := events(5)
		f.append(eventstore.Append{Stream: "s-1", Events: all})
		f.repeats(eventstore.Append{Stream: "s-1", Expected: 1, Events: all[1:4]}, 4)
	}},
	{"a repeated append says whose turn its reader has to wait for", func(t *testing.T, f *fixture) {
		a := whole("s-1", eventstore.NoStream, 2)
		f.append(a)
		again := f.append(a)
		got, at := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 10)
		if len(got) != 2 || !at.Sees(again.Token) {
			t.Errorf("%d events; the reader sees the repetition: %t", len(got), at.Sees(again.Token))
		}
	}},
	{"events that another stream has are refused at any version and where there is no stream", func(_ *testing.T, f *fixture) {
		a := eventstore.Append{Stream: "s-1", Events: events(2)}
		f.append(a)
		for _, expected := range []int64{eventstore.NoStream, eventstore.AnyVersion} {
			f.leavesAlone("s-2", func() { f.refused(eventstore.Append{Stream: "s-2", Expected: expected, Events: a.Events}) })
		}
	}},
	{"an append that is known in part is refused", func(_ *testing.T, f *fixture) {
		known := events(2)
		f.append(eventstore.Append{Stream: "s-1", Events: known})
		for name, bad := range map[string][]eventstore.Event{
			"more behind":  append(slices.Clone(known), event(`{}`)),
			"more before":  append(events(1), known...),
			"more between": {known[0], event(`{}`), known[1]},
		} {
			for _, expected := range []int64{2, eventstore.AnyVersion} {
				f.leavesAlone("s-1", func() { f.refused(eventstore.Append{Stream: "s-1", Expected: expected, Events: bad}) })
			}
			f.leavesAlone("s-1", func() {
				if got, err := f.Append(f.t.Context(), eventstore.Append{Stream: "s-1", Events: bad}); err == nil {
					f.t.Errorf("%s: %+v, want an error", name, got)
				}
			})
		}
	}},
	{"known events in another order are refused", func(_ *testing.T, f *fixture) {
		known := events(3)
		f.append(eventstore.Append{Stream: "s-1", Events: known})
		turned := []eventstore.Event{known[1], known[0], known[2]}
		for _, expected := range []int64{3, eventstore.AnyVersion} {
			f.leavesAlone("s-1", func() { f.refused(eventstore.Append{Stream: "s-1", Expected: expected, Events: turned}) })
		}
		f.leavesAlone("s-1", func() { f.loses(eventstore.Append{Stream: "s-1", Events: turned}, 3) })
	}},
	{"known events with others between them are refused", func(_ *testing.T, f *fixture) {
		known := events(3)
		f.append(eventstore.Append{Stream: "s-1", Events: known})
		f.leavesAlone("s-1", func() {
			f.refused(eventstore.Append{Stream: "s-1", Expected: eventstore.AnyVersion, Events: []eventstore.Event{known[0], known[2]}})
		})
	}},
	{"of many that do the same append one does it, and the others are told that it was done", func(t *testing.T, f *fixture) {
		for _, expected := range []int64{eventstore.NoStream, eventstore.AnyVersion} {
			a := whole(fmt.Sprintf("s-%d", -expected), expected, 2)
			before := len(f.messages())
			made := make([]bool, writers)
			together(t, func(w int) error {
				got, err := f.Append(t.Context(), a)
				if err == nil && got.Version != 2 {
					err = fmt.Errorf("it came to version %d", got.Version)
				}
				made[w] = !got.Repeated
				return err
			})
			if n := len(slices.DeleteFunc(made, func(m bool) bool { return !m })); n != 1 || f.version(a.Stream) != 2 || len(f.messages()) != before+1 {
				t.Errorf("%d did it; version %d; %d messages more", n, f.version(a.Stream), len(f.messages())-before)
			}
		}
	}},
}

// leavesAlone does something that must not change a stream.
func (f *fixture) leavesAlone(stream string, do func()) {
	f.t.Helper()
	before := f.version(stream)
	do()
	if v, n := f.version(stream), len(f.load(stream, 1, 1000)); v != before || int64(n) != before {
		f.t.Errorf("stream %s went from version %d to %d, with %d events", stream, before, v, n)
	}
}

var several = []behaviour{
	{"appends to several streams are committed together", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-2", Events: events(1)})
		all := []eventstore.Append{whole("s-1", eventstore.NoStream, 2), whole("s-2", 1, 3), whole("s-3", eventstore.AnyVersion, 1)}
		done := f.appendAll(all)
		for i, want := range []int64{2, 4, 1} {
			s, err := f.SagaState(t.Context(), all[i].State.UID)
			if done[i].Version != want || f.version(all[i].Stream) != want || err != nil || s.Version != want || done[i].Token != done[0].Token {
				t.Errorf("append %d: %+v; the stream is at %d, its state at %d, %v; want %d", i, done[i], f.version(all[i].Stream), s.Version, err, want)
			}
		}
		if n := len(f.messages()); n != 3 {
			t.Errorf("%d messages", n)
		}
	}},
	{"when one of several loses, none is appended, and the error names the stream", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-2", Events: events(3)})
		all := []eventstore.Append{whole("s-3", eventstore.NoStream, 1), whole("s-2", 1, 1), whole("s-1", eventstore.AnyVersion, 1)}
		_, err := f.AppendAll(t.Context(), all)
		var wrong *eventstore.WrongVersionError
		if !errors.As(err, &wrong) || *wrong != (eventstore.WrongVersionError{Stream: "s-2", Expected: 1, Actual: 3}) {
			t.Errorf("error %v, want that of s-2 at 3", err)
		}
		if f.version("s-1")+f.version("s-3") != 0 || f.version("s-2") != 3 || len(f.messages()) > 0 || len(f.unfinished(uuid.Nil, 10)) > 0 {
			t.Error("a part of it was appended")
		}
	}},
	{"when one of several is archived, none is appended", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-2", Events: events(1)})
		f.archive("s-2", 1)
		if _, err := f.AppendAll(t.Context(), []eventstore.Append{whole("s-1", 0, 1), whole("s-2", 1, 1)}); !errors.Is(err, eventstore.ErrArchived) {
			t.Errorf("error %v, want ErrArchived", err)
		}
		if f.version("s-1") != 0 || len(f.messages()) > 0 {
			t.Error("a part of it was appended")
		}
	}},
	{"when one of several brings a known event, none is appended", func(_ *testing.T, f *fixture) {
		known := events(1)
		f.append(eventstore.Append{Stream: "s-2", Events: known})
		f.allRefused([]eventstore.Append{whole("s-1", 0, 1), {Stream: "s-3", Events: known}})
		twice := events(1)
		f.allRefused([]eventstore.Append{{Stream: "s-1", Events: twice}, {Stream: "s-3", Events: twice}})
	}},
	{"several appends get their positions in the order given", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "m-1", Events: events(1)})
		order := []string{"z-1", "a-1", "m-1", "b-1"}
		all := make([]eventstore.Append, len(order))
		for i, stream := range order {
			all[i] = eventstore.Append{Stream: stream, Expected: eventstore.AnyVersion, Events: events(2)}
		}
		f.appendAll(all)
		var last int64
		for _, stream := range order {
			for _, e := range f.load(stream, 1, 10) {
				if stream == "m-1" && e.Version == 1 {
					continue
				}
				if e.Position <= last {
					t.Errorf("%s/%d has position %d after %d", stream, e.Version, e.Position, last)
				}
				last = e.Position
			}
		}
	}},
	{"several appends repeated as a whole change nothing", func(t *testing.T, f *fixture) {
		all := []eventstore.Append{whole("s-2", eventstore.NoStream, 2), whole("s-1", eventstore.AnyVersion, 1)}
		f.appendAll(all)
		f.append(eventstore.Append{Stream: "s-1", Expected: 1, Events: events(1)})
		done := f.appendAll(all)
		if !done[0].Repeated || done[0].Version != 2 || !done[1].Repeated || done[1].Version != 1 || len(f.messages()) != 2 || f.version("s-1") != 2 || f.version("s-2") != 2 {
			t.Errorf("%+v; %d messages", done, len(f.messages()))
		}
	}},
	{"of several appends of which one was done already the others are done", func(t *testing.T, f *fixture) {
		first := whole("s-1", eventstore.NoStream, 2)
		f.append(first)
		done := f.appendAll([]eventstore.Append{whole("s-2", eventstore.NoStream, 1), first})
		if done[0].Repeated || done[0].Version != 1 || !done[1].Repeated || done[1].Version != 2 || len(f.messages()) != 2 {
			t.Errorf("%+v; %d messages", done, len(f.messages()))
		}
	}},
	{"a stream named twice in several appends is refused", func(_ *testing.T, f *fixture) {
		f.allRefused([]eventstore.Append{{Stream: "s-1", Events: events(1)}, {Stream: "s-1", Expected: 1, Events: events(1)}})
	}},
	{"no appends at all, and an invalid one among several, are refused", func(_ *testing.T, f *fixture) {
		f.allRefused(nil)
		f.allRefused([]eventstore.Append{{Stream: "s-1", Events: events(1)}, {Stream: "s-3"}})
	}},
	{"too many appends at once are refused, as many as allowed are not", func(_ *testing.T, f *fixture) {
		all := make([]eventstore.Append, eventstore.MaxStreamsPerAppend+1)
		for i := range all {
			all[i] = eventstore.Append{Stream: fmt.Sprintf("s-%d", i+1), Events: events(1)}
		}
		f.allRefused(all)
		f.appendAll(all[1:])
	}},
	{"several appends that are too large in all are refused", func(_ *testing.T, f *fixture) {
		var all []eventstore.Append
		for i := range eventstore.MaxAppendBytes/eventstore.MaxEventBytes + 1 {
			data := make([]byte, eventstore.MaxEventBytes)
			for at := range data {
				data[at] = ' '
			}
			data[0] = '1'
			all = append(all, eventstore.Append{Stream: fmt.Sprintf("s-%d", i+1), Events: []eventstore.Event{event(string(data))}})
		}
		f.allRefused(all)
	}},
	{"many that append to the same streams in different orders do not get stuck", func(t *testing.T, f *fixture) {
		streams := []string{"s-1", "s-2", "s-3", "s-4"}
		together(t, func(w int) error {
			for i := range 3 {
				var all []eventstore.Append
				for at := range streams {
					all = append(all, eventstore.Append{Stream: streams[(at*(1+2*(w%2))+w+i)%len(streams)], Expected: eventstore.AnyVersion, Events: events(1)})
				}
				if _, err := f.AppendAll(t.Context(), all); err != nil {
					return err
				}
			}
			return nil
		})
		for _, stream := range streams {
			if v := f.version(stream); v != 3*writers {
				t.Errorf("%s is at version %d, want %d", stream, v, 3*writers)
			}
		}
	}},
}

func (f *fixture) appendAll(all []eventstore.Append) []eventstore.Appended {
	f.t.Helper()
	done, err := f.AppendAll(f.t.Context(), all)
	if err != nil || len(done) != len(all) {
		f.t.Fatalf("appending to %d streams: %d done, %v", len(all), len(done), err)
	}
	return done
}

// allRefused does appends that have to be refused as invalid, and to leave neither s-1 nor s-3.
func (f *fixture) allRefused(all []eventstore.Append) {
	f.t.Helper()
	if _, err := f.AppendAll(f.t.Context(), all); !errors.Is(err, eventstore.ErrInvalid) {
		f.t.Errorf("error %v, want ErrInvalid", err)
	}
	if f.version("s-1")+f.version("s-3") != 0 || len(f.messages()) > 0 {
		f.t.Error("a part of it was appended")
	}
}
