package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Memory is what sagas may take in memory, in bytes, estimated as decoded; 0 is DefaultMemory. Each namespace has at most half of what the
// others leave.
type Memory struct {
	// States is for the states of sagas between two rounds. What does not fit is read again from its stream.
	States int64
	// Requests is for rendered settings, until their participant has answered, and for what templates read while they are rendered; Answers
	// for what participants answered; Evaluation for answers as trees. Attempts wait for them, in their own time.
	Requests, Answers, Evaluation int64
}

// DefaultMemory is each part of Memory that is not given.
const DefaultMemory = 48 << 20

// budgets share out Memory.
//
// An attempt takes from requests, answers and evaluation in this order, each once, and gives what it has of evaluation back without waiting
// for anything else: so no two wait for each other.
type budgets struct {
	states, requests, answers, evaluation *budget.Budget
	// small is how large the state of an idle saga may be that is kept.
	small int64
}

func newBudgets(m Memory) *budgets {
	of := func(bytes int64) *budget.Budget { return budget.New(cmp.Or(max(bytes, 0), DefaultMemory)) }
	const share = 16
	return &budgets{
		states: of(m.States), requests: of(m.Requests), answers: of(m.Answers), evaluation: of(m.Evaluation), small: min(smallState, cmp.Or(max(m.States, 0), DefaultMemory)/share),
	}
}

// keepState decides whether the state of a saga stays in memory until its next round. That of an idle saga does if it is small.
func (r *running) keepState(small int64) {
	size := r.state.Bytes()
	idle := len(r.attemptsUnderWay()) == 0
	if r.stream == streamLoaded && (!idle || size <= small) {
		r.held.Close()
		if r.held.Take(size) == nil {
			return
		}
	}
	r.held.Close()
	if r.stream == streamLoaded {
		r.dropState()
	}
}

// forgetObject lets go of what the object of a saga said, once the saga has started: it is recorded.
func (r *running) forgetObject() {
	if r.state.Version > 0 {
		r.observed.Definition, r.observed.Input = nil, nil
	}
}

// smallState is how large the state of a saga may be that is kept although it is idle, and for attempts that wait for a place.
const smallState = 16 << 10

// input is what an attempt is carried out with. It lets go of what is not needed any more.
type input struct {
	plan *saga.Plan
	// state is missing if it is large, until the attempt has its place: any number may wait for one.
	state saga.State
	// bytes is what rendering takes, with the state.
	bytes int64
}

func (r *running) input(a saga.Attempt) *input {
	in := &input{plan: r.plan, state: r.state, bytes: r.state.Bytes() + r.plan.RenderBytes(&r.state, a)}
	if r.state.Bytes() > smallState {
		in.state = saga.State{}
	}
	return in
}

var errNoMemory = errors.New("no memory came free")

const (
	reasonNoMemory = "NoMemory"
	// reasonInputTooLarge is the reason of an effect whose templates read more than can ever be decoded at once.
	reasonInputTooLarge = "InputTooLarge"
)

// render renders the settings of an attempt. It waits for the memory that this takes, and keeps on the account what the settings take.
func (e *Engine) render(ctx context.Context, key Key, in *input, a saga.Attempt, requests *budget.Account) (map[string]any, *saga.Outcome) {
	end := func(kind saga.OutcomeKind, reason string, err error) *saga.Outcome {
		return &saga.Outcome{Attempt: a, Kind: kind, Reason: reason, Message: err.Error(), Author: saga.AuthorOperator}
	}
	switch err := requests.Wait(ctx, in.bytes); {
	case errors.Is(err, budget.ErrNever):
		return nil, end(saga.Rejected, reasonInputTooLarge, fmt.Errorf("rendering %s: what its templates read is too large: %w", a.EffectID, err))
	case err != nil:
		return nil, end(saga.NotSent, reasonNoMemory, fmt.Errorf("the participant was not called for this attempt: no memory came free to render it in time: %w", err))
	}
	if in.state.Version == 0 {
		r := newRunning(key, e.budgets.states)
		if err := e.load(ctx, r); err != nil {
			return nil, end(saga.NotSent, reasonNotSent, fmt.Errorf("the participant was not called for this attempt: reading the saga: %w", err))
		}
		in.state = r.state
	}
	with, err := in.plan.Render(in.state, a)
	if err != nil {
		return nil, end(saga.Rejected, reasonExpression, err) // never sent, and never will be otherwise
	}
	size := expression.ValueBytes(with)
	requests.Keep(size)
	if more := size - in.bytes; more > 0 && requests.Take(more) != nil {
		return nil, end(saga.NotSent, reasonNoMemory, errors.New("the participant was not called for this attempt: there was no memory for its request"))
	}
	return with, nil
}

// evaluate returns the output of an attempt that has succeeded, once there is memory for it.
func (e *Engine) evaluate(ctx context.Context, in *input, a saga.Attempt, namespace string, response map[string]any) (json.RawMessage, error) {
	need, evaluates := in.plan.OutputBytes(&in.state, a)
	if !evaluates {
		return nil, nil
	}
	body, raw := response["body"].(json.RawMessage)
	if raw {
		need += expression.TreeBytes(body)
	}
	account := e.budgets.evaluation.Open(namespace)
	defer account.Close()
	switch err := account.Wait(ctx, need); {
	case errors.Is(err, budget.ErrNever):
		return nil, fmt.Errorf("%w: the answer has too many values to be decoded: %w", saga.ErrOutputTooLarge, err)
	case err != nil:
		return nil, fmt.Errorf("%w to evaluate the output in time: %w", errNoMemory, err)
	}
	if raw {
		tree, err := expression.Decode(body)
		if err != nil {
			return nil, fmt.Errorf("reading the answer: %w", err)
		}
		response["body"] = tree
	}
	return in.plan.Output(in.state, a, response)
}
