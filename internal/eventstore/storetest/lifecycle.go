package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

func (f *fixture) backwards(stream string, from int64, limit int) []int64 {
	f.t.Helper()
	all, err := f.LoadBackwards(f.t.Context(), stream, from, limit)
	if err != nil {
		f.t.Fatalf("loading backwards: %v", err)
	}
	var versions []int64
	for i := range all {
		if all[i].Stream != stream {
			f.t.Errorf("an event of stream %s", all[i].Stream)
		}
		versions = append(versions, all[i].Version)
	}
	return versions
}

var backwards = []behaviour{
	{"a stream is loaded backwards from its end", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(4)})
		f.append(eventstore.Append{Stream: "s-10", Events: events(2)})
		if diff := cmp.Diff([]int64{4, 3, 2, 1}, f.backwards("s-1", eventstore.LastVersion, 10)); diff != "" {
			t.Error(diff)
		}
		forwards := f.load("s-1", 4, 1)
		last, err := f.LoadBackwards(t.Context(), "s-1", eventstore.LastVersion, 1)
		if diff := cmp.Diff(forwards, last); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}},
	{"a stream is loaded backwards from a version and up to a limit", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(9)})
		for _, test := range []struct {
			from  int64
			limit int
			want  []int64
		}{{5, 3, []int64{5, 4, 3}}, {2, 5, []int64{2, 1}}, {99, 2, []int64{9, 8}}, {1, 1, []int64{1}}, {0, 5, nil}, {-1, 5, nil}, {5, 0, nil}, {5, -1, nil}, {3, math.MaxInt, []int64{3, 2, 1}}} {
			if diff := cmp.Diff(test.want, f.backwards("s-1", test.from, test.limit)); diff != "" {
				t.Errorf("from %d up to %d: %s", test.from, test.limit, diff)
			}
		}
	}},
	{"a stream that does not exist has nothing backwards either", func(t *testing.T, f *fixture) {
		if got := f.backwards("s-1", eventstore.LastVersion, 10); len(got) > 0 {
			t.Errorf("versions %v", got)
		}
	}},
}

func (f *fixture) archive(stream string, expected int64) {
	f.t.Helper()
	if err := f.Archive(f.t.Context(), stream, expected); err != nil {
		f.t.Fatalf("archiving: %v", err)
	}
}

// ended does an append that has to find its stream archived, and to leave no trace.
func (f *fixture) ended(a eventstore.Append) {
	f.t.Helper()
	messages := len(f.messages())
	if _, err := f.Append(f.t.Context(), a); !errors.Is(err, eventstore.ErrArchived) {
		f.t.Errorf("error %v, want ErrArchived", err)
	}
	if n := len(f.messages()); n != messages {
		f.t.Errorf("it left %d messages", n-messages)
	}
}

var archiving = []behaviour{
	{"an archived stream takes no more events", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(2)})
		f.archive("s-1", 2)
		for _, expected := range []int64{2, eventstore.NoStream, eventstore.AnyVersion, 7} {
			f.ended(eventstore.Append{Stream: "s-1", Expected: expected, Events: events(1)})
			f.ended(whole("s-1", expected, 1))
		}
		if v := f.version("s-1"); v != 2 {
			t.Errorf("version %d", v)
		}
	}},
	{"an archived stream stays readable", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3)})
		f.archive("s-1", 3)
		all, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 10)
		if f.version("s-1") != 3 || len(f.load("s-1", 1, 10)) != 3 || len(f.backwards("s-1", eventstore.LastVersion, 10)) != 3 || len(all) != 3 {
			t.Errorf("version %d, %d events of all", f.version("s-1"), len(all))
		}
	}},
	{"archiving expects a version", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3)})
		for _, expected := range []int64{0, 2, 4} {
			var wrong *eventstore.WrongVersionError
			if err := f.Archive(t.Context(), "s-1", expected); !errors.As(err, &wrong) || *wrong != (eventstore.WrongVersionError{Stream: "s-1", Expected: expected, Actual: 3}) {
				t.Errorf("expecting %d: error %v", expected, err)
			}
		}
		f.append(eventstore.Append{Stream: "s-1", Expected: 3, Events: events(1)})
	}},
	{"a stream that does not exist is not archived", func(t *testing.T, f *fixture) {
		if err := f.Archive(t.Context(), "s-1", 0); !errors.Is(err, eventstore.ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
	}},
	{"archiving again is fine", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
		f.archive("s-1", 1)
		f.archive("s-1", 1)
		f.ended(eventstore.Append{Stream: "s-1", Expected: 1, Events: events(1)})
	}},
	{"the last events of an archived stream can be repeated", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
		exact, lax := whole("s-1", 1, 2), whole("s-1", eventstore.AnyVersion, 1)
		f.append(exact)
		f.append(lax)
		f.archive("s-1", 4)
		f.repeats(exact, 3)
		f.repeats(lax, 4)
	}},
	{"archiving one stream leaves the others", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
		f.append(eventstore.Append{Stream: "s-2", Events: events(1)})
		f.archive("s-1", 1)
		f.append(eventstore.Append{Stream: "s-2", Expected: 1, Events: events(1)})
	}},
}

