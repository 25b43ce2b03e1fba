package saga

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/internal/expression"
)

// Compile checks a definition and makes a plan of it. It reports everything that is wrong, each with the field it is wrong in; the plan is nil then.
// It may take seconds for the largest definitions.
func Compile(def Definition) (*Plan, []FieldError) { return compile(def, expression.NewEffort()) }

// CompileRecorded is Compile for a definition that was accepted before. It does not limit the effort to
// check the expressions: that is counted before a saga starts, and must not hold up one that has.
func CompileRecorded(def Definition) (*Plan, []FieldError) { return compile(def, nil) }

// CompileSmall is Compile for a definition that takes milliseconds, as most do. For any other, it
// reports false.
func CompileSmall(def Definition) (plan *Plan, errs []FieldError, small bool) {
	effort := expression.SmallEffort()
	plan, errs = compile(def, effort)
	if effort.Exceeded() {
		return nil, nil, false
	}
	return plan, errs, true
}

func compile(def Definition, effort *expression.Effort) (*Plan, []FieldError) {
	c := &compiler{effort: effort, plan: &Plan{def: def, steps: make([]planStep, len(def.Steps)), index: make(map[string]int, len(def.Steps))}}
	c.checkSize()
	if len(c.errors) > 0 {
		return nil, c.errors
	}
	c.indexSteps()
	c.linkSteps()
	c.sortSteps()
	if len(c.errors) == 0 { // what an expression may read is known only in a sound graph
		c.findAncestors()
		for i := range def.Steps {
			if c.compileStep(i); len(c.errors) >= maxErrors {
				break
			}
		}
	}
	if len(c.errors) > 0 {
		return nil, c.errors
	}
	var err error
	if c.plan.encoded, err = json.Marshal(def); err != nil {
		return nil, []FieldError{{Field: "steps", Message: "they cannot be encoded: " + err.Error()}}
	}
	c.plan.fingerprint = def.Fingerprint()
	return c.plan, nil
}

// maxErrors is after how many errors the remaining steps are not looked at.
const maxErrors = 100

// stepSet is a set of steps by index.
type stepSet [(MaxSteps + 63) / 64]uint64

func (s *stepSet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s *stepSet) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s *stepSet) addAll(o *stepSet) {
	for k := range s {
		s[k] |= o[k]
	}
}

type compiler struct {
	plan      *Plan
	ancestors []stepSet
	effort    *expression.Effort
	errors    []FieldError
}

