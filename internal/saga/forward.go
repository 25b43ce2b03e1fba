package saga

// readiness is what Decide does now with an effect that it may start.
type readiness int

const (
	readinessWait readiness = iota
	readinessStart
)

// startActions starts the actions that are next on the way forward.
func (d *decision) startActions() {
	if d.state.Phase != Running || d.state.Suspended {
		return
	}
	for i := range d.plan.steps {
		if d.readyForward(i) == readinessStart {
			d.startAttempt(i, Action)
		}
	}
}

// readyForward says whether the action of a step starts now: all its dependencies are satisfied, or
// the pause before another attempt is over.
func (d *decision) readyForward(i int) readiness {
	do := &d.state.Steps[i].Do
	if do.Status == NotStarted && d.plan.dependenciesSatisfied(&d.state, i) || do.due(d.in.Now) {
		return readinessStart
	}
	return readinessWait
}

func (p *Plan) dependenciesSatisfied(s *State, i int) bool {
	for _, d := range p.steps[i].dependencies {
		if !s.Steps[d].Do.Satisfied() {
			return false
		}
	}
	return true
}

// forwardDone reports whether the way forward has reached its end.
func (s *State) forwardDone() bool {
	for i := range s.Steps {
		if !s.Steps[i].Do.Satisfied() {
			return false
		}
	}
	return true
}

// firstFailed returns the first step, in the order of the definition, whose action failed
// permanently; nil if there is none.
func (s *State) firstFailed() *StepState {
	for i := range s.Steps {
		if s.Steps[i].Do.FailedForGood() {
			return &s.Steps[i]
		}
	}
	return nil
}