func snapshot(stream string, version int64, schema int, data string) eventstore.Snapshot {
	return eventstore.Snapshot{Stream: stream, Version: version, SchemaVersion: schema, Data: json.RawMessage(data)}
}

// saves saves a snapshot and says which one must be there then.
func (f *fixture) saves(s, want eventstore.Snapshot) {
	f.t.Helper()
	if err := f.SaveSnapshot(f.t.Context(), s); err != nil {
		f.t.Fatalf("saving a snapshot: %v", err)
	}
	got, err := f.LoadSnapshot(f.t.Context(), s.Stream)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		f.t.Errorf("after saving %d of schema %d: %v\n%s", s.Version, s.SchemaVersion, err, diff)
	}
}

var snapshots = []behaviour{
	{"a snapshot comes back byte for byte", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3)})
		s := snapshot("s-1", 3, 2, `{"b":1, "a":"\u0000", "n":1.50}`)
		f.saves(s, s)
	}},
	{"a stream without a snapshot has none", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(3)})
		for _, stream := range []string{"s-1", "s-2"} {
			if _, err := f.LoadSnapshot(t.Context(), stream); !errors.Is(err, eventstore.ErrNotFound) {
				t.Errorf("%s: error %v, want ErrNotFound", stream, err)
			}
		}
	}},
	{"a later snapshot takes the place of the one before", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(5)})
		for version := range int64(4) {
			s := snapshot("s-1", version+1, 1, fmt.Sprintf(`{"at":%d}`, version))
			f.saves(s, s)
		}
	}},
	{"an older snapshot does not take the place of a later one", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(5)})
		later := snapshot("s-1", 4, 1, `{"later":true}`)
		f.saves(later, later)
		f.saves(snapshot("s-1", 3, 1, `{}`), later)
		f.saves(snapshot("s-1", 4, 1, `{}`), later)
	}},
	{"a snapshot of a newer schema takes the place of a later one, and keeps it from an older schema", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(5)})
		old, newer := snapshot("s-1", 5, 1, `{"schema":1}`), snapshot("s-1", 2, 2, `{"schema":2}`)
		f.saves(old, old)
		f.saves(newer, newer)
		f.saves(old, newer)
	}},
	{"a snapshot that is later than its stream is replaced by any", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(5)})
		early, good := snapshot("s-1", 9, 3, `{"early":true}`), snapshot("s-1", 5, 1, `{"good":true}`)
		f.saves(early, early)
		f.saves(good, good)
	}},
	{"snapshots of different streams are independent", func(_ *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(2)})
		f.append(eventstore.Append{Stream: "s-2", Events: events(2)})
		first, second := snapshot("s-1", 2, 1, `1`), snapshot("s-2", 1, 1, `2`)
		f.saves(first, first)
		f.saves(second, second)
		f.saves(first, first)
	}},
	{"a snapshot that is not valid is refused", func(t *testing.T, f *fixture) {
		for _, s := range []eventstore.Snapshot{
			snapshot("", 1, 1, `{}`), snapshot("s\x00", 1, 1, `{}`), snapshot("s-1", 0, 1, `{}`), snapshot("s-1", 1, 0, `{}`),
			snapshot("s-1", 1, math.MaxInt32+1, `{}`), snapshot("s-1", 1, 1, ``), snapshot("s-1", 1, 1, `{`), snapshot("s-1", 1, 1, "\"\xff\""),
		} {
			if err := f.SaveSnapshot(t.Context(), s); !errors.Is(err, eventstore.ErrInvalid) {
				t.Errorf("%+v: error %v, want ErrInvalid", s, err)
			}
		}
		if _, err := f.LoadSnapshot(t.Context(), "s-1"); !errors.Is(err, eventstore.ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
	}},
	{"what caller and reader change does not change a snapshot", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
		s := snapshot("s-1", 1, 1, `{"a":1}`)
		f.saves(s, s)
		copy(s.Data, "xxxx")
		got, err := f.LoadSnapshot(t.Context(), "s-1")
		if err != nil {
			t.Fatal(err)
		}
		copy(got.Data, "yyyy")
		if got, err = f.LoadSnapshot(t.Context(), "s-1"); err != nil || string(got.Data) != `{"a":1}` {
			t.Errorf("%s, %v", got.Data, err)
		}
	}},
	{"a context that is done archives, saves and removes nothing", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "s-1", Events: events(1)})
		uid := f.finish()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, removed := f.RemoveFinished(ctx, time.Now().Add(time.Hour), 1)
		_, loaded := f.LoadSnapshot(ctx, "s-1")
		for _, err := range []error{f.Archive(ctx, "s-1", 1), f.SaveSnapshot(ctx, snapshot("s-1", 1, 1, `{}`)), removed, loaded} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want context.Canceled", err)
			}
		}
		f.append(eventstore.Append{Stream: "s-1", Expected: 1, Events: events(1)})
		if _, err := f.SagaState(t.Context(), uid); err != nil {
			t.Error(err)
		}
	}},
}

