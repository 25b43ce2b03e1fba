package engine

import (
	"fmt"
	"sync"

	"github.com/vextrus/saga-operator/internal/panics"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// maxPlanBytes limits the memory of the plans that are kept, as planBytes estimates it. If it is exceeded,
// all plans are dropped: thousands of sagas share a few definitions, so that costs little and needs no
// bookkeeping.
const maxPlanBytes = 64 << 20

// planBytes estimates the memory of a plan from measurements: a compiled expression takes about 16 KiB,
// and long ones up to 64 times their text; a mere reference to a value takes next to nothing.
func planBytes(plan *saga.Plan) int {
	const fixed = 4 << 10
	n := len(plan.EncodedDefinition())
	return fixed + 2*n + expressionBytes(plan, n)
}

// expressionBytes estimates the memory of the compiled expressions of a plan. text is the number of bytes
// of text that contains them.
func expressionBytes(plan *saga.Plan, text int) int {
	const reference, interpreted, perByteOfText = 256, 16 << 10, 64
	all, n := plan.Expressions()
	size := all*reference + n*interpreted
	if n > 0 {
		size += perByteOfText * text
	}
	return size
}

// Plans keeps compiled plans by the content of their definition. Engines that share one have participants of the same kinds. It is safe
// for concurrent use.
type Plans struct {
	mu    sync.Mutex
	plans map[saga.Fingerprint]*saga.Plan
	bytes int
}

// NewPlans returns an empty cache.
func NewPlans() *Plans { return &Plans{plans: map[saga.Fingerprint]*saga.Plan{}} }

// get returns the plan of a definition, or nil if it is not kept.
func (c *Plans) get(key saga.Fingerprint) *saga.Plan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.plans[key]
}

// compile returns the plan of a definition that kinds carry out, and keeps it. A recorded definition is
// the one with which a saga was started. The error is a *DefinitionError. It may take seconds for the
// largest definitions; see compileSmall.
func (c *Plans) compile(def saga.Definition, kinds participant.Registry, recorded bool) (*saga.Plan, error) {
	if plan := c.get(def.Fingerprint()); plan != nil {
		return plan, nil
	}
	compile := saga.Compile
	if recorded {
		compile = saga.CompileRecorded
	}
	plan, wrong := compileSafely(func() (*saga.Plan, []saga.FieldError) {
		plan, wrong := compile(def)
		return plan, append(wrong, checkKinds(&def, kinds)...)
	})
	return c.keep(def.Fingerprint(), plan, wrong, recorded)
}

// compileSmall is compile for a definition that takes milliseconds. For any other, it reports false.
func (c *Plans) compileSmall(def saga.Definition, kinds participant.Registry, recorded bool) (plan *saga.Plan, small bool, err error) {
	if plan := c.get(def.Fingerprint()); plan != nil {
		return plan, true, nil
	}
	small = true
	plan, wrong := compileSafely(func() (plan *saga.Plan, wrong []saga.FieldError) {
		if plan, wrong, small = saga.CompileSmall(def); small {
			wrong = append(wrong, checkKinds(&def, kinds)...)
		}
		return plan, wrong
	})
	if !small {
		return nil, false, nil
	}
	plan, err = c.keep(def.Fingerprint(), plan, wrong, recorded)
	return plan, true, err
}

func checkKinds(def *saga.Definition, kinds participant.Registry) []saga.FieldError {
	if len(def.Steps) > saga.MaxSteps {
		return nil
	}
	return kinds.Check(def)
}

// keep keeps a plan, or returns what is wrong with its definition.
func (c *Plans) keep(key saga.Fingerprint, plan *saga.Plan, wrong []saga.FieldError, recorded bool) (*saga.Plan, error) {
	if len(wrong) > 0 {
		return nil, &DefinitionError{Fields: wrong, Recorded: recorded}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	size := planBytes(plan)
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
			plan, fields = nil, []saga.FieldError{{Message: fmt.Sprintf("compiling it panicked%s: %v; this is a fault of the operator, please report it", panics.Site(), p)}}
		}
	}()
	return compile()
}
