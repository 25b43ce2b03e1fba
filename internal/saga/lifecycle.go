package saga

import "time"

// admit records the first event of a saga that has none yet.
func (d *decision) admit() {
	if d.state.Version > 0 || d.in.Start == nil {
		return
	}
	e := *d.in.Start
	e.At, e.CreatedBy = d.at(), clip(e.CreatedBy, maxMessageBytes)
	e.Needs = needsOf(&e.Definition, features)
	if e.Definition.Deadline > 0 {
		e.DeadlineAt = d.in.Now.Add(e.Definition.Deadline)
	}
	d.record(e)
}

// start makes a state of what the first event froze.
func (s *State) start(e SagaStarted) {
	s.UID, s.Namespace, s.Name, s.CreatedBy, s.Labels = e.UID, e.Namespace, e.Name, e.CreatedBy, e.Labels
	s.Phase, s.TraceParent, s.NamespaceUID = Running, e.TraceParent, e.NamespaceUID
	s.StartedAt, s.DeadlineAt = e.DecidedAt(), e.DeadlineAt
	s.Definition, s.Input = e.Definition, e.Input
	s.Steps = make([]StepState, len(e.Definition.Steps))
	for i, step := range e.Definition.Steps {
		s.Steps[i].Name = step.Name
	}
}

// Wants reports whether the saga still wants the effects of a direction: actions on the way
// forward, compensations during the rollback.
func (s *State) Wants(dir Direction) bool {
	if dir == Compensation {
		return s.Phase == Compensating
	}
	return s.Phase == Running
}

// suspendOrResume records what the user wants. Deleting means undoing, so it ends a suspension. A
// cache that lags may show what the user wanted before: that changes nothing.
func (d *decision) suspendOrResume() {
	if d.in.Generation < d.state.SuspendGeneration && !d.in.Delete {
		return
	}
	switch want := d.in.Suspend && !d.in.Delete; {
	case want && !d.state.Suspended:
		d.record(SagaSuspended{At: d.at(), Generation: d.in.Generation})
	case !want && d.state.Suspended:
		d.record(SagaResumed{At: d.at(), Generation: max(d.in.Generation, d.state.SuspendGeneration)})
	}
}

// rollBack records the one way into rollback, whatever led there. A saga whose actions have all
// succeeded has nothing to roll back.
func (d *decision) rollBack() {
	if d.state.Phase != Running || d.state.forwardDone() {
		return
	}
	e := SagaCompensating{At: d.at()}
	failed := d.state.firstFailed()
	switch {
	case failed != nil:
		e.Cause, e.Step, e.Reason, e.Message = CauseRetriesExhausted, failed.Name, failed.Do.Reason, failed.Do.Message
		if failed.Do.Status == Refused {
			e.Cause = CauseStepRejected
		}
	case d.in.Delete:
		e.Cause, e.Reason, e.Message = CauseDeleted, "Deleted", "the saga was deleted"
	case d.in.Cancel:
		e.Cause, e.Reason, e.Message = CauseCancelled, "Cancelled", "the saga was cancelled"
	case !d.state.DeadlineAt.IsZero() && !d.in.Now.Before(d.state.DeadlineAt):
		e.Cause, e.Reason = CauseDeadlineExceeded, "DeadlineExceeded"
		e.Message = "not done after " + d.state.Definition.Deadline.String()
	default:
		return
	}
	d.record(e)
}

// turnBack ends the way forward, and with it the actions that wait for another attempt or for a
// reply. An action that was accepted may happen, and is undone.
func (s *State) turnBack(e SagaCompensating) {
	at := e.DecidedAt()
	s.Phase = Compensating
	s.Failure = &Failure{Cause: e.Cause, Step: e.Step, Reason: e.Reason, Message: e.Message, At: at}
	for i := range s.Steps {
		do := &s.Steps[i].Do
		switch do.Status {
		case Accepted:
			do.InDoubt = true
		case Waiting:
		default:
			continue
		}
		do.Status, do.RetryAt, do.AnswerBy, do.EndedAt = Exhausted, time.Time{}, time.Time{}, at
	}
}

// finish records the end, or that the saga is stuck.
func (d *decision) finish() {
	switch {
	case d.state.Phase == Running && d.state.forwardDone():
		d.record(SagaCompleted{At: d.at()})
	case d.state.Phase == Compensating:
		d.finishRollback()
	}
}

func (d *decision) finishRollback() {
	undone := d.plan.undone(&d.state)
	all := true
	for i := range d.state.Steps {
		if d.movesBackward(i, undone) {
			return // something is still to come
		}
		all = all && undone[i]
	}
	if all {
		d.record(SagaCompensated{At: d.at()})
		return
	}
	d.park()
}

func (s *State) end(p Phase, at time.Time) {
	s.Phase, s.EndedAt, s.Suspended = p, at, false
}
