package saga

import (
	"fmt"
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
	// KeyRetention is how long participants remember keys; zero means for ever.
	KeyRetention time.Duration
	// Generation is the metadata.generation of the object that Suspend comes from.
	Generation int64
	// Draining says that the process is about to end: outcomes are recorded, and nothing else.
	Draining bool
	// MaxStarts, if not nil, is the maximum number of attempts that start now. The caller decides again
	// when more may start.
	MaxStarts *int
	// Lost are attempts under way of which the caller knows nothing: another process started them, and
	// may have called the participant.
	Lost []Attempt
	// Outcomes are those of attempts that have ended. One that belongs to no attempt under way is ignored: it came too late.
	Outcomes []Outcome
}

// Decide returns the events that are to be appended next, and the state that they lead to; none when there is nothing to do. It is pure,
// and it is complete: deciding again on the result, with the same Now, nothing lost and no new outcome, returns nothing.
func (p *Plan) Decide(s State, in Input) ([]Event, State) {
	d := &decision{plan: p, state: s.clone(), in: in}
	if !in.Draining {
		d.admit()
	}
	if !d.open() {
		return d.events, d.state
	}
	d.recordOutcomes()
	if in.Draining {
		return d.events, d.state
	}
	d.giveUpReplies()
	d.suspendOrResume()
	d.giveUpKeys()
	d.rollBack()
	d.recordLost()
	d.startActions()
	d.startCompensations()
	d.finish()
	return d.events, d.state
}

// decision is a decision under way: the events so far, and the state as it is after them.
type decision struct {
	plan   *Plan
	state  State
	in     Input
	events []Event
	starts int // attempts started so far
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
		waits := f.UnderWay() || o.Reply && f.Status == Waiting
		if !waits || f.Attempts != o.Attempt.Number || o.Accepted && f.Status == Accepted {
			continue
		}
		if o.Accepted && d.state.Wants(o.Attempt.Direction) {
			d.record(AttemptAccepted{At: d.at(), Attempt: o.Attempt, AnswerBy: d.in.Now.Add(max(o.AnswerWithin, 0))})
			continue
		}
		if o.Accepted { // a rollback waits for no answer to an action: what was accepted may happen, and is undone
			o.Kind, o.Reason, o.Message = Unknown, ReasonNoAnswer, "it was accepted when the saga was rolling back already, which waits for no answer"
		}
		if o = d.limitOutputs(o); o.Kind == Succeeded {
			d.record(AttemptSucceeded{At: d.at(), Attempt: o.Attempt, Output: o.Output})
			continue
		}
		d.recordFailure(o)
	}
}

// ReasonOutputTooLarge is the reason of an action that happened, but whose output exceeds the limit
// of a step or of a saga. Later steps cannot read the output, so the action is compensated. It is
// not retried: a retry would have the same output.
const ReasonOutputTooLarge = "OutputTooLarge"

// limitOutputs turns a success into an unknown outcome if its output and the recorded outputs of
// the saga exceed MaxSagaOutputBytes.
func (d *decision) limitOutputs(o Outcome) Outcome {
	if o.Kind != Succeeded || len(o.Output) == 0 {
		return o
	}
	total := len(o.Output)
	for i := range d.state.Steps {
		total += len(d.state.Steps[i].Output)
	}
	return o.LimitOutputs(total)
}

// LimitOutputs returns the outcome unchanged if total is at most MaxSagaOutputBytes, and otherwise
// an unknown outcome without output. total is the size of all outputs of the saga in bytes,
// including the output of the outcome.
func (o Outcome) LimitOutputs(total int) Outcome {
	if total <= MaxSagaOutputBytes {
		return o
	}
	o.Kind, o.Over, o.Output, o.Reason = Unknown, true, nil, ReasonOutputTooLarge
	o.Message = fmt.Sprintf("the action was carried out, but with its output the outputs of the saga take %d bytes, and the limit is %d: keep only what later steps need", total, MaxSagaOutputBytes)
	return o
}

// recordFailure records an attempt that ended without success, and what follows it.
func (d *decision) recordFailure(o Outcome) {
	follows, retryAt := next(d.plan.effect(o.Attempt.EffectID), &d.state, o, d.in.Now, d.in.Random)
	d.record(AttemptFailed{
		At: d.at(), Attempt: o.Attempt, Outcome: o.Kind, Author: o.Author,
		Reason: clip(o.Reason, maxReasonBytes), Message: clip(o.Message, maxMessageBytes),
		Next: follows, RetryAt: retryAt, QuietUntil: d.quietUntil(o),
	})
}

// UndoMargin is the time between the end of an attempt's time and the start of its undo, if the
// outcome of the attempt is unknown. A call can reach its participant at the very end of that time.
// The end is measured by the clock of the operator that calls, the start by the clock of the operator
// that undoes. One second is twice the clock offset that CockroachDB tolerates by default.
const UndoMargin = time.Second

// quietUntil returns when the undo of an action with an unknown outcome may start. It returns zero if
// the undo may start now: the participant has responded or accepted, or UndoMargin has passed.
func (d *decision) quietUntil(o Outcome) time.Time {
	if o.Kind != Unknown || o.Attempt.Direction != Action || o.Accepted || o.Over || d.state.effect(o.Attempt.EffectID).Status != InProgress {
		return time.Time{}
	}
	if by := d.overBy(o.Attempt.EffectID).Add(UndoMargin); by.After(d.in.Now) {
		return by
	}
	return time.Time{}
}

// recordLost deals with attempts that another process started, or this one before it lost track: the
// participant may have been called. An attempt that the saga still wants is sent again, which is
// recorded before it is: if the participant cannot be reached then, only the second call is known not
// to have happened. An action is not sent again once the saga rolls back: whether it happened is
// unknown, and it is undone.
func (d *decision) recordLost() {
	for _, a := range d.in.Lost {
		f := d.state.effect(a.EffectID)
		switch {
		case f.Status != InProgress || f.Attempts != a.Number:
		case !d.state.Wants(a.Direction):
			d.recordFailure(Outcome{
				Attempt: a, Kind: Unknown, Reason: ReasonInterrupted,
				Message: "the operator that started it has gone, or does not know what became of it; it is not sent again, because the saga rolls back",
			})
		case d.state.Suspended: // it is sent again when the saga goes on
		default:
			d.record(AttemptResent{At: d.at(), Attempt: a, QuietUntil: d.in.Now.Add(d.plan.AttemptTimeout(a) + UndoMargin)})
		}
	}
}

// ReasonInterrupted is the reason of an action that was under way when its process ended, and that a
// rollback does not send again; also of one whose call was ended because its saga was cancelled or deleted.
const ReasonInterrupted = "Interrupted"

// overBy returns when the last call of an effect is over at the latest: it may be made until its
// recorded start is attemptTimeout ago, and ends then.
func (d *decision) overBy(id EffectID) time.Time {
	if def := d.plan.effect(id); def != nil {
		return d.state.effect(id).SentAt.Add(def.AttemptTimeout)
	}
	return time.Time{}
}

// startAttempt records the intent of the next attempt of a step's effect, if one more may start.
func (d *decision) startAttempt(step int, dir Direction) {
	if d.in.MaxStarts != nil && d.starts >= *d.in.MaxStarts {
		return
	}
	d.starts++
	s := &d.state.Steps[step]
	id := EffectID{Step: s.Name, Direction: dir}
	d.record(AttemptStarted{At: d.at(), Attempt: Attempt{EffectID: id, Number: s.Effect(dir).Attempts + 1}})
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
