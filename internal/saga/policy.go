package saga

import (
	"hash/fnv"
	"math/rand/v2"
	"time"
)

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
	// Times are kept to the microsecond: a pause that is finer would end a moment before the recorded time.
	return max(drawn, min(o.RetryAfter, r.MaxBackoff)).Truncate(time.Microsecond)
}
