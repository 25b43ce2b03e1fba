package saga

import (
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Next is what follows an attempt that failed. It is recorded with the failure, so that a fold
// repeats the decision and does not make it again.
type Next string

// What follows an attempt that failed.
const (
	// NextRetry: another attempt starts at RetryAt.
	NextRetry Next = "Retry"
	// NextReject: the action ends with the participant's definite no.
	NextReject Next = "Reject"
	// NextExhaust: the action ends because no attempt is left, or because the saga rolls back.
	NextExhaust Next = "Exhaust"
	// NextSettle: the action is repeated until a definite word comes, although the saga rolls back.
	// Nothing decides it yet: it is for steps that settle a doubt before they are undone.
	NextSettle Next = "Settle"
	// NextPark: the effect has failed permanently, and a person has to decide. Today only
	// compensations park.
	NextPark Next = "Park"
)

// next decides what follows an attempt that ended without success, and when a retry starts. It is
// the only place that does. def is nil if the plan does not have the effect.
func next(def *Effect, s *State, o Outcome, now time.Time, random uint64) (Next, time.Time) {
	dir := o.Attempt.Direction
	if def != nil && o.Kind != Rejected && s.wants(dir) {
		if counted := o.Attempt.Number - s.effect(o.Attempt.EffectID).Before; counted < def.Retry.MaxAttempts {
			return NextRetry, now.Add(pause(def.Retry, o, counted, random))
		}
	}
	switch {
	case dir == Compensation:
		return NextPark, time.Time{}
	case o.Kind == Rejected:
		return NextReject, time.Time{}
	default:
		return NextExhaust, time.Time{}
	}
}

// pause draws the pause before the next attempt, when a number of attempts count: full jitter, but
// not less than the participant asked for, and never more than the cap.
func pause(r Retry, o Outcome, attempts int, random uint64) time.Duration {
	ceiling := r.MaxBackoff
	if doublings := attempts - 1; doublings < 62 && r.InitialBackoff <= r.MaxBackoff>>doublings {
		ceiling = r.InitialBackoff << doublings
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(o.Attempt.Key(""))) // a hash never fails
	drawn := time.Duration(rand.New(rand.NewPCG(random, h.Sum64())).Float64() * float64(ceiling))
	// Times are kept to the microsecond: a finer pause would end before the recorded time.
	return max(drawn, min(o.RetryAfter, r.MaxBackoff)).Truncate(time.Microsecond)
}