// finish makes a saga that is finished, and returns its uid.
func (f *fixture) finish() uuid.UUID {
	f.t.Helper()
	s := state(uuid.New())
	f.append(eventstore.Append{Stream: stream(s.UID), Events: events(1), State: s})
	done := state(s.UID)
	done.Phase, done.Finished = "Completed", true
	f.append(eventstore.Append{Stream: stream(s.UID), Expected: 1, Events: events(2), State: done})
	return s.UID
}

func stream(uid uuid.UUID) string { return "saga-" + uid.String() }

// finishedAt is when a saga finished, once the clock has gone on from there.
func (f *fixture) finishedAt(uid uuid.UUID) time.Time {
	f.t.Helper()
	at := f.load(stream(uid), 3, 1)[0].RecordedAt
	for !time.Now().After(at.Add(50 * time.Microsecond)) {
	}
	return at
}

// removes removes finished sagas and says how many these must be.
func (f *fixture) removes(before time.Time, limit, want int) {
	f.t.Helper()
	if got, err := f.RemoveFinished(f.t.Context(), before, limit); err != nil || got != want {
		f.t.Errorf("removed %d, %v, want %d", got, err, want)
	}
}

// isThere reports whether a saga has its state row and all of its events.
func (f *fixture) isThere(uid uuid.UUID) bool {
	f.t.Helper()
	_, err := f.SagaState(f.t.Context(), uid)
	if err != nil && !errors.Is(err, eventstore.ErrNotFound) {
		f.t.Fatal(err)
	}
	n := len(f.load(stream(uid), 1, 10))
	if (err == nil) != (n > 0) {
		f.t.Errorf("saga %s: state %v, but %d events", uid, err, n)
	}
	return err == nil
}

