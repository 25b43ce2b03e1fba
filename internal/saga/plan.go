package saga

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/vextrus/saga-operator/internal/expression"
)

// Plan is a definition that has been checked and made ready to be decided on: a graph of steps with compiled templates. A Plan is
// immutable and safe for concurrent use.
type Plan struct {
	def   Definition
	steps []planStep
	index map[string]int
	// order lists the steps so that each one comes after those it depends on.
	order []int
	// encoded is the stored form of def.
	encoded json.RawMessage
	// expressions is how many there are in all templates, and interpreted how many of them are more than
	// references to values.
	expressions, interpreted int
	fingerprint              Fingerprint
}

type planStep struct {
	dependencies, dependents []int
	do, compensation, output *expression.Template
	// replied says of each direction whether the participant can reply later.
	replied map[Direction]bool
}

// Definition returns what the plan was compiled from.
func (p *Plan) Definition() Definition { return p.def }

// EncodedDefinition returns the stored form of what the plan was compiled from.
func (p *Plan) EncodedDefinition() json.RawMessage { return p.encoded }

// Fingerprint returns the fingerprint of what the plan was compiled from.
func (p *Plan) Fingerprint() Fingerprint { return p.fingerprint }

// Expressions returns how many expressions the plan holds, and how many of them are more than references
// to values: these are most of its size in memory.
func (p *Plan) Expressions() (all, interpreted int) { return p.expressions, p.interpreted }

// effect returns the definition of an effect; nil if the plan does not have it.
func (p *Plan) effect(id EffectID) *Effect {
	i, ok := p.index[id.Step]
	switch {
	case !ok:
		return nil
	case id.Direction == Compensation:
		return p.def.Steps[i].Compensation
	default:
		return &p.def.Steps[i].Do
	}
}

// AttemptTimeout bounds an attempt; zero when the plan does not have its effect.
func (p *Plan) AttemptTimeout(a Attempt) time.Duration {
	if e := p.effect(a.EffectID); e != nil {
		return e.AttemptTimeout
	}
	return 0
}

// Kind names the kind of participant that carries an attempt out; empty when the plan does not have its effect.
func (p *Plan) Kind(a Attempt) string {
	if e := p.effect(a.EffectID); e != nil {
		return e.Kind
	}
	return ""
}

// InFlight returns the attempts that should be under way in a state, actions first, in the order of the definition.
func (p *Plan) InFlight(s State) []Attempt {
	if s.Phase != Running && s.Phase != Compensating {
		return nil
	}
	var in []Attempt
	for id, f := range s.effects {
		if f.Status == InProgress {
			in = append(in, Attempt{EffectID: id, Number: f.Attempts})
		}
	}
	return in
}

// Wake returns when Decide may have something to say without anything having come in; zero when it never will.
func (p *Plan) Wake(s State) time.Time {
	var wake time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (wake.IsZero() || t.Before(wake)) {
			wake = t
		}
	}
	if s.Phase == Running {
		sooner(s.DeadlineAt)
	}
	if s.Phase != Running && s.Phase != Compensating {
		return wake
	}
	if s.Phase == Compensating && !s.Suspended {
		p.quietUntil(&s, sooner)
	}
	for _, f := range s.effects {
		switch {
		case f.Status == Accepted:
			sooner(f.AnswerBy)
		case f.Status == Waiting && !s.Suspended:
			sooner(f.RetryAt)
		}
	}
	return wake
}

// ErrOutcomeUnknown says that a compensation cannot be rendered because it reads the output of its own action, whose outcome is unknown.
var ErrOutcomeUnknown = errors.New("the action's outcome is unknown, so it has no output")

// Render returns the settings of an attempt's effect with every expression evaluated. They depend on nothing that can change between two attempts of
// the same effect: an expression may read only the outputs of steps that are done before it starts.
func (p *Plan) Render(ctx context.Context, s State, a Attempt) (map[string]any, error) {
	i, ok := p.index[a.Step]
	if !ok {
		return nil, fmt.Errorf("rendering %s: there is no such step", a)
	}
	t := p.steps[i].do
	if a.Direction == Compensation {
		t = p.steps[i].compensation
	}
	if t == nil {
		return nil, fmt.Errorf("rendering %s: there is no such effect", a)
	}
	scope, err := p.scope(s, t)
	if err != nil {
		return nil, fmt.Errorf("rendering %s: %w", a.EffectID, err)
	}
	v, err := t.Render(ctx, scope)
	if err != nil {
		if step := s.Step(a.Step); a.Direction == Compensation && reads(t, a.Step) && step.Do.Status != Done {
			err = fmt.Errorf("it reads steps[%q].output, but %w; undo by a key that the saga chose, not by one that only the answer gave: %w", a.Step, ErrOutcomeUnknown, err)
		}
		return nil, fmt.Errorf("rendering %s: %w", a.EffectID, err)
	}
	with, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("rendering %s: the settings are not an object", a.EffectID)
	}
	return with, nil
}

// RendersReferences reports whether the settings of an attempt's effect have only constants and
// references to values, which are rendered in microseconds.
func (p *Plan) RendersReferences(a Attempt) bool {
	i, ok := p.index[a.Step]
	if !ok {
		return true
	}
	t := p.steps[i].do
	if a.Direction == Compensation {
		t = p.steps[i].compensation
	}
	return t == nil || t.OnlyReferences()
}

