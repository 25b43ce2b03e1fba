package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// readAll reads one page, which must not be larger than its limit.
func (f *fixture) readAll(from eventstore.Checkpoint, filter eventstore.Filter, limit int) eventstore.Page {
	f.t.Helper()
	page, err := f.ReadAll(f.t.Context(), from, filter, limit)
	if err != nil {
		f.t.Fatalf("reading all events: %v", err)
	}
	if len(page.Events) > max(limit, 0) {
		f.t.Fatalf("a page of %d events, where %d were asked for", len(page.Events), limit)
	}
	return page
}

// follow reads page after page until there is no more.
func (f *fixture) follow(from eventstore.Checkpoint, filter eventstore.Filter, limit int) ([]eventstore.Recorded, eventstore.Checkpoint) {
	f.t.Helper()
	var all []eventstore.Recorded
	for range 10_000 {
		page := f.readAll(from, filter, limit)
		all, from = append(all, page.Events...), page.Next
		if !page.More {
			if page.Behind != 0 {
				f.t.Errorf("at the end it is behind by %d", page.Behind)
			}
			return all, from
		}
	}
	f.t.Fatal("reading does not come to an end")
	return nil, from
}

// fill appends to three streams in turns, and returns everything in the order of the positions.
func (f *fixture) fill(rounds int) []eventstore.Recorded {
	f.t.Helper()
	streams := []string{"order-1", "order-2", "payment-1"}
	for i := range rounds {
		all := events(2)
		all[1].Type = "Ended"
		f.append(eventstore.Append{Stream: streams[i%len(streams)], Expected: eventstore.AnyVersion, Events: all})
	}
	var all []eventstore.Recorded
	for _, stream := range streams {
		all = append(all, f.load(stream, 1, 1000)...)
	}
	slices.SortFunc(all, func(a, b eventstore.Recorded) int { return int(a.Position - b.Position) })
	return all
}

// same compares what was read with what should have been.
func same(t *testing.T, what string, want, got []eventstore.Recorded) {
	t.Helper()
	if len(want) == 0 && len(got) == 0 {
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s:\n%s", what, diff)
	}
}

func only(all []eventstore.Recorded, filter eventstore.Filter) []eventstore.Recorded {
	return slices.DeleteFunc(slices.Clone(all), func(e eventstore.Recorded) bool { return !filter.Matches(&e) })
}

var order = []behaviour{
	{"an empty store has nothing to read", func(t *testing.T, f *fixture) {
		page := f.readAll(eventstore.Checkpoint{}, eventstore.Filter{}, 10)
		if len(page.Events) > 0 || page.More || page.Behind != 0 {
			t.Errorf("%+v", page)
		}
		all := f.fill(2)
		got, _ := f.follow(page.Next, eventstore.Filter{}, 10)
		same(t, "what came afterwards", all, got)
	}},
	{"all events are read in the order of their append", func(t *testing.T, f *fixture) {
		all := f.fill(9)
		got, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 1000)
		same(t, "all", all, got)
	}},
	{"pages of any size join without a gap or a double", func(t *testing.T, f *fixture) {
		all := f.fill(7)
		for limit := 1; limit <= len(all)+1; limit++ {
			got, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, limit)
			same(t, fmt.Sprintf("pages of %d", limit), all, got)
		}
	}},
	{"the largest page is everything", func(t *testing.T, f *fixture) {
		all := f.fill(4)
		for _, limit := range []int{math.MaxInt, math.MaxInt / 20, math.MaxInt32} {
			got, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, limit)
			same(t, fmt.Sprintf("a page of %d", limit), all, got)
		}
	}},
	{"everything about an event comes back to a reader of all", func(t *testing.T, f *fixture) {
		e := event(`{"b":1, "a":"\u0000", "n":1.50}`)
		e.Type, e.SchemaVersion = "Ereignis/ä", 7
		e.Metadata = eventstore.Metadata{CorrelationID: "c", CausationID: "ca", TraceParent: "00-x", Actor: "ada@example.com"}
		f.append(eventstore.Append{Stream: "s-é", Events: []eventstore.Event{e}})
		got, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 10)
		same(t, "the event", f.load("s-é", 1, 1), got)
		if diff := cmp.Diff(e, got[0].Event); diff != "" {
			t.Error(diff)
		}
	}},
	{"what a reader of all changes does not change the store", func(t *testing.T, f *fixture) {
		all := f.fill(1)
		copy(f.readAll(eventstore.Checkpoint{}, eventstore.Filter{}, 10).Events[0].Data, "xxxx")
		got, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 10)
		same(t, "all", all, got)
	}},
	{"a limit below 1 reads nothing and stays where it is", func(t *testing.T, f *fixture) {
		all := f.fill(3)
		at := f.readAll(eventstore.Checkpoint{}, eventstore.Filter{}, 2).Next
		for _, limit := range []int{0, -1, math.MinInt} {
			page := f.readAll(at, eventstore.Filter{}, limit)
			got, _ := f.follow(page.Next, eventstore.Filter{}, 10)
			same(t, fmt.Sprintf("after a limit of %d", limit), all[2:], got)
		}
	}},
	{"a context that is done reads no order", func(t *testing.T, f *fixture) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.ReadAll(ctx, eventstore.Checkpoint{}, eventstore.Filter{}, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	}},
	{"a page says whether there is more and how much at most", func(t *testing.T, f *fixture) {
		all := f.fill(5)
		at, left := eventstore.Checkpoint{}, int64(len(all))
		for left > 0 {
			page := f.readAll(at, eventstore.Filter{}, 3)
			at, left = page.Next, left-int64(len(page.Events))
			if left > 0 && !page.More || page.Behind < left {
				t.Errorf("%d are left, but more %t, behind %d", left, page.More, page.Behind)
			}
		}
	}},
	{"the same checkpoint reads the same again", func(t *testing.T, f *fixture) {
		all := f.fill(6)
		at := f.readAll(eventstore.Checkpoint{}, eventstore.Filter{}, 5).Next
		for range 2 {
			got, _ := f.follow(at, eventstore.Filter{}, 2)
			same(t, "from the fifth on", all[5:], got)
		}
	}},
	{"a checkpoint in the middle of a page goes on exactly there, whichever event it is", func(t *testing.T, f *fixture) {
		all := f.fill(6)
		at := eventstore.Checkpoint{}
		for read := 0; read < len(all); {
			page := f.readAll(at, eventstore.Filter{}, 5)
			for n := range len(page.Events) + 2 {
				got, _ := f.follow(page.After(n), eventstore.Filter{}, 4)
				same(t, fmt.Sprintf("after %d and %d", read, n), all[min(read+n, read+len(page.Events)):], got)
			}
			at, read = page.Next, read+len(page.Events)
		}
	}},
	{"a checkpoint in the middle of a filtered page goes on exactly there", func(t *testing.T, f *fixture) {
		filter := eventstore.Filter{Categories: []string{"order"}, Types: []string{"Ended"}}
		want := only(f.fill(12), filter)
		page := f.readAll(eventstore.Checkpoint{}, filter, len(want)-1)
		for n := range len(page.Events) + 1 {
			got, _ := f.follow(page.After(n), filter, 2)
			same(t, fmt.Sprintf("after %d", n), want[n:], got)
		}
	}},
}