var retention = []behaviour{
	{"a saga that finished before the time is removed, one that finished at it or later is not", func(t *testing.T, f *fixture) {
		first := f.finish()
		at := f.finishedAt(first)
		second := f.finish()
		f.removes(at, 10, 0)
		f.removes(at.Add(time.Microsecond), 10, 1)
		if f.isThere(first) || !f.isThere(second) {
			t.Errorf("the first is there: %t, the second: %t", f.isThere(first), f.isThere(second))
		}
	}},
	{"a saga that has not finished is not removed", func(t *testing.T, f *fixture) {
		s := state(uuid.New())
		f.append(eventstore.Append{Stream: stream(s.UID), Events: events(3), State: s})
		f.removes(time.Now().Add(time.Hour), 10, 0)
		if !f.isThere(s.UID) {
			t.Error("it is gone")
		}
	}},
	{"a saga that finished and moves again is not removed", func(t *testing.T, f *fixture) {
		uid := f.finish()
		f.append(eventstore.Append{Stream: stream(uid), Expected: 3, Events: events(1), State: state(uid)})
		f.removes(time.Now().Add(time.Hour), 10, 0)
		if !f.isThere(uid) {
			t.Error("it is gone")
		}
	}},
	{"what a finished saga still says does not make it finish later", func(t *testing.T, f *fixture) {
		uid := f.finish()
		at := f.finishedAt(uid)
		again := state(uid)
		again.Phase, again.Finished = "Completed", true
		f.append(eventstore.Append{Stream: stream(uid), Expected: 3, Events: events(1), State: again})
		f.removes(at.Add(time.Microsecond), 10, 1)
	}},
	{"at most so many sagas are removed at once, those first that finished first", func(t *testing.T, f *fixture) {
		var uids []uuid.UUID
		for range 5 {
			uids = append(uids, f.finish())
			f.finishedAt(uids[len(uids)-1])
		}
		before, left := time.Now().Add(time.Hour), 5
		for _, limit := range []int{0, -1, 2, 2, 2, 2} {
			n := min(max(limit, 0), left)
			f.removes(before, limit, n)
			left -= n
			for i, uid := range uids {
				if got, want := f.isThere(uid), i >= len(uids)-left; got != want {
					t.Errorf("with %d left saga %d is there: %t", left, i, got)
				}
			}
		}
	}},
	{"a removed saga leaves no events, no state and no snapshot", func(t *testing.T, f *fixture) {
		uid := f.finish()
		f.saves(snapshot(stream(uid), 3, 1, `{}`), snapshot(stream(uid), 3, 1, `{}`))
		f.removes(time.Now().Add(time.Hour), 10, 1)
		_, noState := f.SagaState(t.Context(), uid)
		_, noSnapshot := f.LoadSnapshot(t.Context(), stream(uid))
		all, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 10)
		if !errors.Is(noState, eventstore.ErrNotFound) || !errors.Is(noSnapshot, eventstore.ErrNotFound) || len(f.load(stream(uid), 1, 10))+len(f.backwards(stream(uid), 10, 10))+len(all) > 0 {
			t.Errorf("state %v, snapshot %v, %d events of all", noState, noSnapshot, len(all))
		}
	}},
	{"a removed saga does not begin again", func(_ *testing.T, f *fixture) {
		uid := f.finish()
		f.removes(time.Now().Add(time.Hour), 10, 1)
		for _, expected := range []int64{eventstore.NoStream, eventstore.AnyVersion, 3} {
			f.ended(eventstore.Append{Stream: stream(uid), Expected: expected, Events: events(1)})
			f.ended(whole(stream(uid), expected, 1))
		}
		f.removes(time.Now().Add(time.Hour), 10, 0)
	}},
	{"removing sagas leaves the events of others, and readers where they are", func(t *testing.T, f *fixture) {
		f.append(eventstore.Append{Stream: "saga", Events: events(1)})
		f.finish()
		all := f.fill(3)
		f.finish()
		f.append(eventstore.Append{Stream: "saga-x", Events: events(1)})
		page := f.readAll(eventstore.Checkpoint{}, eventstore.Filter{}, 6)
		f.removes(time.Now().Add(time.Hour), 10, 2)
		got, at := f.follow(page.Next, eventstore.Filter{}, 2)
		same(t, "the rest", append(all[2:], f.load("saga-x", 1, 10)...), got)
		if got, _ = f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 100); len(got) != len(all)+2 {
			t.Errorf("%d events from the beginning, want %d", len(got), len(all)+2)
		}
		done := f.append(eventstore.Append{Stream: "saga-x", Expected: 1, Events: events(1)})
		if got, at = f.follow(at, eventstore.Filter{}, 10); len(got) != 1 || !at.Sees(done.Token) {
			t.Errorf("then %d events", len(got))
		}
	}},
}