func (c *compiler) fail(field, format string, args ...any) {
	c.errors = append(c.errors, FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
}

func (c *compiler) checkSize() {
	def := &c.plan.def
	switch n := len(def.Steps); {
	case n == 0:
		c.fail("steps", "a saga needs at least one step")
	case n > MaxSteps:
		c.fail("steps", "%d steps are more than the limit of %d", n, MaxSteps)
	}
	c.checkDuration("deadline", def.Deadline, 0, MaxDeadline)
}

func (c *compiler) checkDuration(field string, d, low, high time.Duration) {
	if d < low || d > high {
		c.fail(field, "%s is not between %s and %s", d, low, high)
	}
}

func (c *compiler) indexSteps() {
	for i, step := range c.plan.def.Steps {
		field := fmt.Sprintf("steps[%d].name", i)
		if err := checkName(step.Name); err != "" {
			c.fail(field, "%s", err)
		}
		if first, twice := c.plan.index[step.Name]; twice {
			c.fail(field, "steps[%d] has the name %q already", first, step.Name)
			continue
		}
		c.plan.index[step.Name] = i
	}
}

// checkName holds names to what may stand in an idempotency key and in a URL: a DNS label.
func checkName(name string) string {
	if name == "" || len(name) > MaxNameLength {
		return fmt.Sprintf("a name has 1 to %d characters, this one has %d", MaxNameLength, len(name))
	}
	for i, r := range name {
		inner := i > 0 && i < len(name)-1
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && (r != '-' || !inner) {
			return fmt.Sprintf("%q is not a name: it may hold lower-case letters, digits and, inside, hyphens", name)
		}
	}
	return ""
}

func (c *compiler) linkSteps() {
	for i, step := range c.plan.def.Steps {
		if n := len(step.DependsOn); n > MaxDependenciesStep {
			c.fail(fmt.Sprintf("steps[%d].dependsOn", i), "%d dependencies are more than the limit of %d", n, MaxDependenciesStep)
			continue
		}
		for k, name := range step.DependsOn {
			field := fmt.Sprintf("steps[%d].dependsOn[%d]", i, k)
			j, ok := c.plan.index[name]
			switch {
			case !ok:
				c.fail(field, "there is no step named %q", name)
			case j == i:
				c.fail(field, "step %q depends on itself", name)
			case slices.Contains(step.DependsOn[:k], name):
				c.fail(field, "%q is listed twice", name)
			default:
				c.plan.steps[i].dependencies = append(c.plan.steps[i].dependencies, j)
				c.plan.steps[j].dependents = append(c.plan.steps[j].dependents, i)
			}
		}
	}
}

// sortSteps puts the steps into topological order (Kahn 1962), and names one cycle where there is none.
func (c *compiler) sortSteps() {
	open := make([]int, len(c.plan.steps)) // dependencies that are not in the order yet
	var ready []int
	for i := range c.plan.steps {
		if open[i] = len(c.plan.steps[i].dependencies); open[i] == 0 {
			ready = append(ready, i)
		}
	}
	for len(ready) > 0 {
		i := ready[0]
		ready = ready[1:]
		c.plan.order = append(c.plan.order, i)
		for _, d := range c.plan.steps[i].dependents {
			if open[d]--; open[d] == 0 {
				ready = append(ready, d)
			}
		}
	}
	if len(c.plan.order) < len(c.plan.steps) && len(c.errors) == 0 {
		c.reportCycle(open)
	}
}

// reportCycle walks from a step that is left over along dependencies that are left over; they must lead back.
func (c *compiler) reportCycle(open []int) {
	i := slices.IndexFunc(open, func(n int) bool { return n > 0 })
	seen := map[int]int{}
	var path []int
	for {
		if start, ok := seen[i]; ok {
			path = append(path[start:], i)
			break
		}
		seen[i] = len(path)
		path = append(path, i)
		deps := c.plan.steps[i].dependencies
		i = deps[slices.IndexFunc(deps, func(d int) bool { return open[d] > 0 })]
	}
	names := make([]string, len(path))
	for k, j := range path {
		names[k] = c.plan.def.Steps[j].Name
	}
	c.fail(fmt.Sprintf("steps[%d].dependsOn", path[0]), "the steps depend on each other in a circle: %s", strings.Join(names, " → "))
}

func (c *compiler) findAncestors() {
	c.ancestors = make([]stepSet, len(c.plan.steps))
	for _, i := range c.plan.order {
		for _, d := range c.plan.steps[i].dependencies {
			c.ancestors[i].add(d)
			c.ancestors[i].addAll(&c.ancestors[d])
		}
	}
}

func (c *compiler) compileStep(i int) {
	step, field := &c.plan.def.Steps[i], "steps["+strconv.Itoa(i)+"]"
	readable := c.ancestors[i]
	c.plan.steps[i].do = c.compileEffect(field, &step.Do, readable)
	c.plan.steps[i].replied = map[Direction]bool{Action: repliesLater(step.Do.With), Compensation: step.Compensation != nil && repliesLater(step.Compensation.With)}
	c.compileOutput(i, field, readable)
	if step.Compensation != nil {
		readable.add(i)
		c.plan.steps[i].compensation = c.compileEffect(field+".compensation", step.Compensation, readable)
	}
}

func (c *compiler) compileEffect(field string, e *Effect, readable stepSet) *expression.Template {
	c.checkDuration(field+".attemptTimeout", e.AttemptTimeout, time.Millisecond, MaxAttemptTimeout)
	if n := e.Retry.MaxAttempts; n < 1 || n > MaxAttempts {
		c.fail(field+".retry.maxAttempts", "%d is not between 1 and %d", n, MaxAttempts)
	}
	c.checkDuration(field+".retry.initialBackoff", e.Retry.InitialBackoff, 0, MaxBackoff)
	c.checkDuration(field+".retry.maxBackoff", e.Retry.MaxBackoff, e.Retry.InitialBackoff, MaxBackoff)
	if e.Kind == "" {
		c.fail(field, "it does not say what to do")
		return nil
	}
	with, err := expression.Decode(e.With)
	if err != nil {
		c.fail(field+"."+e.Kind, "%v", err)
		return nil
	}
	if _, ok := with.(map[string]any); !ok {
		c.fail(field+"."+e.Kind, "the settings are not an object")
		return nil
	}
	return c.compileTemplate(field+"."+e.Kind, with, expression.WithoutResponse, readable)
}

func (c *compiler) compileOutput(i int, field string, readable stepSet) {
	step := &c.plan.def.Steps[i]
	if len(step.Output) == 0 {
		return
	}
	if n := len(step.Output); n > MaxOutputsPerStep {
		c.fail(field+".output", "%d outputs are more than the limit of %d", n, MaxOutputsPerStep)
		return
	}
	tree := make(map[string]any, len(step.Output))
	for k, v := range step.Output {
		tree[k] = v
	}
	c.plan.steps[i].output = c.compileTemplate(field+".output", tree, expression.WithResponse, readable)
}

func (c *compiler) compileTemplate(field string, tree any, vars expression.Vars, readable stepSet) *expression.Template {
	t, errs := expression.CompileWithin(tree, vars, c.effort)
	for _, e := range errs {
		path := field
		if e.Path != "" {
			path += "." + e.Path
		}
		c.fail(path, "%s", e.Message)
	}
	if len(errs) > 0 {
		return nil
	}
	before := c.plan.expressions
	c.plan.interpreted += t.Interpreted()
	if c.plan.expressions += t.Expressions(); c.plan.expressions > MaxExpressions && before <= MaxExpressions { // said once
		c.fail(field, "with those of this field there are more than %d expressions in all steps together", MaxExpressions)
	}
	for _, name := range t.Steps() {
		j, ok := c.plan.index[name]
		switch {
		case !ok:
			c.fail(field, "an expression reads steps[%q], but there is no step named %q", name, name)
		case !readable.has(j):
			c.fail(field, "an expression reads steps[%q], which is not sure to be done by then: only steps that this one depends on can be read", name)
		}
	}
	return t
}

func reads(t *expression.Template, step string) bool { return slices.Contains(t.Steps(), step) }
