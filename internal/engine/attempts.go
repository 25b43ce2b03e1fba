package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// ReasonExpressionFailed is the reason of an effect whose settings cannot be rendered. What they read never changes, so a retry cannot help.
const ReasonExpressionFailed = "ExpressionFailed"

// Reasons that the engine itself gives for an outcome.
const (
	reasonPanic      = "ParticipantPanicked"
	reasonExpression = ReasonExpressionFailed
	reasonOutput     = "OutputFailed"
	reasonNotSent    = "NotSent"
)

// lost returns the attempts that should be under way and of which this process knows nothing.
func (e *Engine) lost(r *running, plan *saga.Plan) []saga.Attempt {
	return r.missing(plan.InFlight(r.state))
}

// runDifference makes the attempts that are under way those that should be. While the saga is
// suspended, or the process about to end, none is started. When a user cancels or deletes the saga, the
// calls of its actions end at once: a participant that hangs must not hold a place of the namespace for
// nothing. Whether such an action happened is unknown, so its undo waits until the call can do no more.
func (e *Engine) runDifference(r *running, draining bool) {
	start := r.difference(r.plan.InFlight(r.state))
	if r.state.Phase == saga.Compensating && (r.observed.Cancel || r.observed.Delete) {
		r.interruptActions(errInterrupted)
	}
	if draining || r.state.Suspended {
		return
	}
	for _, a := range start {
		e.startAttempt(r, a)
	}
}

func (e *Engine) startAttempt(r *running, a saga.Attempt) {
	// The attempt outlives the reconcile that starts it, so its context is its own. Its time begins when it gets its place in the pool.
	ctx, cancel := context.WithCancelCause(context.Background())
	if !r.begin(a, cancel) {
		cancel(nil)
		return
	}
	in := r.attemptInput(a)
	over, kind := r.state.Step(a.Step).Effect(a.Direction).SentAt.Add(r.plan.AttemptTimeout(a)), r.plan.Kind(a)
	e.pool.submit(r.key.Namespace, func() {
		defer cancel(nil)
		defer in.hold.release()
		defer e.survive(r.key, "carrying out", a)
		// What has waited for a place until its time was over is not sent any more: an undo may start now.
		if !e.accepting() || !e.Clock().Before(over) {
			if r.withdraw(func(other saga.Attempt) bool { return other == a }) {
				e.tell(r)
			}
			return
		}
		e.metrics.inFlight.Inc()
		began := time.Now()
		o := e.carryOut(ctx, r.key, in, a, over, func() bool { return r.send(a) })
		e.metrics.inFlight.Dec()
		e.metrics.attempt(kind, o, time.Since(began))
		if r.end(o) {
			e.tell(r)
			e.holdBack(e.closing, r, o.Output)
		}
	})
}

// takeBack withdraws what waits for a place and is not wanted any more by what has just been read: another process has recorded a
// rollback, a suspension, or the end of the attempt.
func (e *Engine) takeBack(r *running) {
	state := r.state
	r.withdraw(func(a saga.Attempt) bool {
		f := state.Effect(a.EffectID)
		return state.Suspended || !state.Wants(a.Direction) || f.Status != saga.InProgress || f.Attempts != a.Number
	})
}

// survive keeps a panic from ending the process: it ends one round of one saga, which begins again from what is recorded.
func (e *Engine) survive(key Key, doing string, what any) {
	if p := recover(); p != nil {
		e.Logger.Error(fmt.Sprintf("panic while %s %v", doing, what), "saga", key, "panic", p, "stack", string(debug.Stack()))
	}
}

// tell has an outcome recorded that has just been put beside its saga: by whoever drives the engine or, when nobody does any more, at once.
func (e *Engine) tell(r *running) {
	if e.accepting() {
		e.Notify(r.key)
		return
	}
	ctx, cancel := e.toRecord()
	defer cancel()
	e.recordLast(ctx, r)
}

