package engine

import (
	"slices"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/saga"
)

func TestRunningStreamTransitions(t *testing.T) {
	t.Parallel()
	def := start(definition("a"))
	for name, c := range map[string]struct {
		steps []func(*running)
		want  knowledge
	}{
		"nothing":                  {nil, streamUnseen},
		"a definition":             {[]func(*running){func(r *running) { r.observe(def) }}, streamPresumedNew},
		"no definition":            {[]func(*running){func(r *running) { r.observe(Observation{}) }}, streamUnknown},
		"a definition that went":   {[]func(*running){func(r *running) { r.observe(def) }, func(r *running) { r.observe(Observation{}) }}, streamUnknown},
		"committed":                {[]func(*running){func(r *running) { r.observe(def) }, func(r *running) { r.setCommitted(saga.State{Version: 1}) }}, streamLoaded},
		"lost":                     {[]func(*running){func(r *running) { r.observe(def) }, (*running).dropState}, streamUnknown},
		"observed after a loss":    {[]func(*running){(*running).dropState, func(r *running) { r.observe(def) }}, streamUnknown},
		"observed after a loading": {[]func(*running){func(r *running) { r.setLoaded(saga.State{}) }, func(r *running) { r.observe(def) }}, streamLoaded},
	} {
		r := newRunning(Key{}, newBudgets(Memory{}), time.Now)
		for _, step := range c.steps {
			step(r)
		}
		if r.stream != c.want {
			t.Errorf("%s: the stream is %d, want %d", name, r.stream, c.want)
		}
	}
}

func TestOutcomesOfOneInstantAreInOrderOfAttempts(t *testing.T) {
	t.Parallel()
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	arrived := func(at time.Time, step string, kind saga.OutcomeKind) arrival {
		attempt := saga.Attempt{EffectID: saga.EffectID{Step: step, Direction: saga.Action}, Number: 1}
		return arrival{Outcome: saga.Outcome{Attempt: attempt, Kind: kind}, at: at}
	}
	all := []arrival{arrived(early, "z", saga.Succeeded), arrived(late, "b", saga.Unknown), arrived(late, "a", saga.Rejected), arrived(late, "b", saga.Succeeded)}
	var got []string
	for _, o := range inOrder(all) {
		got = append(got, o.Attempt.Step+" "+string(o.Kind))
	}
	want := []string{"z " + string(saga.Succeeded), "a " + string(saga.Rejected), "b " + string(saga.Unknown), "b " + string(saga.Succeeded)}
	if !slices.Equal(got, want) {
		t.Errorf("the order is %q, want %q", got, want)
	}
	if all[1].Attempt.Step != "b" {
		t.Error("what waits was put in another order: the oldest are dropped by their number")
	}
}

func TestOutcomesKeepOrderOfArrival(t *testing.T) {
	t.Parallel()
	at := newClock()
	r := newRunning(Key{}, newBudgets(Memory{}), at.Now)
	steps := []string{"z", "a", "m"}
	for _, step := range steps {
		a := saga.Attempt{EffectID: saga.EffectID{Step: step, Direction: saga.Action}, Number: 1}
		r.begin(a, func(error) {})
		r.end(saga.Outcome{Attempt: a, Kind: saga.Rejected})
		at.forward(time.Microsecond)
	}
	var got []string
	for _, o := range inOrder(r.waiting()) {
		got = append(got, o.Attempt.Step)
	}
	if !slices.Equal(got, steps) {
		t.Errorf("the order is %q, want %q", got, steps)
	}
}
