package engine

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/saga"
)

// smallReplyBytes is the size up to which a reply is evaluated in Advance, if its output only has
// references.
const smallReplyBytes = 2 << 10

// answers returns the outcomes of the attempts that were accepted and have been answered. Which
// attempt an answer ends is the core's rule; see State.RepliedAttempt. The outputs of larger answers are
// evaluated besides: answers returns ErrPreparing until they are among the outcomes that wait.
func (e *Engine) answers(ctx context.Context, r *running, plan *saga.Plan) ([]saga.Outcome, error) {
	if err := r.takeReplyError(); err != nil {
		return nil, err
	}
	awaited := plan.Awaited(r.state)
	if len(awaited) == 0 {
		return nil, nil
	}
	uid, err := uuid.Parse(r.key.UID)
	if err != nil {
		return nil, fmt.Errorf("reading the saga's uid: %w", err)
	}
	texts := make([]string, len(awaited))
	for i, id := range awaited {
		texts[i] = id.Text()
	}
	all, err := e.Store.Answers(ctx, uid, smallReplyBytes, texts...)
	if err != nil {
		return nil, err
	}
	var outcomes []saga.Outcome
	preparing := false
	for i := range all {
		id, err := saga.ParseEffectID(all[i].Step, saga.Direction(all[i].Direction))
		if err != nil {
			continue // it is for no effect of a saga
		}
		attempt, ok := r.state.RepliedAttempt(id, all[i].Round)
		if !ok || r.hasReplyOutcome(attempt) {
			continue
		}
		if o, ok := e.smallReply(ctx, r, plan, &all[i], attempt); ok {
			outcomes = append(outcomes, o)
			continue
		}
		p := reply{attempt: attempt, uid: uid, answer: all[i]}
		if e.accepting() {
			preparing = true
			e.startReply(r, plan, p)
			continue
		}
		o, err := e.evaluateReply(ctx, r.key, replyInput(r, plan), &p) // no later Advance would evaluate it
		if err != nil {
			return nil, err
		}
		outcomes = append(outcomes, o)
	}
	if preparing {
		return nil, ErrPreparing
	}
	return outcomes, nil
}

// decodeReply returns the response that output expressions read of a reply. Its body stays a
// json.RawMessage; [Engine.evaluate] decodes it if the step has an output.
func decodeReply(a *eventstore.Answer) (map[string]any, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(a.Response, &fields); err != nil || fields == nil {
		return nil, fmt.Errorf("the reply to %s is not a JSON object", a.Step)
	}
	response := make(map[string]any, len(fields))
	for name, raw := range fields {
		if name == "body" {
			response[name] = raw
			continue
		}
		value, err := expression.Decode(raw)
		if err != nil {
			return nil, err
		}
		response[name] = value
	}
	return response, nil
}

// Answered calls yield with the key of every saga that has an answer, or a decision, which nobody has been told of, until there is none. Whoever drives the engine asks now and
// then, and when something has been committed.
func (e *Engine) Answered(ctx context.Context, yield func(Key)) error {
	const page = 100
	for {
		some, err := e.Store.TakeAnswered(ctx, page)
		if err != nil {
			return fmt.Errorf("looking for sagas with new answers: %w", err)
		}
		for _, s := range some {
			yield(Key{Namespace: s.Namespace, Name: s.Name, UID: s.UID.String()})
		}
		if len(some) == 0 {
			return nil
		}
	}
}
