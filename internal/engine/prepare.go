package engine

import (
	"context"
	"errors"

	"github.com/vextrus/saga-operator/internal/saga"
)

// ErrPreparing says that the definition of a saga is being compiled. The engine calls Notify when that
// is done.
var ErrPreparing = errors.New("the definition is being compiled")

// preparation is the compilation of one definition for one saga. running.mu guards its result.
type preparation struct {
	definition saga.Fingerprint
	plan       *saga.Plan
	err        error // ErrPreparing until it is done
}

// Check returns what is wrong with the definition of a saga that is to be started, also by the limits that
// an administrator has set. One that takes long
// to compile is compiled by other goroutines, of which there are few and for which namespaces take
// turns: Check returns ErrPreparing until that is done.
func (e *Engine) Check(key Key, def saga.Definition) ([]saga.FieldError, error) {
	r, err := e.enter(key)
	if err != nil {
		return nil, err
	}
	defer e.advancing.Done()
	beyond := e.Limits.Check(&def)
	_, err = e.planOf(r, def, false)
	if wrong := (*DefinitionError)(nil); errors.As(err, &wrong) {
		return append(wrong.Fields[:len(wrong.Fields):len(wrong.Fields)], beyond...), nil
	}
	return beyond, err
}

// planOf returns the plan of a saga's definition, which is recorded if the saga was started with it. It
// returns ErrPreparing while the definition is being compiled.
func (e *Engine) planOf(r *running, def saga.Definition, recorded bool) (*saga.Plan, error) {
	key := def.Fingerprint()
	if p := r.takePreparation(key); p != nil { // also if the plan is kept: a preparation must not hold it
		return p.plan, p.err
	}
	if plan := e.Plans.get(key); plan != nil {
		return plan, nil
	}
	if plan, small, err := e.Plans.compileSmall(def, e.Participants, recorded); small {
		return plan, err
	}
	if !e.accepting() { // no later call would use the result
		return e.Plans.compile(def, e.Participants, recorded)
	}
	p := &preparation{definition: key, err: ErrPreparing}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.preparation = p
	e.compiling.submit(r.key.Namespace, func() {
		defer e.Notify(r.key)
		if e.closing.Err() != nil { // a shutdown compiles only what it needs to record outcomes
			r.dropPreparation(p)
			return
		}
		plan, err := e.Plans.compile(def, e.Participants, recorded)
		r.mu.Lock()
		defer r.mu.Unlock()
		p.plan, p.err = plan, err
	})
	return nil, ErrPreparing
}

// dropPreparation forgets a preparation that was not begun.
func (r *running) dropPreparation(p *preparation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.preparation == p {
		r.preparation = nil
	}
}

// takePreparation returns the preparation of a definition, if there is one, and forgets it if it is done.
func (r *running) takePreparation(key saga.Fingerprint) *preparation {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.preparation
	if p == nil || p.definition != key {
		return nil
	}
	if !errors.Is(p.err, ErrPreparing) {
		r.preparation = nil
	}
	c := *p
	return &c
}

// compileNow returns the plan of a recorded definition. It waits if that takes long to compile.
func (e *Engine) compileNow(ctx context.Context, namespace string, def saga.Definition) (*saga.Plan, error) {
	if plan, small, err := e.Plans.compileSmall(def, e.Participants, true); small {
		return plan, err
	}
	type compiled struct {
		plan *saga.Plan
		err  error
	}
	done := make(chan compiled, 1)
	e.compiling.submit(namespace, func() {
		if ctx.Err() == nil {
			plan, err := e.Plans.compile(def, e.Participants, true)
			done <- compiled{plan, err}
		}
	})
	select {
	case c := <-done:
		return c.plan, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
