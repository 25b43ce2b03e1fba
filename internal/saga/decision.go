package saga

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Verdict is what a person decides about a parked saga.
type Verdict string

// The verdicts.
const (
	// Retried tries the compensation again, with all its attempts, under the same key.
	Retried Verdict = "Retry"
	// MarkedCompensated takes the step for undone: the person has undone it by hand.
	MarkedCompensated Verdict = "MarkCompensated"
	// Skipped goes on without undoing the step: what it did stays.
	Skipped Verdict = "Skip"
)

// Verdicts are all of them.
var Verdicts = []Verdict{Retried, MarkedCompensated, Skipped}

// Decision is a person's word on a parked saga.
type Decision struct {
	// ID names the decision. The same one again is the same success, and changes nothing; empty means
	// that it has none. At most 256 bytes.
	ID string
	// About is the version of the stream at which the saga was parked, as State.Parked has it; zero
	// means the present parking, whichever it is.
	About int64
	// Step is the step whose compensation failed; empty for all of them.
	Step    string
	Verdict Verdict
	// By is who decided, Reason why, for those who read the history; at most 1 KiB.
	By, Reason string
}

// DecisionError says why a decision cannot be taken.
type DecisionError struct {
	// Field is the part of the decision that is wrong: step, verdict, reason, id or about. It is empty
	// if the decision may be right and the saga is not parked.
	Field   string
	Message string
}

func (e *DecisionError) Error() string { return e.Message }

// Decided returns the event by which a decision counts, or a *DecisionError. A decision that was made
// before, by its ID, is not made again: recorded is true then, and there is nothing to append. It is
// pure, as Decide is.
func Decided(s State, d Decision, now time.Time) (e DecisionMade, recorded bool, err error) {
	e = DecisionMade{At: At{At: now}, Step: d.Step, ID: d.ID, Verdict: d.Verdict, By: clip(d.By, maxMessageBytes), Reason: d.Reason}
	if old := s.decision(d.ID); old != nil {
		if old.Step != d.Step || old.Verdict != d.Verdict || d.About != 0 && d.About != old.About {
			return e, false, &DecisionError{Field: "id", Message: fmt.Sprintf("the id %q was used for another decision: %s on step %q; a new decision needs a new id", d.ID, old.Verdict, old.Step)}
		}
		return *old, true, nil
	}
	if err := s.checkDecision(d); err != nil {
		return e, false, err
	}
	e.About = s.Parked.Version
	return e, false, nil
}

// decision returns the decision of an id; nil if none was made.
func (s *State) decision(id string) *DecisionMade {
	for i := range s.Decisions {
		if id != "" && s.Decisions[i].ID == id {
			return &s.Decisions[i]
		}
	}
	return nil
}

// maxIDBytes bounds the id of a decision.
const maxIDBytes = 256

// checkDecision returns a *DecisionError if a decision cannot be made now.
func (s *State) checkDecision(d Decision) error {
	wrong := func(field, format string, args ...any) error {
		return &DecisionError{Field: field, Message: fmt.Sprintf(format, args...)}
	}
	switch d.Verdict {
	case Retried, MarkedCompensated, Skipped:
	default:
		return wrong("verdict", "%q is no verdict; there are %s, %s and %s", d.Verdict, Retried, MarkedCompensated, Skipped)
	}
	if len(d.Reason) > maxMessageBytes {
		return wrong("reason", "the reason is %d bytes long; the limit is %d", len(d.Reason), maxMessageBytes)
	}
	if strings.ContainsRune(d.Reason, 0) || !utf8.ValidString(d.Reason) {
		return wrong("reason", "the reason holds a NUL, or is not UTF-8")
	}
	if len(d.ID) > maxIDBytes || strings.ContainsRune(d.ID, 0) || !utf8.ValidString(d.ID) {
		return wrong("id", "the id is longer than %d bytes, holds a NUL, or is not UTF-8", maxIDBytes)
	}
	if d.Step != "" && s.Step(d.Step) == nil {
		return wrong("step", "the saga has no step %q", d.Step)
	}
	if s.Phase != CompensationFailed || s.Parked == nil {
		return wrong("", "the saga is %s: only one that is %s waits for a decision", s.Phase, CompensationFailed)
	}
	if d.About != 0 && d.About != s.Parked.Version {
		return wrong("about", "the decision is about the parking at version %d, and the saga has gone on and is parked anew at version %d, at step %q: look at it again", d.About, s.Parked.Version, s.Parked.Step)
	}
	if d.Step != "" && s.Step(d.Step).Compensation.Status != Parked {
		return wrong("step", "the compensation of step %q has not failed; that of step %q has", d.Step, s.Parked.Step)
	}
	return nil
}

// decided takes a saga back into its rollback with a decision about its parked effects.
func (s *State) decided(e DecisionMade) {
	s.Phase, s.Parked = Compensating, nil
	s.Decisions = append(slices.Clip(s.Decisions), e)
	for id, f := range s.effects {
		if f.Status == Parked && (e.Step == "" || e.Step == id.Step) {
			f.decided(e)
		}
	}
}

func (f *EffectState) decided(e DecisionMade) {
	switch e.Verdict {
	case Retried:
		f.Status, f.RetryAt, f.EndedAt, f.Before, f.Unsent = Waiting, e.DecidedAt(), time.Time{}, f.Attempts, 0
		f.KeySince, f.Refusals = time.Time{}, 0 // a person takes the risk of a key that is forgotten
	default:
		f.Status, f.InDoubt, f.EndedAt = Done, false, e.DecidedAt()
		f.Reason, f.Message = string(e.Verdict), clip("decided by "+e.By+": "+e.Reason, maxMessageBytes)
	}
}