// carryOut does one attempt from rendering to evaluated output, until its time is over. It calls the participant only if send, called
// immediately before, reports that the attempt is still wanted. Whatever happens in it, it comes to one of the four outcomes.
func (e *Engine) carryOut(ctx context.Context, key Key, in *attemptInput, a saga.Attempt, over time.Time, send func() bool) (o saga.Outcome) {
	o.Attempt = a
	defer func() {
		if p := recover(); p != nil {
			e.Logger.Error("a participant panicked", "saga", key, "attempt", a.String(), "panic", p, "stack", string(debug.Stack()))
			o = saga.Outcome{Attempt: a, Kind: saga.Unknown, Reason: reasonPanic, Message: callbacktoken.Redact(fmt.Sprintf("the participant's code panicked: %v", p))}
		}
	}()
	// Its time runs from its recorded start: another process that finds it waits until then for what becomes of it.
	ctx, cancel := context.WithTimeout(ctx, over.Sub(e.Clock()))
	defer cancel()
	requests, responses := e.budgets.requests.Open(key.Namespace), e.budgets.responses.Open(key.Namespace)
	defer e.releasePlan(in)
	defer requests.Close()
	defer responses.Close()
	with, failed := e.render(ctx, key, in, a, requests)
	if failed != nil {
		return *failed
	}
	call := participant.Call{
		Saga: participant.Identity{UID: key.UID, Namespace: key.Namespace, Name: key.Name}, Attempt: a,
		Key: a.Key(key.UID), With: with, TraceParent: traceParent(in.state, a), ReserveMemory: responses.Wait,
	}
	in.state = in.plan.OutputState(in.state, a)
	who := e.Participants[in.plan.Kind(a)] // registered: the plan has been checked for it
	if p, ok := who.(participant.Preparer); ok {
		if res := p.Prepare(ctx, &call); res != nil {
			redact(res)
			return saga.Outcome{Attempt: a, Kind: res.Kind, Reason: res.Reason, Message: res.Message, RetryAfter: res.RetryAfter, Author: res.Author}
		}
	}
	e.keepOnlyOutput(in, a)
	if !send() {
		return notSent(a) // it has been taken back, and its outcome is known
	}
	res := who.Do(ctx, call)
	requests.Close()
	redact(&res)
	if res.Kind == saga.Unknown && !res.Accepted && !res.Over && errors.Is(context.Cause(ctx), errInterrupted) {
		res.Reason, res.Message = saga.ReasonInterrupted, errInterrupted.Error()
	}
	if res.Accepted {
		return saga.Outcome{Attempt: a, Accepted: true, AnswerWithin: min(res.AnswerWithin, participant.MaxAnswerWithin)}
	}
	if res.Kind != saga.Succeeded {
		return saga.Outcome{Attempt: a, Kind: res.Kind, Reason: res.Reason, Message: res.Message, RetryAfter: res.RetryAfter, Author: res.Author, Over: res.Over}
	}
	out, err := e.evaluate(ctx, in, a, key.Namespace, res.Response)
	if err != nil { // the action happened, but its output is unavailable to later steps
		return saga.Outcome{Attempt: a, Kind: saga.Unknown, Reason: outputReason(err), Message: err.Error(), Author: saga.AuthorOperator, Over: true}
	}
	return saga.Outcome{Attempt: a, Kind: saga.Succeeded, Output: out}
}

// redact removes callback tokens from what a participant responded, before anything of it is recorded or
// logged. Participants repeat the headers of a request.
func redact(res *participant.Result) {
	res.Reason, res.Message = callbacktoken.Redact(res.Reason), callbacktoken.Redact(res.Message)
	res.Response = callbacktoken.RedactMap(res.Response)
}

// outputReason returns the reason of an action that happened, but whose output could not be
// evaluated.
func outputReason(err error) string {
	switch {
	case errors.Is(err, saga.ErrOutputTooLarge):
		return saga.ReasonOutputTooLarge
	case errors.Is(err, errNoMemory):
		return reasonNoMemory
	case errors.Is(err, errBusy):
		return reasonBusy
	case errors.Is(err, expression.ErrInterrupted):
		return reasonTooSlow
	}
	return reasonOutput
}

var (
	errClosed      = errors.New("the engine is shutting down")
	errInterrupted = errors.New("the call was ended because the saga was cancelled or deleted, and the request may have been carried out")
	errContended   = errors.New("another process or caller is moving this saga")
)
