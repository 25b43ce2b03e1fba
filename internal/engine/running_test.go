package engine

import (
	"testing"

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
		r := newRunning(Key{}, newBudgets(Memory{}))
		for _, step := range c.steps {
			step(r)
		}
		if r.stream != c.want {
			t.Errorf("%s: the stream is %d, want %d", name, r.stream, c.want)
		}
	}
}
