package saga

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Abandonment says who abandoned a saga, and why.
type Abandonment struct {
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// AbandonError says why a saga cannot be abandoned.
type AbandonError struct {
	// Field is the invalid field, reason. It is empty if the saga has finished.
	Field   string
	Message string
}

func (e *AbandonError) Error() string { return e.Message }

// CheckAbandonment returns an *AbandonError if a saga cannot be abandoned for a reason, which has 1 to
// 1,024 bytes.
func CheckAbandonment(reason string) error {
	wrong := func(format string, args ...any) error {
		return &AbandonError{Field: "reason", Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case strings.TrimSpace(reason) == "":
		return wrong("it is required: it tells later readers why effects of the saga may remain")
	case len(reason) > maxMessageBytes:
		return wrong("it is %d bytes long; the limit is %d", len(reason), maxMessageBytes)
	case strings.ContainsRune(reason, 0) || !utf8.ValidString(reason):
		return wrong("it has a NUL, or is not UTF-8")
	}
	return nil
}

// Abandon returns the event by which a person abandons a saga, in any phase that is not terminal: the
// operator does nothing more for it. It fails with an [*AbandonError]. If the saga was abandoned before,
// abandoned is true and there is nothing to append. Abandon is pure, as Decide is.
func Abandon(s State, by, reason string, now time.Time) (e SagaAbandoned, abandoned bool, err error) {
	if err := CheckAbandonment(reason); err != nil {
		return e, false, err
	}
	switch {
	case s.Phase == Abandoned:
		return e, true, nil
	case s.Phase.Terminal():
		return e, false, &AbandonError{Message: fmt.Sprintf("the saga is %s and cannot be abandoned; delete it when you like", s.Phase)}
	}
	return SagaAbandoned{At: At{At: now}, By: clip(by, maxMessageBytes), Reason: reason}, false, nil
}

// abandon ends a saga as it is. The outcomes of attempts under way stay unknown.
func (s *State) abandon(e SagaAbandoned) {
	s.end(Abandoned, e.DecidedAt())
	s.Parked, s.Abandoned = nil, &Abandonment{By: e.By, Reason: e.Reason, At: e.DecidedAt()}
	for id, f := range s.effects {
		if f.Settled() {
			continue
		}
		f.InDoubt = f.InDoubt || f.UnderWay()
		f.RetryAt, f.AnswerBy, f.EndedAt = time.Time{}, time.Time{}, e.DecidedAt()
		if f.Status = Exhausted; id.Direction == Compensation {
			f.Status = Parked
		}
	}
}

// MayRemain returns the steps whose actions may have happened and have not been undone, in the order of
// the definition.
func (s *State) MayRemain() []string {
	var names []string
	for i := range s.Steps {
		if step := &s.Steps[i]; step.Do.MayHaveHappened() && step.Compensation.Status != Done {
			names = append(names, step.Name)
		}
	}
	return names
}