// OutputsReferences reports the same of the output of an attempt's step.
func (p *Plan) OutputsReferences(a Attempt) bool {
	i, ok := p.index[a.Step]
	return !ok || p.steps[i].output == nil || p.steps[i].output.OnlyReferences()
}

// RenderBytes estimates the memory that Render takes in addition to the state, in bytes.
func (p *Plan) RenderBytes(s *State, a Attempt) int64 {
	i, ok := p.index[a.Step]
	if !ok {
		return 0
	}
	if a.Direction == Compensation {
		return decodedBytes(s, p.steps[i].compensation)
	}
	return decodedBytes(s, p.steps[i].do)
}

// OutputBytes estimates the memory that Output takes in addition to the state and the response, in
// bytes. It reports false if the attempt has no output to evaluate; Output does not read the
// response then.
func (p *Plan) OutputBytes(s *State, a Attempt) (int64, bool) {
	i, ok := p.index[a.Step]
	if !ok || a.Direction != Action || p.steps[i].output == nil {
		return 0, false
	}
	return decodedBytes(s, p.steps[i].output), true
}

// decodedBytes estimates the memory of the input and outputs that a template reads, in bytes, after
// they have been decoded.
func decodedBytes(s *State, t *expression.Template) int64 {
	if t == nil {
		return 0
	}
	var sum int64
	if t.ReadsInput() {
		sum += expression.TreeBytes(s.Input)
	}
	for _, name := range t.Steps() {
		if step := s.Step(name); step != nil {
			sum += expression.TreeBytes(step.Output)
		}
	}
	return sum
}

// OutputState returns the part of a state that Output reads for an attempt. The rest of the state
// need not stay in memory while the participant is called.
func (p *Plan) OutputState(s State, a Attempt) State {
	needed := State{Version: s.Version, UID: s.UID, Namespace: s.Namespace, Name: s.Name}
	if _, evaluates := p.OutputBytes(&s, a); !evaluates {
		return needed
	}
	t := p.steps[p.index[a.Step]].output
	if t.ReadsInput() {
		needed.Input = s.Input
	}
	for _, name := range t.Steps() {
		if step := s.Step(name); step != nil {
			needed.Steps = append(needed.Steps, StepState{Name: name, Output: step.Output})
		}
	}
	return needed
}

// OnlyOutput returns a plan that can do no more than evaluate the output of an attempt, and the number of
// bytes of text in it.
func (p *Plan) OnlyOutput(a Attempt) (only *Plan, text int) {
	only = &Plan{}
	i, ok := p.index[a.Step]
	if !ok || a.Direction != Action || p.steps[i].output == nil {
		return only, 0
	}
	t := p.steps[i].output
	only.steps, only.index = []planStep{{output: t}}, map[string]int{a.Step: 0}
	only.expressions, only.interpreted = t.Expressions(), t.Interpreted()
	for _, expr := range p.def.Steps[i].Output {
		text += len(expr)
	}
	return only, text
}

// ErrOutputTooLarge is returned for an output that exceeds MaxOutputBytes or the memory for
// decoding a response.
var ErrOutputTooLarge = errors.New("the output is too large")

// Output evaluates the outputs of a step over the participant's response. Compensations have none.
func (p *Plan) Output(ctx context.Context, s State, a Attempt, response map[string]any) (json.RawMessage, error) {
	i, ok := p.index[a.Step]
	if !ok || a.Direction != Action || p.steps[i].output == nil {
		return nil, nil
	}
	t := p.steps[i].output
	scope, err := p.scope(s, t)
	if err != nil {
		return nil, fmt.Errorf("evaluating the output of step %q: %w", a.Step, err)
	}
	scope.Response = response
	v, err := t.Render(ctx, scope)
	if err != nil {
		return nil, fmt.Errorf("evaluating the output of step %q: %w", a.Step, err)
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding the output of step %q: %w", a.Step, err)
	}
	if len(out) > MaxOutputBytes {
		return nil, fmt.Errorf("evaluating the output of step %q: %w: it takes %d bytes, and the limit is %d: keep only what later steps need", a.Step, ErrOutputTooLarge, len(out), MaxOutputBytes)
	}
	return out, nil
}

// scope gathers what a template reads.
func (p *Plan) scope(s State, t *expression.Template) (expression.Scope, error) {
	var scope expression.Scope
	if t.ReadsSaga() {
		scope.Saga = map[string]any{"name": s.Name, "namespace": s.Namespace, "uid": s.UID}
	}
	if t.ReadsInput() {
		scope.Input = map[string]any{}
		if len(s.Input) > 0 {
			input, err := expression.Decode(s.Input)
			if err != nil {
				return scope, fmt.Errorf("decoding the input: %w", err)
			}
			scope.Input = input
		}
	}
	steps := t.Steps()
	if len(steps) > 0 {
		scope.Steps = make(map[string]any, len(steps))
	}
	for _, name := range steps {
		step := s.Step(name)
		if step == nil || len(step.Output) == 0 {
			scope.Steps[name] = map[string]any{"output": map[string]any{}}
			continue
		}
		output, err := expression.Decode(step.Output)
		if err != nil {
			return scope, fmt.Errorf("decoding the output of step %q: %w", name, err)
		}
		scope.Steps[name] = map[string]any{"output": output}
	}
	return scope, nil
}