var following = []behaviour{
	{"a reader at the end gets what is appended next, and only that", func(t *testing.T, f *fixture) {
		f.fill(3)
		_, at := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 100)
		for i := range 3 {
			f.append(eventstore.Append{Stream: "late-1", Expected: int64(2 * i), Events: events(2)})
			var got []eventstore.Recorded
			got, at = f.follow(at, eventstore.Filter{}, 100)
			same(t, "the new events", f.load("late-1", int64(2*i)+1, 10), got)
			if again, _ := f.follow(at, eventstore.Filter{}, 100); len(again) > 0 {
				t.Errorf("%d events come again", len(again))
			}
		}
	}},
	{"what is appended while a backlog is read comes after it", func(t *testing.T, f *fixture) {
		all := f.fill(4)
		page := f.readAll(eventstore.Checkpoint{}, eventstore.Filter{}, 3)
		f.append(eventstore.Append{Stream: "late-1", Events: events(2)})
		got, _ := f.follow(page.Next, eventstore.Filter{}, 3)
		same(t, "the rest", append(all[3:], f.load("late-1", 1, 10)...), got)
	}},
	{"losing and repeating appends are not read", func(t *testing.T, f *fixture) {
		a := eventstore.Append{Stream: "s-1", Events: events(2)}
		f.append(a)
		f.append(a)
		f.loses(eventstore.Append{Stream: "s-1", Events: events(1)}, 2)
		if got, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 10); len(got) != 2 {
			t.Errorf("%d events, want 2", len(got))
		}
	}},
	{"a filter lets through its categories", func(t *testing.T, f *fixture) {
		f.filters(eventstore.Filter{Categories: []string{"order"}}, eventstore.Filter{Categories: []string{"payment", "order"}}, eventstore.Filter{Categories: []string{"payment"}})
	}},
	{"a filter lets through its types", func(t *testing.T, f *fixture) {
		f.filters(eventstore.Filter{Types: []string{"Ended"}}, eventstore.Filter{Types: []string{"Happened", "Ended"}})
	}},
	{"a filter of categories and types lets through what is of both", func(t *testing.T, f *fixture) {
		f.filters(eventstore.Filter{Categories: []string{"order"}, Types: []string{"Ended"}}, eventstore.Filter{Categories: []string{"payment", "other"}, Types: []string{"Happened", "Other"}})
	}},
	{"a category ends at the first dash and is compared whole", func(t *testing.T, f *fixture) {
		for _, stream := range []string{"order", "order-1", "order-1-2", "orders-1", "Order-1", "ord%-1", "-1"} {
			f.append(eventstore.Append{Stream: stream, Events: events(1)})
		}
		for category, want := range map[string][]string{"order": {"order", "order-1", "order-1-2"}, "ord": nil, "ord%": {"ord%-1"}, "": {"-1"}} {
			var got []string
			all, _ := f.follow(eventstore.Checkpoint{}, eventstore.Filter{Categories: []string{category}}, 2)
			for i := range all {
				got = append(got, all[i].Stream)
			}
			if !slices.Equal(got, want) {
				t.Errorf("category %q is %q, want %q", category, got, want)
			}
		}
	}},
	{"a filter that nothing passes comes to the end all the same", func(t *testing.T, f *fixture) {
		f.fill(5)
		filter := eventstore.Filter{Categories: []string{"late"}}
		got, at := f.follow(eventstore.Checkpoint{}, filter, 3)
		if len(got) > 0 {
			t.Errorf("%d events", len(got))
		}
		done := f.append(eventstore.Append{Stream: "late-1", Events: events(1)})
		if got, at = f.follow(at, filter, 3); len(got) != 1 || !at.Sees(done.Token) {
			t.Errorf("then %d events; sees the append: %t", len(got), at.Sees(done.Token))
		}
	}},
	{"a checkpoint sees an append no sooner than its events were read, and at the end all", func(t *testing.T, f *fixture) {
		tokens := map[string]eventstore.Token{}
		for i := range 6 {
			stream := fmt.Sprintf("s-%d", i)
			tokens[stream] = f.append(eventstore.Append{Stream: stream, Events: events(2)}).Token
		}
		read, at := map[string]int{}, eventstore.Checkpoint{}
		for more := true; more; {
			for stream, token := range tokens {
				if at.Sees(token) && read[stream] < 2 {
					t.Errorf("it sees the append of %s, of which %d events were read", stream, read[stream])
				}
			}
			page := f.readAll(at, eventstore.Filter{}, 3)
			for i := range page.Events {
				read[page.Events[i].Stream]++
			}
			at, more = page.Next, page.More
		}
		for stream, token := range tokens {
			if !at.Sees(token) {
				t.Errorf("at the end it does not see the append of %s", stream)
			}
		}
		if next := f.append(eventstore.Append{Stream: "s-9", Events: events(1)}).Token; at.Sees(next) {
			t.Error("it sees an append that came later")
		}
	}},
	{"a token and a view are the same after they have been written and read", func(t *testing.T, f *fixture) {
		token := f.append(eventstore.Append{Stream: "s-1", Events: events(1)}).Token
		if got, err := eventstore.ParseToken(token.String()); err != nil || got != token {
			t.Errorf("%v came back as %v, %v", token, got, err)
		}
		_, at := f.follow(eventstore.Checkpoint{}, eventstore.Filter{}, 10)
		view, err := eventstore.ParseView(at.Done.Epoch, at.Done.Snapshot())
		if err != nil || !view.Sees(token) {
			t.Errorf("%v came back as %v, %v", at.Done, view, err)
		}
		at.Done = view
		if got, _ := f.follow(at, eventstore.Filter{}, 10); len(got) > 0 {
			t.Errorf("%d events come again", len(got))
		}
	}},
	{"while many append, a reader gets each event once and every stream in order", func(t *testing.T, f *fixture) {
		const each = 6
		var writing atomic.Int32
		writing.Store(writers - 1)
		versions, seen := map[string]int64{}, map[uuid.UUID]bool{}
		together(t, func(w int) error {
			if w > 0 {
				defer writing.Add(-1)
				for range each {
					all := []eventstore.Append{{Stream: fmt.Sprintf("s-%d", w%8), Expected: eventstore.AnyVersion, Events: events(2)}, {Stream: fmt.Sprintf("o-%d", w), Expected: eventstore.AnyVersion, Events: events(1)}}
					if _, err := f.AppendAll(t.Context(), all); err != nil {
						return err
					}
				}
				return nil
			}
			for at, last := (eventstore.Checkpoint{}), false; ; {
				page, err := f.ReadAll(t.Context(), at, eventstore.Filter{}, 7)
				if err != nil {
					return err
				}
				for _, e := range page.Events {
					if versions[e.Stream]++; e.Version != versions[e.Stream] || seen[e.ID] {
						return fmt.Errorf("%s/%d comes where version %d is due; seen before: %t", e.Stream, e.Version, versions[e.Stream], seen[e.ID])
					}
					seen[e.ID] = true
				}
				at = page.Next
				if last && !page.More {
					return nil
				}
				last = writing.Load() == 0
			}
		})
		if want := (writers - 1) * each * 3; len(seen) != want {
			t.Errorf("%d events were read, want %d", len(seen), want)
		}
	}},
}

// filters reads through filters, with pages of several sizes.
func (f *fixture) filters(filters ...eventstore.Filter) {
	f.t.Helper()
	all := f.fill(12)
	for _, filter := range filters {
		for _, limit := range []int{1, 3, 100} {
			got, _ := f.follow(eventstore.Checkpoint{}, filter, limit)
			same(f.t, fmt.Sprintf("%+v, pages of %d", filter, limit), only(all, filter), got)
		}
	}
}
