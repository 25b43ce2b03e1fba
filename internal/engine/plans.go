package engine

import (
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// maxPlanBytes bounds, roughly, the memory of the plans that are kept; expressionBytes is what a compiled expression takes of it. Thousands of sagas share a few definitions, so starting afresh when the bound is reached
// costs little and needs no bookkeeping.
const (
	maxPlanBytes    = 64 << 20
	expressionBytes = 8 << 10
)

// Plans keeps compiled plans by the content of their definition. Engines that share one have participants of the same kinds. It is safe
// for concurrent use.
type Plans struct {
	mu    sync.Mutex
	plans map[saga.Fingerprint]*saga.Plan
	bytes int
}

// NewPlans returns an empty cache.
func NewPlans() *Plans { return &Plans{plans: map[saga.Fingerprint]*saga.Plan{}} }

// compile makes the plan of a definition that kinds carry out.
func (c *Plans) compile(def saga.Definition, kinds participant.Registry) (*saga.Plan, error) {
	key := def.Fingerprint()
	c.mu.Lock()
	plan := c.plans[key]
	c.mu.Unlock()
	if plan != nil {
		return plan, nil
	}
	plan, fields := compileSafely(func() (*saga.Plan, []saga.FieldError) {
		plan, wrong := saga.Compile(def)
		return plan, append(wrong, kinds.Check(&def)...)
	})
	if len(fields) > 0 {
		return nil, &DefinitionError{Fields: fields}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	size := 2*len(plan.EncodedDefinition()) + plan.Expressions()*expressionBytes
	if c.bytes += size; c.bytes > maxPlanBytes {
		clear(c.plans)
		c.bytes = size
	}
	c.plans[key] = plan
	return plan, nil
}

// compileSafely turns a panic in what reads users' text into an error of this one saga.
func compileSafely(compile func() (*saga.Plan, []saga.FieldError)) (plan *saga.Plan, fields []saga.FieldError) {
	defer func() {
		if p := recover(); p != nil {
			plan, fields = nil, []saga.FieldError{{Field: "steps", Message: fmt.Sprintf("compiling them panicked: %v\n%s", p, debug.Stack())}}
		}
	}()
	return compile()
}
