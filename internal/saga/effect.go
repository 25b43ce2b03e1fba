package saga

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Direction tells an action from the compensation that undoes it.
type Direction string

// The two directions, and how they appear in idempotency keys and events.
const (
	Action       Direction = "action"
	Compensation Direction = "compensation"
)

// EffectID names one effect of a saga. It never changes, so everything that is recorded about an
// effect carries it.
type EffectID struct {
	Step string `json:"step"`
	// Item is the index, in decimal, of the element of the list that the step runs over. It is
	// empty for a step that runs once. No step runs over a list yet.
	Item      string    `json:"item,omitempty"`
	Direction Direction `json:"direction"`
}

// Text names the step and the item: charge, or charge[3]. Idempotency keys and the columns that
// hold a step contain this text.
func (id EffectID) Text() string {
	if id.Item == "" {
		return id.Step
	}
	return id.Step + "[" + id.Item + "]"
}

// ParseEffectID reads what Text returned.
func ParseEffectID(text string, dir Direction) (EffectID, error) {
	id := EffectID{Step: text, Direction: dir}
	if step, rest, isItem := strings.Cut(text, "["); isItem {
		id.Step, id.Item = step, strings.TrimSuffix(rest, "]")
		n, err := strconv.ParseUint(id.Item, 10, 31)
		if err != nil || id.Text() != text || strconv.FormatUint(n, 10) != id.Item {
			return EffectID{}, fmt.Errorf("reading the effect %.80q: the index is not a number in brackets", text)
		}
	}
	switch {
	case id.Step == "":
		return EffectID{}, fmt.Errorf("reading the effect %.80q: the step has no name", text)
	case dir != Action && dir != Compensation:
		return EffectID{}, fmt.Errorf("reading the effect %.80q: the direction %.80q must be %s or %s", text, dir, Action, Compensation)
	}
	return id, nil
}

// Key is the idempotency key of the effect in the saga with a uid. It is derived, never drawn, and
// all attempts of the effect share it.
func (id EffectID) Key(uid string) string {
	return uid + "/" + id.Text() + "/" + string(id.Direction)
}

func (id EffectID) String() string {
	return fmt.Sprintf("the %s of step %q", id.Direction, id.Text())
}

// Attempt names one call of a participant.
type Attempt struct {
	EffectID
	// Number counts the attempts of one effect from 1.
	Number int `json:"number"`
}

func (a Attempt) String() string { return fmt.Sprintf("attempt %d of %s", a.Number, a.EffectID) }

// EffectStatus is where one effect (a step's action or its compensation) stands.
type EffectStatus string

// The states of an effect.
const (
	// NotStarted: never sent.
	NotStarted EffectStatus = ""
	// InProgress: an attempt has been started and has not ended.
	InProgress EffectStatus = "InProgress"
	// Accepted: the participant has taken the attempt and answers later. No call is under way.
	Accepted EffectStatus = "Accepted"
	// Waiting: an attempt failed and another starts at RetryAt.
	Waiting EffectStatus = "Waiting"
	// Done: it happened.
	Done EffectStatus = "Done"
	// Refused: an action was rejected.
	Refused EffectStatus = "Refused"
	// Exhausted: no attempt is left. EffectState.InDoubt tells whether it may have happened.
	Exhausted EffectStatus = "Exhausted"
	// Parked: it failed permanently, and a person has to decide.
	Parked EffectStatus = "Parked"
)

