package saga

import (
	"fmt"
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
	// Step is the step whose compensation failed; empty for all of them.
	Step    string
	Verdict Verdict
	// By is who decided, Reason why, for those who read the history; at most 1 KiB.
	By, Reason string
}

// DecisionError says why a decision cannot be taken.
type DecisionError struct {
	// Field is the part of the decision that is wrong: step, verdict or reason. It is empty where the decision may be right and the saga is not parked.
	Field   string
	Message string
}

func (e *DecisionError) Error() string { return e.Message }

// Decided returns the event by which a decision counts, or a *DecisionError. It is pure, as Decide is.
func Decided(s State, d Decision, now time.Time) (DecisionMade, error) {
	e := DecisionMade{At: At{At: now}, Step: d.Step, Verdict: d.Verdict, By: clip(d.By, maxMessageBytes), Reason: d.Reason}
	wrong := func(field, format string, args ...any) (DecisionMade, error) {
		return e, &DecisionError{Field: field, Message: fmt.Sprintf(format, args...)}
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
	if d.Step != "" && s.Step(d.Step) == nil {
		return wrong("step", "the saga has no step %q", d.Step)
	}
	if s.Phase != CompensationFailed {
		return wrong("", "the saga is %s: only one that is %s waits for a decision", s.Phase, CompensationFailed)
	}
	if d.Step != "" && s.Step(d.Step).Compensation.Status != Parked {
		return wrong("step", "the compensation of step %q has not failed; that of step %q has", d.Step, s.Parked.Step)
	}
	return e, nil
}

// decided takes a saga back into its rollback with a decision about its parked effects.
func (s *State) decided(e DecisionMade) {
	s.Phase, s.Parked = Compensating, nil
	for id, f := range s.effects {
		if f.Status == Parked && (e.Step == "" || e.Step == id.Step) {
			f.decided(e)
		}
	}
}

func (f *EffectState) decided(e DecisionMade) {
	switch e.Verdict {
	case Retried:
		f.Status, f.RetryAt, f.EndedAt, f.Before = Waiting, e.DecidedAt(), time.Time{}, f.Attempts
	default:
		f.Status, f.InDoubt, f.EndedAt = Done, false, e.DecidedAt()
		f.Reason, f.Message = string(e.Verdict), clip("decided by "+e.By+": "+e.Reason, maxMessageBytes)
	}
}
