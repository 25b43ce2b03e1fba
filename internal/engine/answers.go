package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/saga"
)

// answers returns the outcomes of the attempts that were accepted and have been answered. Which
// attempt an answer ends is the core's rule; see State.RepliedAttempt.
func (e *Engine) answers(ctx context.Context, r *running, plan *saga.Plan) ([]saga.Outcome, error) {
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
	all, err := e.Store.Answers(ctx, uid, texts...)
	if err != nil {
		return nil, err
	}
	var outcomes []saga.Outcome
	for i := range all {
		id, err := saga.ParseEffectID(all[i].Step, saga.Direction(all[i].Direction))
		if err != nil {
			continue // it is for no effect of a saga
		}
		if attempt, ok := r.state.RepliedAttempt(id, all[i].Round); ok {
			o, err := e.answered(ctx, r, plan, &all[i], attempt)
			if err != nil {
				return nil, err
			}
			outcomes = append(outcomes, o)
		}
	}
	return outcomes, nil
}

// replyMemoryTimeout bounds how long a reply waits for memory in one Advance. A reply that gets
// none is evaluated by a later Advance.
const replyMemoryTimeout = time.Second

// answered returns the outcome of an attempt that was accepted and has a reply. It returns an error
// that wraps errNoMemory if there was no memory to evaluate the reply.
func (e *Engine) answered(ctx context.Context, r *running, plan *saga.Plan, a *eventstore.Answer, attempt saga.Attempt) (saga.Outcome, error) {
	o := saga.Outcome{Attempt: attempt, Kind: saga.Succeeded, Reply: true}
	if a.Rejected {
		o.Kind, o.Author, o.Reason, o.Message = saga.Rejected, saga.AuthorParticipant, a.Reason, a.Message
		return o, nil
	}
	ctx, cancel := context.WithTimeout(ctx, replyMemoryTimeout)
	defer cancel()
	response, err := decodeReply(a)
	if err == nil {
		o.Output, err = e.evaluate(ctx, &attemptInput{plan: plan, state: r.state}, attempt, r.key.Namespace, response)
	}
	if errors.Is(err, errNoMemory) {
		return o, fmt.Errorf("evaluating the reply to %s: %w", attempt, err)
	}
	if err != nil { // the action happened, but its output is unavailable to later steps
		o.Kind, o.Reason, o.Message = saga.Unknown, outputReason(err), err.Error()
	}
	return o, nil
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