// EffectState is the fold of all events about one effect.
type EffectState struct {
	Status   EffectStatus `json:"status,omitempty"`
	Attempts int          `json:"attempts,omitempty"`
	// Before is the number of attempts that were made before a person last had the effect retried.
	// They do not count against its limit.
	Before int `json:"before,omitempty"`
	// InDoubt is true from an attempt whose outcome is unknown until the participant's definite
	// word under the same key; see doubtAfter.
	InDoubt bool `json:"inDoubt,omitempty"`
	// Unsent is the number of attempts since then of which the operator knows that it did not call the
	// participant. They do not count, either.
	Unsent int `json:"unsent,omitempty"`
	// SentAt is when the last attempt was recorded as started, or as sent again.
	SentAt time.Time `json:"sentAt,omitzero"`
	// QuietUntil is when the undo of an effect in doubt may start: UndoMargin after the end of its
	// latest call.
	QuietUntil time.Time `json:"quietUntil,omitzero"`
	// Refusals counts the responses that rejected a compensation without being the participant's
	// word. It is retried all the same, but a person may have to look.
	Refusals  int       `json:"refusals,omitempty"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	// KeySince is when the key was sent first, or first after a person had the effect retried. A
	// participant may have forgotten a key that is too old.
	KeySince time.Time `json:"keySince,omitzero"`
	EndedAt  time.Time `json:"endedAt,omitzero"`
	RetryAt  time.Time `json:"retryAt,omitzero"`
	// AnswerBy is when the wait for a reply ends, while the status is Accepted.
	AnswerBy time.Time `json:"answerBy,omitzero"`
	Reason   string    `json:"reason,omitempty"`
	Message  string    `json:"message,omitempty"`
}

// UnderWay reports whether an attempt has been started and has not ended.
func (f *EffectState) UnderWay() bool { return f.Status == InProgress || f.Status == Accepted }

// Settled reports whether the effect is at rest: no attempt is under way, and none follows by
// itself. An effect that was never sent is at rest, too, and one at rest may be in doubt.
func (f *EffectState) Settled() bool { return !f.UnderWay() && f.Status != Waiting }

// Satisfied reports whether what depends on the effect may go on.
func (f *EffectState) Satisfied() bool { return f.Status == Done }

// MayHaveHappened reports whether there may be something to undo.
func (f *EffectState) MayHaveHappened() bool { return f.Status == Done || f.InDoubt }

// FailedForGood reports whether the effect has ended without success, and no attempt follows by
// itself.
func (f *EffectState) FailedForGood() bool {
	return f.Status == Refused || f.Status == Exhausted || f.Status == Parked
}

// due reports whether the pause before the next attempt is over.
func (f *EffectState) due(now time.Time) bool {
	return f.Status == Waiting && !now.Before(f.RetryAt)
}

func (f *EffectState) started(e AttemptStarted) {
	if f.Attempts == 0 {
		f.StartedAt = e.DecidedAt()
	}
	if f.KeySince.IsZero() {
		f.KeySince = e.DecidedAt()
	}
	f.Status, f.Attempts, f.RetryAt, f.AnswerBy = InProgress, e.Number, time.Time{}, time.Time{}
	f.SentAt = e.DecidedAt()
}

// resent: another call may have been made for the attempt, and one more is.
func (f *EffectState) resent(e AttemptResent) {
	f.InDoubt, f.SentAt = true, e.DecidedAt()
	f.quiet(e.QuietUntil)
}

// quiet remembers until when a call may be under way.
func (f *EffectState) quiet(until time.Time) {
	if until.After(f.QuietUntil) {
		f.QuietUntil = until
	}
}

func (f *EffectState) succeeded(e AttemptSucceeded) {
	f.Status, f.InDoubt, f.EndedAt, f.AnswerBy = Done, false, e.DecidedAt(), time.Time{}
	f.RetryAt, f.QuietUntil = time.Time{}, time.Time{}
	f.Reason, f.Message = "", ""
}

// doubtAfter reports whether the effect is in doubt after an attempt that failed. Only the
// participant's own word settles a doubt.
func (f *EffectState) doubtAfter(outcome OutcomeKind, author Author) bool {
	switch {
	case outcome == Unknown:
		return true
	case outcome == Rejected && author == AuthorParticipant:
		return false
	default:
		return f.InDoubt
	}
}

func (f *EffectState) failed(e AttemptFailed) {
	f.Reason, f.Message, f.AnswerBy = e.Reason, e.Message, time.Time{}
	if f.InDoubt = f.doubtAfter(e.Outcome, e.Author); f.InDoubt {
		f.quiet(e.QuietUntil)
	} else {
		f.QuietUntil = time.Time{}
	}
	if e.Outcome == NotSent {
		f.Unsent++
	}
	if e.Direction == Compensation && e.Outcome == Rejected {
		f.Refusals++
	}
	f.Status, f.RetryAt = statusAfter[e.Next], e.RetryAt
	if f.Settled() {
		f.EndedAt = e.DecidedAt()
	}
}

// statusAfter is the status of an effect after each thing that can follow a failed attempt.
var statusAfter = map[Next]EffectStatus{
	NextRetry:   Waiting,
	NextReject:  Refused,
	NextExhaust: Exhausted,
	NextSettle:  Waiting,
	NextPark:    Parked,
}
