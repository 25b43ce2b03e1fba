package saga

import "time"

// startCompensations starts the compensations that are next in reverse dependency order.
func (d *decision) startCompensations() {
	if d.state.Phase != Compensating || d.state.Suspended {
		return
	}
	undone := d.plan.undone(&d.state)
	for i := range d.plan.steps {
		if d.readyBackward(i, undone) == readinessStart {
			d.startAttempt(i, Compensation)
		}
	}
}

// readyBackward says whether the compensation of a step starts now: it has to run and everything
// that depends on the step is undone, or the pause before another attempt is over. It waits until
// the action is settled, because its outcome tells what there is to undo, and while a call of it may
// still be under way: an undo that overtakes its action is lost.
func (d *decision) readyBackward(i int, undone []bool) readiness {
	step := &d.state.Steps[i]
	first := step.Compensation.Status == NotStarted && step.Do.Settled() &&
		!d.in.Now.Before(step.Do.QuietUntil) && d.plan.toUndo(&d.state, i) && d.plan.dependentsUndone(i, undone)
	if first || step.Compensation.due(d.in.Now) {
		return readinessStart
	}
	return readinessWait
}

// movesBackward reports whether something is still to come of a step during the rollback.
func (d *decision) movesBackward(i int, undone []bool) bool {
	step := &d.state.Steps[i]
	quiet := !d.in.Now.Before(step.Do.QuietUntil) || !d.plan.toUndo(&d.state, i)
	return !step.Do.Settled() || !step.Compensation.Settled() || !quiet || d.readyBackward(i, undone) == readinessStart
}

// toUndo reports whether the compensation of a step has to run: the action happened, or may have,
// and can be undone. It never has to for an action that was not sent or was definitely rejected.
func (p *Plan) toUndo(s *State, i int) bool {
	return p.def.Steps[i].Compensation != nil && s.Steps[i].Do.MayHaveHappened()
}

// undone says of each step whether nothing is left to undo in it and in everything that depends on
// it, directly or not.
func (p *Plan) undone(s *State) []bool {
	undone := make([]bool, len(p.steps))
	for k := len(p.order) - 1; k >= 0; k-- {
		i := p.order[k]
		step := &s.Steps[i]
		undone[i] = step.Do.Settled() && (!p.toUndo(s, i) || step.Compensation.Satisfied()) && p.dependentsUndone(i, undone)
	}
	return undone
}

func (p *Plan) dependentsUndone(i int, undone []bool) bool {
	for _, d := range p.steps[i].dependents {
		if !undone[d] {
			return false
		}
	}
	return true
}

// park records that the saga waits for a person, if an effect is parked. It names the first one in
// the order of the definition.
func (d *decision) park() {
	for id, f := range d.state.effects {
		if f.Status == Parked {
			d.record(SagaParked{At: d.at(), Step: id.Step, Reason: f.Reason, Message: f.Message})
			return
		}
	}
}

// quietUntil calls yield with the times until which compensations wait for nothing but the end of a
// call that may still be under way.
func (p *Plan) quietUntil(s *State, yield func(time.Time)) {
	undone := p.undone(s)
	for i := range p.steps {
		step := &s.Steps[i]
		if step.Compensation.Status == NotStarted && step.Do.Settled() && p.toUndo(s, i) && p.dependentsUndone(i, undone) {
			yield(step.Do.QuietUntil)
		}
	}
}
