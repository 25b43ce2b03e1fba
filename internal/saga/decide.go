package saga

import (
	"cmp"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of what an outcome may leave in an event.
const (
	maxReasonBytes  = 64
	maxMessageBytes = 1 << 10
)

// ReasonNoAnswer is the reason of an attempt that was accepted and not answered in time, or when nobody waited any more.
const ReasonNoAnswer = "NoAnswer"

// Input is what has come in from outside since the last decision.
type Input struct {
	// Now is the time of the decision.
	Now time.Time
	// Random is the chance that pauses between attempts are drawn from. The same Input always gives the same decision.
	Random uint64
	// Start is what to start when the saga has no event yet. Its At and DeadlineAt are filled in by Decide.
	Start *SagaStarted
	// Suspend, Cancel and Delete are what the user wants now.
	Suspend, Cancel, Delete bool
	// Lost are attempts under way that whoever carries out the decision has not begun: another process did, which may have called the participant and died since. They are about to be sent
	// again.
	Lost []Attempt
	// Outcomes are those of attempts that have ended. One that belongs to no attempt under way is ignored: it came too late.
	Outcomes []Outcome
}

// Decide returns the events that are to be appended next; none when there is nothing to do. It is pure, and it is complete: deciding
// again on the result, with the same Now, nothing lost and no new outcome, returns nothing.
func (p *Plan) Decide(s State, in Input) []Event {
	d := &decision{plan: p, state: s.clone(), in: in}
	d.startSaga()
	if !d.open() {
		return d.events
	}
	d.recordOutcomes()
	d.recordLost()
	d.giveUpAnswers()
	d.suspendOrResume()
	d.rollBack()
	d.startActions()
	d.startCompensations()
	d.finish()
	return d.events
}

// decision is a decision under way: the events so far, and the state as it is after them.
type decision struct {
	plan   *Plan
	state  State
	in     Input
	events []Event
}

func (d *decision) record(e Event) {
	d.events = append(d.events, e)
	d.state.apply(e)
}

func (d *decision) at() At { return At{At: d.in.Now} }

// open reports whether the saga can still move by itself.
func (d *decision) open() bool {
	return d.state.Phase == Running || d.state.Phase == Compensating
}

func (d *decision) startSaga() {
	if d.state.Version > 0 || d.in.Start == nil {
		return
	}
	e := *d.in.Start
	e.At, e.CreatedBy = d.at(), clip(e.CreatedBy, maxMessageBytes)
	if e.Definition.Deadline > 0 {
		e.DeadlineAt = d.in.Now.Add(e.Definition.Deadline)
	}
	d.record(e)
}

func (d *decision) recordOutcomes() {
	for _, o := range d.in.Outcomes {
		f := d.state.effect(o.Attempt.EffectID)
		if !f.UnderWay() || f.Attempts != o.Attempt.Number || o.Accepted && f.Status == Accepted {
			continue
		}
		if o.Accepted && (o.Attempt.Direction == Compensation || d.state.Phase == Running) {
			d.record(AttemptAccepted{At: d.at(), Attempt: o.Attempt, AnswerBy: d.in.Now.Add(max(o.AnswerWithin, 0))})
			continue
		}
		if o.Accepted { // a rollback waits for no answer to an action: what was accepted may happen, and is undone
			o.Kind, o.Reason, o.Message = Unknown, ReasonNoAnswer, "it was accepted when the saga was rolling back already, which waits for no answer"
		}
		if o.Kind == Succeeded {
			d.record(AttemptSucceeded{At: d.at(), Attempt: o.Attempt, Output: o.Output})
			continue
		}
		d.record(AttemptFailed{
			At: d.at(), Attempt: o.Attempt, Outcome: o.Kind, Unasked: o.Unasked,
			Reason: clip(o.Reason, maxReasonBytes), Message: clip(o.Message, maxMessageBytes),
			RetryAt: d.retryAt(o),
		})
	}
}

// recordLost records that attempts are sent again, before they are: a participant that cannot be reached then says only that the second call did not happen. Where that is known already there is
// nothing to record.
func (d *decision) recordLost() {
	for _, a := range d.in.Lost {
		if f := d.state.effect(a.EffectID); f.Status == InProgress && f.Attempts == a.Number && !f.InDoubt {
			d.record(AttemptResent{At: d.at(), Attempt: a})
		}
	}
}

// giveUpAnswers ends the attempts whose answer has not come in time: nobody knows what became of them.
func (d *decision) giveUpAnswers() {
	for id, f := range d.state.effects {
		if f.Status != Accepted || d.in.Now.Before(f.AnswerBy) {
			continue
		}
		o := Outcome{
			Attempt: Attempt{EffectID: id, Number: f.Attempts}, Kind: Unknown, Reason: ReasonNoAnswer,
			Message: "it was accepted, and no answer came by " + f.AnswerBy.Format(time.RFC3339),
		}
		d.record(AttemptFailed{At: d.at(), Attempt: o.Attempt, Outcome: o.Kind, Reason: o.Reason, Message: o.Message, RetryAt: d.retryAt(o)})
	}
}

// retryAt says when the next attempt of the same effect starts; zero when there is none.
func (d *decision) retryAt(o Outcome) time.Time {
	effect := d.plan.effect(o.Attempt.EffectID)
	forward := o.Attempt.Direction == Action
	counted := o.Attempt.Number - d.state.effect(o.Attempt.EffectID).Before
	if effect == nil || o.Kind == Rejected || counted >= effect.Retry.MaxAttempts || forward && d.state.Phase != Running {
		return time.Time{}
	}
	return d.in.Now.Add(pause(effect.Retry, o, counted, d.in.Random))
}

// pause draws the pause before the next attempt, after so many: full jitter, but not less than the participant asked for, and never more than the cap.
func pause(r Retry, o Outcome, attempts int, random uint64) time.Duration {
	ceiling := r.MaxBackoff
	if doublings := attempts - 1; doublings < 62 && r.InitialBackoff <= r.MaxBackoff>>doublings {
		ceiling = r.InitialBackoff << doublings
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(o.Attempt.Key(""))) // a hash never fails
	drawn := time.Duration(rand.New(rand.NewPCG(random, h.Sum64())).Float64() * float64(ceiling))
	// Times are kept to the microsecond: a pause that is finer would end a moment before the recorded time.
	return max(drawn, min(o.RetryAfter, r.MaxBackoff)).Truncate(time.Microsecond)
}

// suspendOrResume records what the user wants. Deleting means undoing, so it ends a suspension.
func (d *decision) suspendOrResume() {
	switch want := d.in.Suspend && !d.in.Delete; {
	case want && !d.state.Suspended:
		d.record(SagaSuspended{d.at()})
	case !want && d.state.Suspended:
		d.record(SagaResumed{d.at()})
	}
}

// rollBack records the one way into rollback, whatever led there. A saga whose actions have all succeeded has nothing to roll back.
func (d *decision) rollBack() {
	if d.state.Phase != Running || d.allDone() {
		return
	}
	e := SagaCompensating{At: d.at()}
	failed := d.firstFailed()
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

func (d *decision) allDone() bool {
	for i := range d.state.Steps {
		if !d.state.Steps[i].Do.Satisfied() {
			return false
		}
	}
	return true
}

// firstFailed returns the first step, in the order of the definition, whose action failed for good.
func (d *decision) firstFailed() *StepState {
	for i := range d.state.Steps {
		if d.state.Steps[i].Do.FailedForGood() {
			return &d.state.Steps[i]
		}
	}
	return nil
}

func (d *decision) startActions() {
	if d.state.Phase != Running || d.state.Suspended {
		return
	}
	for i := range d.plan.steps {
		f := &d.state.Steps[i].Do
		if f.Status == NotStarted && d.plan.dependenciesDone(&d.state, i) || f.due(d.in.Now) {
			d.startAttempt(i, Action, f)
		}
	}
}

func (d *decision) startCompensations() {
	if d.state.Phase != Compensating || d.state.Suspended {
		return
	}
	undone := d.plan.undone(&d.state)
	for i := range d.plan.steps {
		f := &d.state.Steps[i].Compensation
		if f.Status == NotStarted && d.plan.compensationReady(&d.state, i, undone) || f.due(d.in.Now) {
			d.startAttempt(i, Compensation, f)
		}
	}
}

func (d *decision) startAttempt(step int, dir Direction, f *EffectState) {
	id := EffectID{Step: d.plan.def.Steps[step].Name, Direction: dir}
	d.record(AttemptStarted{At: d.at(), Attempt: Attempt{EffectID: id, Number: f.Attempts + 1}})
}

// finish records the end, or that the saga is stuck.
func (d *decision) finish() {
	switch {
	case d.state.Phase == Running && d.allDone():
		d.record(SagaCompleted{d.at()})
	case d.state.Phase == Compensating:
		d.finishRollback()
	}
}

func (d *decision) finishRollback() {
	var failed *StepState
	undone, all := d.plan.undone(&d.state), true
	for i := range d.state.Steps {
		step := &d.state.Steps[i]
		all = all && undone[i]
		if !step.Do.Settled() || !step.Compensation.Settled() || d.plan.compensationReady(&d.state, i, undone) {
			return // something is still to come
		}
		if step.Compensation.FailedForGood() {
			failed = cmp.Or(failed, step)
		}
	}
	switch {
	case all:
		d.record(SagaCompensated{d.at()})
	case failed != nil:
		d.record(SagaParked{At: d.at(), Step: failed.Name, Reason: failed.Compensation.Reason, Message: failed.Compensation.Message})
	}
}

// clip shortens a text to so many bytes of valid UTF-8 without NUL, which PostgreSQL keeps in no text.
func clip(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
