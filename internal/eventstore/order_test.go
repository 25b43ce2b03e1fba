package eventstore_test

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

func token(epoch int32, transaction uint64) eventstore.Token {
	return eventstore.Token{Epoch: epoch, Transaction: transaction}
}

func TestAViewSeesWhatWasCommittedInIt(t *testing.T) {
	t.Parallel()
	v := eventstore.View{Epoch: 2, Min: 10, Max: 20, Running: []uint64{10, 12, 15}}
	for _, test := range []struct {
		name  string
		token eventstore.Token
		want  bool
	}{
		{"long before", token(2, 3), true},
		{"the last before the first that was running", token(2, 9), true},
		{"the first that was running", token(2, 10), false},
		{"ended between running ones", token(2, 11), true},
		{"running", token(2, 12), false},
		{"the last that was running", token(2, 15), false},
		{"the last that had ended", token(2, 19), true},
		{"the first that had not begun", token(2, 20), false},
		{"far beyond", token(2, math.MaxUint64), false},
		{"of an earlier cluster, whatever its number", token(1, math.MaxUint64), true},
		{"of a later cluster, whatever its number", token(3, 1), false},
	} {
		if got := v.Sees(test.token); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

func TestTheZeroViewSeesNothing(t *testing.T) {
	t.Parallel()
	for _, at := range []eventstore.Token{{Epoch: 1, Transaction: 3}, {Epoch: 1}, {Transaction: 0}} {
		if (eventstore.View{}).Sees(at) || (eventstore.Checkpoint{}).Sees(at) {
			t.Errorf("it sees %v", at)
		}
	}
}

func TestAViewIsWrittenAsPostgreSQLDoesAndReadBack(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"1:1:", "10:20:", "10:20:10", "10:20:10,12,19", "18446744073709551614:18446744073709551615:18446744073709551614"} {
		v, err := eventstore.ParseView(7, text)
		if err != nil || v.Epoch != 7 || v.Snapshot() != text {
			t.Errorf("%q came back as %q of epoch %d, %v", text, v.Snapshot(), v.Epoch, err)
		}
	}
	if got := (eventstore.View{}).Snapshot(); got != "1:1:" { // PostgreSQL has no transaction 0
		t.Errorf("the zero view is written as %q", got)
	}
}

func TestWhatIsNoSnapshotIsNotAView(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", ":", "::", "10", "10:20", "a:20:", "10:b:", "-1:20:", "20:10:", "10:20:x", "10:20:12,", "10:20:,12", "10:20:12 ,13", "10:20:9", "10:20:20", "10:20:15,12", "10:20:12,12",
		"10:20:12:13", "18446744073709551616:1:", " 10:20:", "10:20:\n", "0:0:", "0:20:",
	} {
		if v, err := eventstore.ParseView(1, text); err == nil {
			t.Errorf("%q is read as %+v", text, v)
		} else if !strings.Contains(err.Error(), "10:20:12,15") {
			t.Errorf("%q: the error does not say what is expected: %v", text, err)
		}
	}
}

func TestATokenIsWrittenAndReadBack(t *testing.T) {
	t.Parallel()
	for _, want := range []eventstore.Token{{}, token(1, 1042), token(math.MaxInt32, math.MaxUint64)} {
		if got, err := eventstore.ParseToken(want.String()); err != nil || got != want {
			t.Errorf("%v came back as %v, %v", want, got, err)
		}
	}
	if got := token(1, 1042).String(); got != "1-1042" {
		t.Errorf("it is written as %q", got)
	}
}

func TestWhatIsNoTokenIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "-", "1", "1-", "-1", "-1-2", "a-1", "1-a", "1--1", "1-2-3", "2147483648-1", "1-18446744073709551616", " 1-2", "1-2 ", strings.Repeat("1", 10_000)} {
		if got, err := eventstore.ParseToken(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		} else if len(err.Error()) > 200 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

func TestACheckpointSeesWhatIsDoneNotWhatIsBeingRead(t *testing.T) {
	t.Parallel()
	c := eventstore.Checkpoint{Done: eventstore.View{Epoch: 1, Min: 5, Max: 5}, Until: &eventstore.View{Epoch: 1, Min: 9, Max: 9}, UntilFloor: 40, Position: 39}
	if !c.Sees(token(1, 4)) || c.Sees(token(1, 5)) || c.Sees(token(1, 8)) {
		t.Error("it takes what is being read for read, or what was read for unread")
	}
}

func TestACheckpointSurvivesJSON(t *testing.T) {
	t.Parallel()
	want := eventstore.Checkpoint{
		Done: eventstore.View{Epoch: 1, Min: 5, Max: 9, Running: []uint64{5, 7}}, Floor: 3,
		Until: &eventstore.View{Epoch: 2, Min: 1, Max: math.MaxUint64}, UntilFloor: math.MaxInt64, Position: 4,
	}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got eventstore.Checkpoint
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTheMiddleOfAPageIsItsWindowAtThePositionOfTheLastEventHandled(t *testing.T) {
	t.Parallel()
	window := eventstore.Checkpoint{Until: &eventstore.View{Epoch: 1, Min: 9, Max: 9}, UntilFloor: 50, Position: 10}
	next := eventstore.Checkpoint{Done: *window.Until, Floor: 50}
	page := eventstore.NewPage([]eventstore.Recorded{{Position: 20}, {Position: 35}, {Position: 50}}, window, next, false, 0)
	for n, position := range map[int]int64{-1: 10, 0: 10, 1: 20, 2: 35} {
		want := window
		want.Position = position
		if diff := cmp.Diff(want, page.After(n)); diff != "" {
			t.Errorf("after %d: %s", n, diff)
		}
	}
	for _, n := range []int{3, 4, math.MaxInt} {
		if diff := cmp.Diff(next, page.After(n)); diff != "" {
			t.Errorf("after %d: %s", n, diff)
		}
	}
	if window.Position != 10 {
		t.Error("asking changed the page's window")
	}
}

func TestAPageWithoutEventsIsBehindItself(t *testing.T) {
	t.Parallel()
	next := eventstore.Checkpoint{Position: 7}
	page := eventstore.NewPage(nil, eventstore.Checkpoint{}, next, true, 3)
	if diff := cmp.Diff(next, page.After(0)); diff != "" {
		t.Error(diff)
	}
}

func TestACategoryIsWhatStandsBeforeTheFirstDash(t *testing.T) {
	t.Parallel()
	for stream, want := range map[string]string{"order-1042": "order", "order-1-2": "order", "order": "order", "-1": "", "": "", "ö-1": "ö"} {
		if got := eventstore.Category(stream); got != want {
			t.Errorf("%q is of category %q, want %q", stream, got, want)
		}
	}
}

func TestAFilterLetsThroughWhatItNames(t *testing.T) {
	t.Parallel()
	e := eventstore.Recorded{Stream: "order-1", Event: eventstore.Event{Type: "Placed"}}
	for _, test := range []struct {
		filter eventstore.Filter
		want   bool
	}{
		{eventstore.Filter{}, true},
		{eventstore.Filter{Categories: []string{"payment", "order"}}, true},
		{eventstore.Filter{Categories: []string{"order-1"}}, false},
		{eventstore.Filter{Types: []string{"Placed"}}, true},
		{eventstore.Filter{Types: []string{"placed"}}, false},
		{eventstore.Filter{Categories: []string{"order"}, Types: []string{"Placed"}}, true},
		{eventstore.Filter{Categories: []string{"order"}, Types: []string{"Shipped"}}, false},
		{eventstore.Filter{Categories: []string{"payment"}, Types: []string{"Placed"}}, false},
	} {
		if got := test.filter.Matches(&e); got != test.want {
			t.Errorf("%+v: %t", test.filter, got)
		}
	}
}

// What is read as a view is written so that it reads the same, and sees just what it says.
func FuzzParseView(f *testing.F) {
	for _, text := range []string{"1:1:", "10:20:12,15", "10:20:", "20:10:", "10:20:12,12", "10:20:9", "0:0:", "0:5:0,1", "10:20:12,"} {
		f.Add(text, uint64(12))
	}
	f.Fuzz(func(t *testing.T, text string, x uint64) {
		v, err := eventstore.ParseView(3, text)
		if err != nil {
			return
		}
		if !slices.IsSorted(v.Running) || v.Min > v.Max {
			t.Errorf("%q is read as %+v", text, v)
		}
		again, err := eventstore.ParseView(3, v.Snapshot())
		if err != nil {
			t.Fatalf("%q is written as %q, which is no view: %v", text, v.Snapshot(), err)
		}
		if want := x < v.Max && !slices.Contains(v.Running, x); v.Sees(token(3, x)) != want {
			t.Errorf("%q sees %d: %t", text, x, !want)
		}
		if again.Sees(token(3, x)) != v.Sees(token(3, x)) {
			t.Errorf("%q and %q see %d differently", text, v.Snapshot(), x)
		}
	})
}

// What is read as a token is written so that it reads the same.
func FuzzParseToken(f *testing.F) {
	for _, text := range []string{"1-1042", "0-0", "-1-1", "1-", "01-02", "+1-2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := eventstore.ParseToken(text)
		if err != nil {
			return
		}
		if again, err := eventstore.ParseToken(got.String()); err != nil || again != got {
			t.Errorf("%q is read as %v, then as %v, %v", text, got, again, err)
		}
	})
}
