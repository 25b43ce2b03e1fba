package simulation

import (
	"slices"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/saga"
)

// TestCheckerSeesEveryBrokenPromise tampers with the books of a world in which nothing fails, once for each promise.
func TestCheckerSeesEveryBrokenPromise(t *testing.T) {
	completed := func() *testSaga {
		s := one("order", 1)
		s.steps = append(s.steps, after(stepOf("ship", 1), "charge"))
		return s
	}
	compensated := func() *testSaga {
		s := completed()
		s.steps = append(s.steps, after(stepOf("bill", 1), "ship"))
		s.steps[2].rejects = true
		return s
	}
	step := func(w *World, i int) *testStep { return &w.sagas[0].steps[i] }
	records := func(w *World) *records { return w.books.records[w.sagas[0].uid] }
	for broken, c := range map[rule]struct {
		saga   func() *testSaga
		tamper func(w *World)
	}{
		ruleEnds:           {completed, func(w *World) { records(w).phase = saga.Running }},
		ruleCompleted:      {completed, func(w *World) { step(w, 0).act.doneAt = nil }},
		ruleCompensated:    {compensated, func(w *World) { step(w, 0).undo.doneAt = nil }},
		ruleOneBody:        {completed, func(w *World) { w.net.handle(step(w, 0).act, "another", "") }},
		ruleOnce:           {completed, func(w *World) { e := step(w, 0).act; e.doneAt = append(e.doneAt, w.step) }},
		ruleForwardOrder:   {completed, func(w *World) { step(w, 1).act.arrivals[0] = 0 }},
		ruleBackwardOrder:  {compensated, func(w *World) { step(w, 0).undo.arrivals[0] = 0 }},
		ruleUndoUnstarted:  {compensated, func(w *World) { clear(records(w).started) }},
		ruleNothingForward: {compensated, func(w *World) { w.books.sends[0].knewRollback = true }},
		ruleAfterUndo:      {compensated, func(w *World) { w.books.sends[0].step, w.books.sends[0].inTime = w.step, false }},
		ruleSuspended:      {completed, func(w *World) { w.books.sends[0].knewSuspended = true }},
		ruleStaysSuspended: {completed, func(w *World) { w.books.resumed = []string{"order"} }},
		ruleStopStartsNone: {completed, func(w *World) { w.books.inGrace = []string{"order"} }},
		ruleDecisionsOnce:  {completed, func(w *World) { records(w).decisions = 1 }},
		ruleObjectStays:    {completed, func(w *World) { w.books.goneAt[w.sagas[0].uid] = saga.Running }},
		ruleMirror:         {completed, func(w *World) { w.api.objects["order"].Status.Phase = "Running" }},
		ruleNoPanic:        {completed, func(w *World) { w.books.panics = []string{"order"} }},
	} {
		clean := Run(t, Config{Seed: 1, Script: &Script{Sagas: []*testSaga{c.saga()}}})
		if len(clean.Violations) > 0 {
			t.Fatalf("a world in which nothing fails breaks %v", clean.Violations)
		}
		r := Run(t, Config{Seed: 1, Script: &Script{Sagas: []*testSaga{c.saga()}, Tamper: c.tamper}})
		if !slices.ContainsFunc(r.Violations, func(v violation) bool { return v.rule == broken }) {
			t.Errorf("the checker does not see that this is broken: %s; it says %v", broken, r.Violations)
		}
	}
}

// TestShrinkKeepsWhatMatters breaks a promise by one fault among many happenings.
func TestShrinkKeepsWhatMatters(t *testing.T) {
	var cfg Config
	var failing *Report
	lost := func(r *Report) bool { return r.Met[request][failedAfter] > 0 }
	for seed := uint64(1); failing == nil; seed++ {
		cfg = Config{Seed: seed, Sagas: 5}
		if r := Run(t, cfg); lost(r) {
			failing = r
		}
	}
	_, small := Shrink(t, cfg, failing, lost)
	if !lost(small) || len(small.Happenings) >= len(failing.Happenings) || small.Met[request][failedAfter] != 1 {
		t.Errorf("of %d happenings %d are left: %v", len(failing.Happenings), len(small.Happenings), small.Happenings)
	}
	if len(small.Trace) == 0 {
		t.Error("the smallest world has no trace")
	}
}

// TestStoreThatLosesCommitsStillRepeats is about the world alone: what operators have to do about it is not decided yet.
func TestStoreThatLosesCommitsStillRepeats(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		cfg := Config{Seed: seed, Sagas: 5, LoseCommits: true}
		one, two := Run(t, cfg), Run(t, cfg)
		if one.Digest != two.Digest {
			t.Errorf("seed %d: two runs of one world went different ways", seed)
		}
	}
}

func TestChanceDependsOnNothingButTheName(t *testing.T) {
	c := chance{seed: 7}
	before := c.draw("fate", "a call")
	other := c.draw("fate", "another call")
	if c.draw("fate", "a call") != before || other == before || c.draw("rank", "a call") == before || (chance{seed: 8}).draw("fate", "a call") == before {
		t.Error("a draw is not a function of the seed, the kind and the name")
	}
	sum := 0.0
	for i := range 10_000 {
		sum += c.float("mean", time.Duration(i).String())
	}
	if mean := sum / 10_000; mean < 0.48 || mean > 0.52 {
		t.Errorf("the mean of 10,000 draws is %f", mean)
	}
}
