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

// Memory has limits for the memory of sagas, in bytes. Sizes are estimates for decoded values. A
// limit of 0 or less means DefaultMemory. The sagas of a namespace can use at most half of the
// memory that other namespaces do not use.
type Memory struct {
	// States limits the states, and the compiled definitions, that are kept between two calls of
	// Advance. A state that does not fit is loaded from its stream again; a definition is compiled
	// again. Sagas of one definition share it.
	States int64
	// Requests limits the rendered settings of attempts, from rendering until the participant has
	// responded. It also covers the values that templates read during rendering. Responses limits
	// the bodies of large responses, and Evaluation limits decoded responses. An attempt waits for
	// these three; its timeout keeps running.
	Requests, Responses, Evaluation int64
	// Plans limits the compiled definitions that attempts use and their sagas do not keep. An attempt
	// waits for it, too.
	Plans int64
	// Outputs limits the large outputs of attempts that have ended and are not recorded yet. Beyond it,
	// such attempts keep their places in the pool, so that no others start.
	Outputs int64
}

// DefaultMemory is the default of each limit in [Memory], in bytes.
const DefaultMemory = 40 << 20

// TotalMemory returns limits that are equal and together total bytes.
func TotalMemory(total int64) Memory {
	each := total / 6
	return Memory{States: each, Plans: each, Requests: each, Responses: each, Evaluation: each, Outputs: each}
}

// budgets enforces the limits of [Memory].
//
// An attempt takes memory from plans, requests, responses and evaluation, in this order and at most
// once from each. It releases evaluation memory without waiting for another budget. Attempts therefore
// cannot deadlock.
type budgets struct {
	states, plans, requests, responses, evaluation, outputs *budget.Budget
	// kept are the plans that sagas keep beside their states.
	kept *plansInUse
	// maxIdleState is the largest state of an idle saga that is kept, in bytes.
	maxIdleState int64
}

func newBudgets(m Memory) *budgets {
	limit := func(bytes int64) int64 { return cmp.Or(max(bytes, 0), DefaultMemory) }
	const share = 16
	states := budget.New(limit(m.States))
	return &budgets{
		states: states, kept: newPlansInUse(states), requests: budget.New(limit(m.Requests)),
		responses: budget.New(limit(m.Responses)), evaluation: budget.New(limit(m.Evaluation)),
		outputs:      budget.New(limit(m.Outputs)),
		plans:        budget.New(limit(m.Plans)),
		maxIdleState: min(smallStateBytes, limit(m.States)/share),
	}
}

// keepOrDropState keeps the state in memory for the next Advance if the budget has memory for it,
// and drops it otherwise. A saga without attempts is idle; its state is kept only if it takes at
// most maxIdle bytes.
func (r *running) keepOrDropState(maxIdle int64) {
	size := r.state.Bytes()
	idle := len(r.attemptsUnderWay()) == 0
	if r.stream == streamLoaded && (!idle || size <= maxIdle) {
		r.stateAccount.Close()
		if r.stateAccount.Take(size) == nil {
			return
		}
	}
	r.stateAccount.Close()
	if r.stream == streamLoaded {
		r.dropState()
	}
}

// holdPlan keeps the plan beside the state, if it is small and the budget has memory for it. A plan that it
// does not keep is dropped at the end of Advance, and found in Plans, or compiled, by the next one.
func (r *running) holdPlan() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan == nil || r.hold != nil || r.attempts == nil {
		return
	}
	if size := planBytes(r.plan); size <= smallPlanBytes && r.kept.tryAcquire(r.key.Namespace, r.plan.Fingerprint(), int64(size)) {
		r.hold = &planHold{plans: r.kept, key: r.plan.Fingerprint()}
	}
}

// dropUnheldPlan drops a plan that holdPlan has not kept.
func (r *running) dropUnheldPlan() {
	if r.holdOfPlan() == nil {
		r.plan = nil
	}
}

// dropPlan drops the plan.
func (r *running) dropPlan() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold.release()
	r.hold, r.plan = nil, nil
}

func (r *running) holdOfPlan() *planHold {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hold
}

// smallPlanBytes is the size up to which sagas keep their plan, and attempts while they wait for a place.
const smallPlanBytes = 512 << 10

// dropObservedSpec drops the observed definition and input of a saga that has started: its stream
// has recorded them.
func (r *running) dropObservedSpec() {
	if r.state.Version > 0 {
		r.observed.Definition, r.observed.Input = nil, nil
	}
}

