package saga

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"
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
	dir, f := o.Attempt.Direction, s.effect(o.Attempt.EffectID)
	final := f.final(o)
	if def != nil && !final && s.Wants(dir) && o.Reason != ReasonKeyExpired && o.Reason != ReasonOutputTooLarge {
		switch counted := o.Attempt.Number - f.Before - f.Unsent; {
		case o.Kind == NotSent:
			return NextRetry, now.Add(pause(def.Retry, o, f.Unsent+1, random))
		case counted < def.Retry.MaxAttempts:
			return NextRetry, now.Add(pause(def.Retry, o, counted, random))
		}
	}
	switch {
	case dir == Compensation:
		return NextPark, time.Time{}
	case final:
		return NextReject, time.Time{}
	default:
		return NextExhaust, time.Time{}
	}
}

// final reports whether a no ends the effect at once. What the participant vouches for does, and what
// could not be sent at all. Without that, an action ends, because it does not have to succeed, but not
// by a response that gateways give as long as an earlier attempt may have happened; and a compensation
// does not end, because it has to succeed.
func (f *EffectState) final(o Outcome) bool {
	switch {
	case o.Kind != Rejected:
		return false
	case o.Author == AuthorParticipant, o.Author == AuthorOperator:
		return true
	case o.Attempt.Direction == Compensation:
		return false
	case o.Author == AuthorGateway:
		return !f.InDoubt
	default:
		return true
	}
}

// ReasonKeyExpired is the reason of an effect in doubt that is not sent again, because the participant
// may have forgotten its key: it could do the effect twice.
const ReasonKeyExpired = "KeyExpired"

// keyExpired reports whether the key of an effect is so old that the participant may have forgotten it.
// Without a retention keys live for ever.
func (f *EffectState) keyExpired(now time.Time, retention time.Duration) bool {
	return retention > 0 && !f.KeySince.IsZero() && !now.Before(f.KeySince.Add(retention))
}

// giveUpKeys ends the effects that may have happened and would be sent again under a key which is too
// old, because another attempt is due or because nobody knows what became of the last one: an action
// is undone, a compensation is parked.
func (d *decision) giveUpKeys() {
	if d.state.Suspended {
		return
	}
	lost := func(id EffectID, f *EffectState) bool {
		return f.Status == InProgress && slices.Contains(d.in.Lost, Attempt{EffectID: id, Number: f.Attempts})
	}
	for id, f := range d.state.effects {
		again := f.InDoubt && f.due(d.in.Now) || lost(id, f)
		if !again || !d.state.Wants(id.Direction) || !f.keyExpired(d.in.Now, d.in.KeyRetention) {
			continue
		}
		d.recordFailure(Outcome{
			Attempt: Attempt{EffectID: id, Number: f.Attempts}, Kind: Unknown, Reason: ReasonKeyExpired,
			Message: "its key was first sent at " + f.KeySince.Format(time.RFC3339) + ", and participants remember keys for " + d.in.KeyRetention.String() +
				": it is not sent again, because it may have happened and could happen twice",
		})
	}
}

// leastBackoff is the ceiling of the first pause if a definition asks for none.
const leastBackoff = 100 * time.Millisecond

// pause draws the pause before the next attempt, when a number of attempts count: full jitter, but
// not less than the participant asked for, and never more than the cap.
func pause(r Retry, o Outcome, attempts int, random uint64) time.Duration {
	ceiling, initial := r.MaxBackoff, r.InitialBackoff
	if initial == 0 { // and not no pause at all, until the number of attempts has made it the cap
		initial = min(leastBackoff, r.MaxBackoff)
	}
	if doublings := max(attempts, 1) - 1; doublings < 62 && initial <= r.MaxBackoff>>doublings {
		ceiling = initial << doublings
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(o.Attempt.Key(""))) // a hash never fails
	drawn := time.Duration(rand.New(rand.NewPCG(random, h.Sum64())).Float64() * float64(ceiling))
	// Times are kept to the microsecond: a finer pause would end before the recorded time.
	return max(drawn, min(o.RetryAfter, r.MaxBackoff)).Truncate(time.Microsecond)
}
