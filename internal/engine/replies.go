package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/saga"
)

// The outputs of replies are evaluated by goroutines of their own, because that waits for memory, for the
// store and for other computations.
const (
	// maxReplies is how many replies are evaluated at a time.
	maxReplies = 16
	// replyTimeout limits one evaluation. After it, the reply is evaluated again later.
	replyTimeout = 10 * time.Second
)

// reply is an answer to an attempt, perhaps without its response.
type reply struct {
	attempt saga.Attempt
	uid     uuid.UUID
	answer  eventstore.Answer
}

// smallReply returns the outcome of an attempt that has a reply, if that takes neither time nor memory.
func (e *Engine) smallReply(ctx context.Context, r *running, plan *saga.Plan, a *eventstore.Answer, attempt saga.Attempt) (saga.Outcome, bool) {
	o := saga.Outcome{Attempt: attempt, Kind: saga.Succeeded, Reply: true}
	if a.Rejected {
		o.Kind, o.Author, o.Reason, o.Message = saga.Rejected, saga.AuthorParticipant, a.Reason, a.Message
		return o, true
	}
	need, evaluates := plan.OutputBytes(&r.state, attempt)
	switch {
	case !evaluates:
		return o, true
	case a.Response == nil || need > smallStateBytes || !plan.OutputsReferences(attempt):
		return o, false
	}
	response, err := decodeReply(a)
	if err == nil {
		o.Output, err = output(ctx, &attemptInput{plan: plan, state: r.state}, attempt, response)
	}
	return orUnknown(o, err), true
}

// orUnknown returns the outcome of a reply whose output has been evaluated, perhaps with an error: the
// action happened then, but its output is unavailable to later steps.
func orUnknown(o saga.Outcome, err error) saga.Outcome {
	if err != nil {
		o.Kind, o.Reason, o.Message = saga.Unknown, outputReason(err), err.Error()
	}
	return o
}

// startReply has a reply evaluated, unless that is under way. The outcome is put beside the saga, and
// Notify is called.
func (e *Engine) startReply(r *running, plan *saga.Plan, p reply) {
	if !r.beginReply(p.attempt) {
		return
	}
	in := replyInput(r, plan)
	e.replies.submit(r.key.Namespace, func() {
		defer in.hold.release()
		o, err := saga.Outcome{}, errReplyPanicked
		func() {
			defer e.survive(r.key, "evaluating the reply to", p.attempt)
			if err = e.closing.Err(); err == nil { // a shutdown does not wait for those that have not begun
				o, err = e.evaluateReply(context.Background(), r.key, in, &p)
			}
		}()
		r.endReply(p.attempt, o, err)
		e.Notify(r.key)
		// Nothing of a saga is recorded before all its replies are evaluated, which takes places, so
		// this one is not held for as long as it takes.
		ctx, cancel := context.WithTimeout(e.closing, replyTimeout)
		defer cancel()
		e.holdBack(ctx, r, o.Output)
	})
}

// replyInput has the plan and the state that the output of a reply reads. A large state is loaded when
// its turn comes.
func replyInput(r *running, plan *saga.Plan) *attemptInput {
	return newInput(r.state, plan, r.holdOfPlan(), r.state.Bytes())
}

var errReplyPanicked = errors.New("evaluating a reply panicked; the operator's log has the stack")

// evaluateReply returns the outcome of an attempt that has a reply. After an error, the reply is to be
// evaluated again.
func (e *Engine) evaluateReply(ctx context.Context, key Key, in *attemptInput, p *reply) (saga.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, replyTimeout)
	defer cancel()
	o := saga.Outcome{Attempt: p.attempt, Kind: saga.Succeeded, Reply: true}
	account := e.budgets.responses.Open(key.Namespace)
	defer account.Close()
	defer e.releasePlan(in)
	err := e.acquirePlan(ctx, key.Namespace, in)
	if err == nil {
		err = account.Wait(ctx, in.bytes+eventstore.MaxAnswerBytes)
	}
	switch {
	case errors.Is(err, budget.ErrTooLarge):
		return orUnknown(o, fmt.Errorf("%w: the saga's state and a response are too large to be in memory together: %w", saga.ErrOutputTooLarge, err)), nil
	case err != nil:
		return o, fmt.Errorf("evaluating the reply to %s: %w: %w", p.attempt, errNoMemory, err)
	}
	if err := e.loadReply(ctx, key, in, p); err != nil {
		return o, fmt.Errorf("evaluating the reply to %s: %w", p.attempt, err)
	}
	response, err := decodeReply(&p.answer)
	if err == nil {
		o.Output, err = e.evaluate(ctx, in, p.attempt, key.Namespace, response)
	}
	if errors.Is(err, errNoMemory) || errors.Is(err, errBusy) {
		return o, fmt.Errorf("evaluating the reply to %s: %w", p.attempt, err)
	}
	return orUnknown(o, err), nil
}

// loadReply loads what has been left out of a reply and its input.
func (e *Engine) loadReply(ctx context.Context, key Key, in *attemptInput, p *reply) error {
	if err := e.loadInput(ctx, key, in); err != nil {
		return err
	}
	in.state = in.plan.OutputState(in.state, p.attempt)
	if p.answer.Response != nil {
		return nil
	}
	return e.loadResponse(ctx, p)
}

// loadResponse loads the response that was left out of a reply.
func (e *Engine) loadResponse(ctx context.Context, p *reply) error {
	all, err := e.Store.Answers(ctx, p.uid, eventstore.MaxAnswerBytes, p.answer.Step)
	if err != nil {
		return err
	}
	for i := range all {
		if all[i].Direction == p.answer.Direction && all[i].Round == p.answer.Round {
			p.answer = all[i]
			return nil
		}
	}
	return fmt.Errorf("it is not in the event store any more: %w", eventstore.ErrNotFound)
}

// beginReply notes that a reply is being evaluated; false if it is already.
func (r *running) beginReply(a saga.Attempt) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.replies[a] {
		return false
	}
	if r.replies == nil {
		r.replies = map[saga.Attempt]bool{}
	}
	r.replies[a] = true
	return true
}

// endReply adds the outcome of a reply to those that are not recorded yet, or the reason why the reply
// could not be evaluated. It ignores a reply to a saga that has been forgotten meanwhile.
func (r *running) endReply(a saga.Attempt, o saga.Outcome, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.replies, a)
	switch {
	case r.attempts == nil:
	case err != nil:
		r.replyError = err
	default:
		r.addOutcome(o)
	}
}

// takeReplyError returns why the latest reply could not be evaluated, once.
func (r *running) takeReplyError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.replyError
	r.replyError = nil
	return err
}

// hasReplyOutcome reports whether the outcome of a reply waits to be recorded.
func (r *running) hasReplyOutcome(a saga.Attempt) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.outcomes {
		if r.outcomes[i].Reply && r.outcomes[i].Attempt == a {
			return true
		}
	}
	return false
}
