package saga

import (
	"cmp"
	"fmt"
	"time"
)

// Limits are what an administrator allows new sagas. A zero field allows everything that a definition can
// have. A saga that has started is not checked again.
type Limits struct {
	// MaxAttemptTimeout is the maximum attemptTimeout. A call that hangs holds a place until then.
	MaxAttemptTimeout time.Duration
	// MinBackoff is the minimum of initialBackoff and maxBackoff.
	MinBackoff time.Duration
}

// Check returns where a definition exceeds the limits.
func (l Limits) Check(def *Definition) []FieldError {
	var wrong []FieldError
	for i := range def.Steps {
		step, field := &def.Steps[i], fmt.Sprintf("steps[%d]", i)
		wrong = l.checkEffect(wrong, field, &step.Do)
		if step.Compensation != nil {
			wrong = l.checkEffect(wrong, field+".compensation", step.Compensation)
		}
	}
	return wrong
}

func (l Limits) checkEffect(wrong []FieldError, field string, e *Effect) []FieldError {
	if l.MaxAttemptTimeout > 0 && e.AttemptTimeout > l.MaxAttemptTimeout {
		wrong = append(wrong, FieldError{Field: field + ".attemptTimeout", Message: fmt.Sprintf(
			"%s is longer than this operator allows (%s; its flag --max-attempt-timeout): have a participant that takes longer accept the request and reply later",
			e.AttemptTimeout, l.MaxAttemptTimeout)})
	}
	wrong = l.checkBackoff(wrong, field+".retry.initialBackoff", cmp.Or(e.Retry.InitialBackoff, leastBackoff)) // as pause takes it
	return l.checkBackoff(wrong, field+".retry.maxBackoff", e.Retry.MaxBackoff)
}

func (l Limits) checkBackoff(wrong []FieldError, field string, d time.Duration) []FieldError {
	if d >= l.MinBackoff {
		return wrong
	}
	return append(wrong, FieldError{Field: field, Message: fmt.Sprintf("%s is shorter than this operator allows (%s; its flag --min-backoff)", d, l.MinBackoff)})
}
