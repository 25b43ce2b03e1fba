package manifest

import (
	"time"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/saga"
)

// persistence is how persistently an effect is tried when its manifest does not say.
type persistence struct {
	attempts                   int
	initialBackoff, maxBackoff time.Duration
}

var (
	actionDefaults = persistence{saga.DefaultActionAttempts, saga.DefaultInitialBackoff, saga.DefaultMaxBackoff}
	// A compensation is tried longer: when it fails for good, a person has to come.
	compensationDefaults = persistence{saga.DefaultCompensationAttempts, saga.DefaultCompensationInitBackoff, saga.DefaultCompensationMaxBackoff}
)

// applied returns an effect that says everything but its kind and settings. Of the two backoffs the one that is given pulls the default of the
// other along, so that giving one is never a contradiction.
func (p persistence) applied(in *v1.Effect) saga.Effect {
	retry := saga.Retry{MaxAttempts: p.attempts, InitialBackoff: p.initialBackoff, MaxBackoff: p.maxBackoff}
	if r := in.Retry; r != nil {
		if r.MaxAttempts != 0 {
			retry.MaxAttempts = int(r.MaxAttempts)
		}
		switch initial, longest := r.InitialBackoff, r.MaxBackoff; {
		case initial != nil && longest != nil:
			retry.InitialBackoff, retry.MaxBackoff = initial.Duration, longest.Duration
		case initial != nil:
			retry.InitialBackoff, retry.MaxBackoff = initial.Duration, max(p.maxBackoff, initial.Duration)
		case longest != nil:
			retry.InitialBackoff, retry.MaxBackoff = min(p.initialBackoff, longest.Duration), longest.Duration
		}
	}
	out := saga.Effect{Retry: retry, AttemptTimeout: saga.DefaultAttemptTimeout}
	if in.AttemptTimeout != nil {
		out.AttemptTimeout = in.AttemptTimeout.Duration
	}
	return out
}
