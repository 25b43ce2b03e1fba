package saga

import "time"

// A reply is what a participant says later about an attempt that it accepted. It is to the effect:
// whichever attempt the participant had in mind, the reply ends the latest one. This file holds the
// rule for which replies count.

// ReasonNoAnswer is the reason of an attempt that was accepted and got no reply in time, or whose
// reply is not waited for any more.
const ReasonNoAnswer = "NoAnswer"

// Awaited returns the effects for which a reply is looked for: an attempt was accepted.
func (s *State) Awaited() []EffectID {
	var ids []EffectID
	for id, f := range s.effects {
		if f.Status == Accepted {
			ids = append(ids, id)
		}
	}
	return ids
}

// Expects reports whether a reply to an effect is kept: an attempt is under way or has been
// accepted, or another is to follow, and the saga still wants the effect. A kept reply belongs to
// the round, the number of attempts before a person last had the effect retried.
func (s *State) Expects(id EffectID) (round int, expected bool) {
	f := s.effect(id)
	return f.Before, s.wants(id.Direction) && !f.Settled()
}

// RepliedAttempt returns the attempt that a kept reply ends; false if the effect waits for no reply
// of that round.
func (s *State) RepliedAttempt(id EffectID, round int) (Attempt, bool) {
	f := s.effect(id)
	return Attempt{EffectID: id, Number: f.Attempts}, f.Status == Accepted && f.Before == round
}

// giveUpReplies ends the attempts whose reply has not come in time. Their outcome is unknown.
func (d *decision) giveUpReplies() {
	for id, f := range d.state.effects {
		if f.Status != Accepted || d.in.Now.Before(f.AnswerBy) {
			continue
		}
		d.recordFailure(Outcome{
			Attempt: Attempt{EffectID: id, Number: f.Attempts}, Kind: Unknown, Reason: ReasonNoAnswer,
			Message: "it was accepted, and no answer came by " + f.AnswerBy.Format(time.RFC3339),
		})
	}
}
