package saga

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update-golden", false, "write the golden histories anew; only for histories that no released version has written")

// storedEvent is an event as it stands in the store.
type storedEvent struct {
	Type          string          `json:"type"`
	SchemaVersion int             `json:"schemaVersion"`
	Data          json.RawMessage `json:"data"`
}

// golden is a history that was once written, and the state that every later version must fold it to.
type golden struct {
	Events []storedEvent `json:"events"`
	State  State         `json:"state"`
}

// goldenHistories are the ways a saga can take. The files that were once written from them are never rewritten.
func goldenHistories(t *testing.T) map[string]*history {
	order := Definition{Deadline: time.Hour, Steps: []Step{
		step("reserve", output("id", "${response.body.id}"), undoWith(`{"url": "http://x/${input.orderId}"}`, 2)),
		step("charge", after("reserve"), undo()),
		step("label", after("reserve"), undo()),
		step("ship", after("charge", "label")),
	}}
	completed := begin(t, order)
	completed.decide(Outcome{Attempt: completed.inFlight("reserve", Action), Kind: Succeeded, Output: json.RawMessage(`{"id":"r-1"}`)})
	completed.ends("charge", Action, Retryable)
	completed.ends("label", Action, Succeeded)
	completed.wake()
	completed.ends("charge", Action, Succeeded)
	completed.ends("ship", Action, Succeeded)
	completed.phaseIs(Completed)

	compensated := begin(t, order)
	compensated.ends("reserve", Action, Succeeded)
	compensated.ends("label", Action, Unknown)
	compensated.in.Suspend = true
	compensated.decide()
	compensated.in.Suspend = false
	compensated.ends("charge", Action, Rejected)
	compensated.ends("label", Compensation, Unknown)
	compensated.wake()
	compensated.ends("label", Compensation, Succeeded)
	compensated.ends("reserve", Compensation, Succeeded)
	compensated.phaseIs(Compensated)

	parked := begin(t, order)
	parked.ends("reserve", Action, Succeeded)
	parked.in.Cancel = true
	parked.decide()
	parked.ends("charge", Action, Succeeded)
	parked.ends("label", Action, Rejected)
	parked.ends("charge", Compensation, Rejected)
	parked.phaseIs(CompensationFailed)

	answered := begin(t, order)
	answered.accepts("reserve", Action)
	answered.answers("reserve", Action, Succeeded)
	answered.accepts("charge", Action)
	answered.accepts("label", Action)
	answered.wake() // an answer does not come
	answered.wake()
	answered.answers("label", Action, Rejected)
	answered.ends("charge", Compensation, Succeeded)
	answered.accepts("reserve", Compensation)
	answered.answers("reserve", Compensation, Succeeded)

	decided := begin(t, order)
	decided.ends("reserve", Action, Succeeded)
	decided.ends("charge", Action, Succeeded)
	decided.ends("label", Action, Rejected)
	decided.ends("charge", Compensation, Rejected)
	decided.decided(Decision{Step: "charge", Verdict: Retried, By: "ann", Reason: "payments is mended"})
	decided.ends("charge", Compensation, Succeeded)
	decided.ends("reserve", Compensation, Rejected)
	decided.decided(Decision{Verdict: MarkedCompensated, By: "ann", Reason: "given back by telephone"})
	decided.phaseIs(Compensated)

	unasked := begin(t, order)
	unasked.ends("reserve", Action, Unknown)
	unasked.wake()
	unasked.decide(Outcome{Attempt: unasked.inFlight("reserve", Action), Kind: Rejected, Author: AuthorOperator, Reason: "EgressDenied"})
	unasked.ends("reserve", Compensation, Succeeded)
	unasked.phaseIs(Compensated)

	resent := begin(t, order)
	resent.loses(resent.inFlight("reserve", Action))
	resent.ends("reserve", Action, Retryable)
	resent.wake()
	resent.ends("reserve", Action, Retryable)
	resent.wake()
	resent.ends("reserve", Action, Retryable)
	resent.ends("reserve", Compensation, Succeeded)
	resent.phaseIs(Compensated)

	abandoned := begin(t, order)
	abandoned.ends("reserve", Action, Succeeded)
	abandoned.ends("charge", Action, Succeeded)
	abandoned.ends("label", Action, Rejected)
	abandoned.abandoned("ann", "the participants do not exist any more")
	abandoned.phaseIs(Abandoned)

	return map[string]*history{"abandoned": abandoned, "unasked": unasked, "resent": resent, "completed": completed, "compensated": compensated, "parked": parked, "answered": answered, "decided": decided}
}

func TestHistoriesWrittenByEarlierVersionsStillFold(t *testing.T) {
	t.Parallel()
	for name, h := range goldenHistories(t) {
		path := filepath.Join("testdata", "history-"+name+".json")
		if *update {
			writeGolden(t, path, h)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("reading a golden history: %v; write it once with -update-golden", err)
		}
		var g golden
		if err := json.Unmarshal(data, &g); err != nil {
			t.Fatal(err)
		}
		var state State
		for _, stored := range g.Events {
			e, err := Unmarshal(stored.Type, stored.SchemaVersion, stored.Data)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			state = Fold(state, e)
		}
		if got, want := asJSON(t, state), asJSON(t, g.State); !bytes.Equal(got, want) {
			t.Errorf("%s folds to another state (-then +now):\n%s", path, cmp.Diff(string(want), string(got)))
		}
		if _, errs := Compile(state.Definition); len(errs) > 0 {
			t.Errorf("%s: its definition does not compile any more: %v", path, errs)
		}
	}
}

func TestTheStoredFormOfEventsDoesNotChange(t *testing.T) {
	t.Parallel()
	for name, h := range goldenHistories(t) {
		data, err := os.ReadFile(filepath.Join("testdata", "history-"+name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		if err := json.Unmarshal(data, &g); err != nil {
			t.Fatal(err)
		}
		now := stored(t, h)
		for i := range now {
			var was bytes.Buffer
			if err := json.Compact(&was, g.Events[i].Data); err != nil {
				t.Fatal(err)
			}
			if was.String() != string(now[i].Data) {
				t.Errorf("%s, event %d (%s) was stored as\n%s\nand now is\n%s", name, i+1, now[i].Type, was.String(), now[i].Data)
			}
		}
	}
}

func stored(t *testing.T, h *history) []storedEvent {
	t.Helper()
	events := make([]storedEvent, len(h.events))
	for i, e := range h.events {
		var err error
		if events[i].Type, events[i].SchemaVersion, events[i].Data, err = Marshal(e); err != nil {
			t.Fatal(err)
		}
	}
	return events
}

func writeGolden(t *testing.T, path string, h *history) {
	t.Helper()
	data, err := json.MarshalIndent(golden{Events: stored(t, h), State: h.state}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
