package saga

import (
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of what an outcome may leave in an event.
const (
	maxReasonBytes  = 64
	maxMessageBytes = 1 << 10
)

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
	d.admit()
	if !d.open() {
		return d.events
	}
	d.recordOutcomes()
	d.recordLost()
	d.giveUpReplies()
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

func (d *decision) recordOutcomes() {
	for _, o := range d.in.Outcomes {
		f := d.state.effect(o.Attempt.EffectID)
		if !f.UnderWay() || f.Attempts != o.Attempt.Number || o.Accepted && f.Status == Accepted {
			continue
		}
		if o.Accepted && d.state.wants(o.Attempt.Direction) {
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
		d.recordFailure(o)
	}
}

// recordFailure records an attempt that ended without success, and what follows it.
func (d *decision) recordFailure(o Outcome) {
	follows, retryAt := next(d.plan.effect(o.Attempt.EffectID), &d.state, o, d.in.Now, d.in.Random)
	d.record(AttemptFailed{
		At: d.at(), Attempt: o.Attempt, Outcome: o.Kind, Unasked: o.Unasked,
		Reason: clip(o.Reason, maxReasonBytes), Message: clip(o.Message, maxMessageBytes),
		Next: follows, RetryAt: retryAt,
	})
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

// startAttempt records the intent of the next attempt of a step's effect.
func (d *decision) startAttempt(step int, dir Direction) {
	s := &d.state.Steps[step]
	id := EffectID{Step: s.Name, Direction: dir}
	d.record(AttemptStarted{At: d.at(), Attempt: Attempt{EffectID: id, Number: s.effect(dir).Attempts + 1}})
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