// smallStateBytes is the largest state that is kept for an idle saga, and for each attempt that
// waits for a place in the pool.
const smallStateBytes = 16 << 10

// attemptInput has the plan and the state that an attempt reads.
type attemptInput struct {
	// plan is nil if the saga does not keep it. It is then compiled again, or found in Plans, when the
	// attempt gets a place in the pool.
	plan      *saga.Plan
	hold      *planHold        // of a plan that the saga keeps
	planKey   saga.Fingerprint // only of another plan
	planBytes int64
	acquired  bool // the other plan is in use
	// state has Version 0 if it takes more than smallStateBytes. It is then loaded when the attempt
	// gets a place in the pool, because the number of waiting attempts is unlimited. It is reduced
	// to the values that the output reads before the participant is called.
	state saga.State
	// bytes is the memory that rendering takes, including the state.
	bytes int64
}

func (r *running) attemptInput(a saga.Attempt) *attemptInput {
	return newInput(r.state, r.plan, r.holdOfPlan(), r.state.Bytes()+r.plan.RenderBytes(&r.state, a))
}

// newInput returns an input that has the plan only if the saga has a hold of it, and the state only if it
// is small.
func newInput(state saga.State, plan *saga.Plan, hold *planHold, bytes int64) *attemptInput {
	in := &attemptInput{planBytes: int64(planBytes(plan)), state: state, bytes: bytes}
	if state.Bytes() > smallStateBytes {
		in.state = saga.State{}
	}
	if in.hold = hold.again(); in.hold != nil {
		in.plan = plan
	} else {
		in.planKey = plan.Fingerprint()
	}
	return in
}

// acquirePlan waits for the memory of a plan that the saga does not keep; see releasePlan.
func (e *Engine) acquirePlan(ctx context.Context, namespace string, in *attemptInput) error {
	if in.plan != nil {
		return nil
	}
	err := e.plansInUse.acquire(ctx, namespace, in.planKey, in.planBytes)
	in.acquired = err == nil
	return err
}

// releasePlan gives back the memory that acquirePlan has taken.
func (e *Engine) releasePlan(in *attemptInput) {
	if in.acquired {
		in.acquired = false
		e.plansInUse.release(in.planKey)
	}
}

// keepOnlyOutput drops an acquired plan except what the output of an attempt needs, and gives its memory
// back: calls that hang must not hold the memory that the attempts of other namespaces need to be sent. A
// plan with a large output stays.
func (e *Engine) keepOnlyOutput(in *attemptInput, a saga.Attempt) {
	const small = 64 << 10 // times the workers
	if !in.acquired {
		return
	}
	if only, text := in.plan.OnlyOutput(a); expressionBytes(only, text) <= small {
		in.plan = only
		e.releasePlan(in)
	}
}

var (
	errNoMemory = errors.New("no memory became available")
	errBusy     = errors.New("other computations took all of the time")
)

const (
	// reasonNoMemory is the reason of an attempt for which no memory was available: it was not sent, or
	// its output is not known.
	reasonNoMemory = "NoMemory"
	// reasonInputTooLarge is the reason of an effect whose templates read values that take more
	// than half of Memory.Requests once decoded.
	reasonInputTooLarge = "InputTooLarge"
	// reasonBusy is the reason of an attempt that was not sent, or whose output is not known, because
	// other computations took all of its time.
	reasonBusy = "OperatorBusy"
	// reasonTooSlow is the reason of an attempt whose settings took more than maxComputation to render,
	// or its output to evaluate.
	reasonTooSlow = "ExpressionTooSlow"
)

