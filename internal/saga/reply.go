package saga

import (
	"encoding/json"
	"time"
)

// A reply is what a participant says later about an attempt that it accepted, by a callback or by a
// broker. It is to the effect: whichever attempt the participant had in mind, the reply ends the
// latest one. A reply counts for every effect that is moving, whether or not its acceptance is known:
// the response that said so may have been lost. It counts in its round alone: after a person had the
// effect retried, what was said before does not. This file holds that rule.

// ReasonNoAnswer is the reason of an attempt that was accepted and got no reply in time, or whose
// reply is not waited for any more.
const ReasonNoAnswer = "NoAnswer"

// Awaited returns the effects for which a reply is looked for: they are moving, and their participant
// can reply or has accepted an attempt.
func (p *Plan) Awaited(s State) []EffectID {
	var ids []EffectID
	for id, f := range s.effects {
		if f.Status == Accepted || !f.Settled() && f.Attempts > f.Before && p.replied(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// replied reports whether the participant of an effect can reply later. Every kind of action says so
// by one of two settings: completion: Callback, or reply.
func (p *Plan) replied(id EffectID) bool {
	i, ok := p.index[id.Step]
	return ok && p.steps[i].replied[id.Direction]
}

// repliesLater reads the settings of an effect. Settings that are not an object are refused elsewhere.
func repliesLater(with json.RawMessage) bool {
	var settings struct {
		Completion json.RawMessage `json:"completion"`
		Reply      json.RawMessage `json:"reply"`
	}
	if json.Unmarshal(with, &settings) != nil {
		return false
	}
	return string(settings.Completion) == `"Callback"` || len(settings.Reply) > 0
}

// Expects reports whether a reply to an effect is kept: an attempt is under way or has been
// accepted, or another is to follow, and the saga still wants the effect. A kept reply belongs to
// the round, the number of attempts before a person last had the effect retried.
func (s *State) Expects(id EffectID) (round int, expected bool) {
	f := s.effect(id)
	return f.Before, s.Wants(id.Direction) && !f.Settled()
}

// RepliedAttempt returns the attempt that a kept reply ends; false if the effect is at rest, or if the
// reply is of another round.
func (s *State) RepliedAttempt(id EffectID, round int) (Attempt, bool) {
	f := s.effect(id)
	return Attempt{EffectID: id, Number: f.Attempts}, !f.Settled() && f.Before == round && f.Attempts > f.Before
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
