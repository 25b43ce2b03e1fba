package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Reasons that the engine itself gives for an outcome.
const (
	reasonPanic      = "ParticipantPanicked"
	reasonExpression = "ExpressionFailed"
	reasonOutput     = "OutputFailed"
	reasonKind       = "UnknownKind"
)

// lost returns the attempts that should be under way and were begun by somebody else: they are about to be sent again, and that has to be recorded first.
func (e *Engine) lost(r *running, plan *saga.Plan) []saga.Attempt {
	if !e.accepting() {
		return nil // nothing is sent any more
	}
	return r.missing(plan.InFlight(r.state))
}

// runDifference makes the attempts that are under way those that should be.
func (e *Engine) runDifference(r *running) {
	start := r.difference(r.plan.InFlight(r.state))
	if len(start) == 0 || !e.accepting() {
		return
	}
	for _, a := range start {
		e.startAttempt(r, a)
	}
}

func (e *Engine) startAttempt(r *running, a saga.Attempt) {
	// The attempt outlives the reconcile that starts it, so its context is its own. Its time begins when it gets its place in the pool.
	ctx, cancel := context.WithCancel(context.Background())
	if !r.begin(a, cancel) {
		cancel()
		return
	}
	state, plan := r.state, r.plan
	e.pool.submit(r.key.Namespace, func() {
		defer cancel()
		if ctx.Err() != nil || !e.accepting() {
			return
		}
		e.metrics.inFlight.Inc()
		began := time.Now()
		o := e.carryOut(ctx, plan, state, a)
		e.metrics.inFlight.Dec()
		e.metrics.attempt(plan.Kind(a), o, time.Since(began))
		if r.end(o) {
			e.tell(r)
		}
	})
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

// carryOut does one attempt from rendering to evaluated output. Whatever happens in it, it comes to one of the four outcomes.
func (e *Engine) carryOut(ctx context.Context, plan *saga.Plan, s saga.State, a saga.Attempt) (o saga.Outcome) {
	o.Attempt = a
	defer func() {
		if p := recover(); p != nil {
			e.Logger.Error("a participant panicked", "saga", s.Namespace+"/"+s.Name, "attempt", a.String(), "panic", p, "stack", string(debug.Stack()))
			o = saga.Outcome{Attempt: a, Kind: saga.Unknown, Reason: reasonPanic, Message: fmt.Sprintf("the participant's code panicked: %v", p)}
		}
	}()
	fail := func(kind saga.OutcomeKind, reason string, err error) saga.Outcome {
		return saga.Outcome{Attempt: a, Kind: kind, Reason: reason, Message: err.Error(), Unasked: kind == saga.Rejected}
	}
	with, err := plan.Render(s, a)
	if err != nil {
		return fail(saga.Rejected, reasonExpression, err) // never sent, and never will be otherwise
	}
	who, ok := e.Participants[plan.Kind(a)]
	if !ok {
		return fail(saga.Rejected, reasonKind, fmt.Errorf("this operator has no participant of kind %q", plan.Kind(a)))
	}
	ctx, cancel := context.WithTimeout(ctx, plan.AttemptTimeout(a))
	defer cancel()
	res := who.Do(ctx, participant.Call{
		Saga: participant.Identity{UID: s.UID, Namespace: s.Namespace, Name: s.Name}, Attempt: a,
		Key: a.Key(s.UID), With: with, TraceParent: traceParent(s, a),
	})
	if res.Accepted {
		return saga.Outcome{Attempt: a, Accepted: true, AnswerWithin: min(res.AnswerWithin, participant.MaxAnswerWithin)}
	}
	if res.Kind != saga.Succeeded {
		return saga.Outcome{Attempt: a, Kind: res.Kind, Reason: res.Reason, Message: res.Message, RetryAfter: res.RetryAfter, Unasked: res.Unasked}
	}
	out, err := plan.Output(s, a, res.Response)
	if err != nil { // it happened, but what later steps need is not to be had: the same as not knowing
		return fail(saga.Unknown, reasonOutput, err)
	}
	return saga.Outcome{Attempt: a, Kind: saga.Succeeded, Output: out}
}

var (
	errClosed    = errors.New("the engine is shutting down")
	errContended = errors.New("somebody else is moving this saga")
)