// render waits for memory, loads the state if necessary, and renders the settings of an attempt.
// The memory of the settings stays on the account. If rendering fails, render returns the outcome
// of the attempt.
func (e *Engine) render(ctx context.Context, key Key, in *attemptInput, a saga.Attempt, requests *budget.Account) (map[string]any, *saga.Outcome) {
	failed := func(kind saga.OutcomeKind, reason string, err error) *saga.Outcome {
		return &saga.Outcome{Attempt: a, Kind: kind, Reason: reason, Message: err.Error(), Author: saga.AuthorOperator}
	}
	err := e.acquirePlan(ctx, key.Namespace, in)
	if err == nil {
		err = requests.Wait(ctx, in.bytes)
	}
	switch {
	case errors.Is(err, budget.ErrTooLarge):
		return nil, failed(saga.Rejected, reasonInputTooLarge, fmt.Errorf("rendering %s: the input and outputs that its expressions read are too large to decode: %w", a.EffectID, err))
	case err != nil:
		return nil, failed(saga.NotSent, reasonNoMemory, fmt.Errorf("the participant was not called for this attempt: waiting for memory to render the request: %w", err))
	}
	if err := e.loadInput(ctx, key, in); err != nil {
		return nil, failed(saga.NotSent, reasonNotSent, fmt.Errorf("the participant was not called for this attempt: loading the saga: %w", err))
	}
	var with map[string]any
	render := func(ctx context.Context) { with, err = in.plan.Render(ctx, in.state, a) }
	if in.bytes <= smallStateBytes && in.plan.RendersReferences(a) { // it takes microseconds
		render(ctx)
	} else if busy := e.compute(ctx, key.Namespace, render); busy != nil {
		return nil, failed(saga.NotSent, reasonBusy, fmt.Errorf("the participant was not called for this attempt: waiting to render the request: %w", busy))
	}
	switch {
	case errors.Is(err, expression.ErrInterrupted): // perhaps because the machine is busy
		return nil, failed(saga.Retryable, reasonTooSlow, fmt.Errorf("the participant was not called for this attempt: %w; evaluate less in one step", err))
	case err != nil:
		return nil, failed(saga.Rejected, reasonExpression, err) // never sent, and a retry would fail in the same way
	}
	size := expression.ValueBytes(with)
	requests.ShrinkTo(size)
	if more := size - in.bytes; more > 0 && requests.Take(more) != nil {
		return nil, failed(saga.NotSent, reasonNoMemory, errors.New("the participant was not called for this attempt: no memory was available for the request"))
	}
	return with, nil
}

// loadInput loads the state and compiles the plan that were dropped because they are large.
func (e *Engine) loadInput(ctx context.Context, key Key, in *attemptInput) (err error) {
	if in.state.Version == 0 {
		r := newRunning(key, e.budgets, e.Clock)
		if err := e.load(ctx, r); err != nil {
			return err
		}
		in.state = r.state
	}
	if in.plan == nil {
		in.plan = e.plansInUse.get(in.planKey)
	}
	if in.plan == nil {
		if in.plan, err = e.compileNow(ctx, key.Namespace, in.state.Definition); err == nil {
			e.plansInUse.set(in.planKey, in.plan)
		}
	}
	return err
}

// smallOutputBytes is the size up to which an output needs no memory of its own until it is recorded.
const smallOutputBytes = 4 << 10

// holdBack waits until there is memory for the output of an attempt that has ended, until the output is
// recorded, or until ctx ends. Attempts would otherwise end faster than outputs can be recorded, or while
// the event store is unavailable.
func (e *Engine) holdBack(ctx context.Context, r *running, output json.RawMessage) {
	if len(output) <= smallOutputBytes {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.untilRecorded(), cancel)()
	if r.outputAccount.Wait(ctx, int64(len(output))) == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.fitOutputAccount() // it may have been recorded meanwhile
	}
}

// evaluate waits for memory and returns the output of an attempt that has succeeded. It returns
// errNoMemory or errBusy if ctx ends first, and saga.ErrOutputTooLarge if the decoded values take more
// than half of Memory.Evaluation.
func (e *Engine) evaluate(ctx context.Context, in *attemptInput, a saga.Attempt, namespace string, response map[string]any) (json.RawMessage, error) {
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
	case errors.Is(err, budget.ErrTooLarge):
		return nil, fmt.Errorf("%w: the response has too many values to decode: %w", saga.ErrOutputTooLarge, err)
	case err != nil:
		return nil, fmt.Errorf("evaluating the output: %w: %w", errNoMemory, err)
	}
	var out json.RawMessage
	var err error
	evaluate := func(ctx context.Context) { out, err = output(ctx, in, a, response) }
	if need <= smallStateBytes && in.plan.OutputsReferences(a) {
		evaluate(ctx)
	} else if busy := e.compute(ctx, namespace, evaluate); busy != nil {
		return nil, fmt.Errorf("evaluating the output: %w: %w", errBusy, busy)
	}
	return out, err
}

// output decodes a response and evaluates the output of an attempt that has succeeded.
func output(ctx context.Context, in *attemptInput, a saga.Attempt, response map[string]any) (json.RawMessage, error) {
	if body, raw := response["body"].(json.RawMessage); raw {
		decoded, err := expression.Decode(body)
		if err != nil {
			return nil, fmt.Errorf("decoding the response: %w", err)
		}
		response["body"] = decoded
	}
	return in.plan.Output(ctx, in.state, a, response)
}
