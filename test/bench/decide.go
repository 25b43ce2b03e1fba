package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/vextrus/saga-operator/internal/saga"
)

// measureDecide measures what the core does for one outcome of a saga of 20 and of 200 steps that follow each other.
func measureDecide(context.Context, settings) ([]Row, error) {
	var rows []Row
	for _, m := range []struct {
		steps int
		mark  float64
	}{{20, 20}, {saga.MaxSteps, 200}} {
		micros, err := decideAll(m.steps)
		if err != nil {
			return rows, err
		}
		rows = append(rows, row(fmt.Sprintf("decide.%d", m.steps), micros, "µs", m.mark, fmt.Sprintf("processor time of a decision about one outcome, in a saga of %d steps; limit: the mark", m.steps)))
	}
	return rows, nil
}

// decideAll carries a saga to its end again and again, and returns what an outcome costs in microseconds of processor time.
func decideAll(steps int) (float64, error) {
	const outcomes = 20_000
	var def saga.Definition
	for i := range steps {
		e := saga.Effect{Kind: "none", With: json.RawMessage(`{}`), AttemptTimeout: time.Minute, Retry: saga.Retry{MaxAttempts: 1}}
		s := saga.Step{Name: fmt.Sprintf("step-%d", i), Do: e, Compensation: &e}
		if i > 0 {
			s.DependsOn = []string{def.Steps[i-1].Name}
		}
		def.Steps = append(def.Steps, s)
	}
	plan, wrong := saga.Compile(def)
	if len(wrong) > 0 {
		return 0, fmt.Errorf("compiling a saga of %d steps: %v", steps, wrong)
	}
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	took, err := used(func() error {
		var state saga.State
		for n := 0; n < outcomes; {
			in := saga.Input{Now: now}
			if state.Version == 0 || state.Phase.Terminal() {
				state, in.Start = saga.State{}, &saga.SagaStarted{UID: "u", Definition: def}
			} else {
				in.Outcomes = []saga.Outcome{{Attempt: plan.InFlight(state)[0], Kind: saga.Succeeded}}
				n++
			}
			_, state = plan.Decide(state, in)
			plan.Wake(state)
		}
		return nil
	})
	return float64(took.Microseconds()) / outcomes, err
}
