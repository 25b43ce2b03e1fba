package engine

import (
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestTheTraceIsTheSagaAndTheSpanTheAttempt(t *testing.T) {
	t.Parallel()
	s := saga.State{UID: "0190a0b0-c0d0-7000-8000-0123456789ab"}
	a := saga.Attempt{EffectID: saga.EffectID{Step: "a", Direction: saga.Action}, Number: 1}
	first, again := traceParent(s, a), traceParent(s, a)
	a.Number = 2
	if first != again || first == traceParent(s, a) || len(first) != 55 || first[:36] != "00-0190a0b0c0d0700080000123456789ab-" {
		t.Errorf("traceparent %q, again %q, next attempt %q", first, again, traceParent(s, a))
	}
}

// TestASagaBelongsToTheTraceThatItWasStartedIn looks at what participants and sinks are told, also by a process that knows only what is stored.
func TestASagaBelongsToTheTraceThatItWasStartedIn(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	for given, want := range map[string]string{parent: "00-0af7651916cd43dd8448eb211c80319c-", "00-what-ever": "00-"} {
		store, k, p := memory.New(), newKey(t), &scripted{}
		obs := start(definition("a", "b"))
		obs.TraceParent = given
		if _, err := newBench(t, store, &scripted{}, Observation{}).engine.Advance(t.Context(), k, obs); err != nil {
			t.Fatal(err)
		}
		newBench(t, store, p, Observation{}).run().await()
		spans := map[string]bool{}
		for _, c := range p.seen() {
			spans[c.TraceParent] = true
			if !strings.HasPrefix(c.TraceParent, want) || given == parent && !strings.HasSuffix(c.TraceParent, "-00") || c.TraceParent == parent {
				t.Errorf("%s: the participant is told %s", given, c.TraceParent)
			}
		}
		all, err := store.Messages(t.Context(), 0, 100)
		if err != nil || len(spans) != 2 || len(all) == 0 {
			t.Errorf("%d spans and %d messages, %v", len(spans), len(all), err)
		}
		for _, m := range all {
			if !strings.HasPrefix(m.Metadata.TraceParent, want) {
				t.Errorf("%s: the world is told %s", given, m.Metadata.TraceParent)
			}
		}
	}
}
