// Package expression evaluates what users write between ${ and }: CEL, the language that Kubernetes users already know, without
// clock, randomness or I/O, and with a limit on everything.
//
// A template is any JSON value. Each string in it may hold expressions:
//
//   - A string that is exactly ${…} becomes the value of the expression and keeps its type.
//   - Inside a longer string the value is rendered as text: a string as it is, a number or a boolean as in JSON, a list or a map as compact
//     JSON. A missing value or null is an error there, because the text would silently mean something else.
//   - $${ is a literal ${.
//
// In scope are input, saga (name, namespace, uid), steps.NAME.output (steps["NAME"] where the name holds a dash), and, for outputs only,
// response. Besides the standard library of CEL there are its extensions strings, math, lists, sets, bindings, and base64. Maps are
// walked in the order of their keys, so that an expression has one value and not several.
//
// The string under the key url at the root of settings is a URL, and values are escaped for the place at which they stand in it: what
// is rendered into a path or a query can neither leave it nor add to it.
package expression

import (
	"context"
	"errors"
	"slices"
	"sort"
)

// Limits of expressions and of what they make.
const (
	// MaxExpressionBytes bounds the text between ${ and }.
	MaxExpressionBytes = 4 << 10
	// MaxRenderedBytes bounds a rendered value, counted about as its JSON is long.
	MaxRenderedBytes = 1 << 20
	// MaxDepth bounds the nesting of templates, of decoded JSON and of rendered values.
	MaxDepth = 32
	// MaxExpressions bounds the expressions of one template: each takes some KiB of memory when it is compiled.
	MaxExpressions = 2_000
	// maxCost bounds one evaluation, in CEL's units: about one per simple operation.
	maxCost = 200_000
	// maxTemplateCost bounds what all expressions of a template cost together, in the same units.
	maxTemplateCost = 2_000_000
	// maxNodes bounds a rendered value in another way, so that many tiny values cannot cost much memory.
	maxNodes = 256 << 10
)

// Scope is what an expression may see. Its values are JSON-like: nil, bool, int64, float64, string, []any, map[string]any. It is only
// read.
type Scope struct {
	Input any
	// Saga holds name, namespace and uid.
	Saga map[string]any
	// Steps maps the name of each finished step to a map with its output.
	Steps map[string]any
	// Response is the participant's answer; only for templates that were compiled WithResponse.
	Response any
}

// Vars says which variables a template may name.
type Vars int

// The two sets of variables.
const (
	// WithoutResponse allows input, saga and steps: the settings of actions and compensations.
	WithoutResponse Vars = iota
	// WithResponse allows response as well: outputs.
	WithResponse
)

// Error says what is wrong at one place of a template.
type Error struct {
	// Path leads from the root of the value to the place, for example body.lines[0]; it is empty for the root.
	Path    string
	Message string
}

func (e Error) Error() string {
	if e.Path == "" {
		return e.Message
	}
	return e.Path + ": " + e.Message
}

// Template is a compiled value. It is immutable and safe for concurrent use.
type Template struct {
	root        node
	steps       []string
	input, saga bool
	expressions int
	interpreted int // expressions that are more than a reference
}

// Expressions returns how many expressions the template holds.
func (t *Template) Expressions() int { return t.expressions }

// Steps returns the names of the steps that the template reads, sorted and without repetition.
func (t *Template) Steps() []string { return slices.Clone(t.steps) }

// ReadsInput reports whether the template reads the input.
func (t *Template) ReadsInput() bool { return t.input }

// ReadsSaga reports whether the template reads the name, namespace or uid of the saga.
func (t *Template) ReadsSaga() bool { return t.saga }

// Static reports whether the template holds no expression.
func (t *Template) Static() bool { return t.expressions == 0 }

// Interpreted returns how many expressions are more than references to values.
func (t *Template) Interpreted() int { return t.interpreted }

// OnlyReferences reports whether every expression of the template is a reference, such as input.orderId,
// for which no interpreter is needed.
func (t *Template) OnlyReferences() bool { return t.interpreted == 0 }

// Compile checks and compiles a JSON-like value. It reports everything that is wrong, not only the first thing; the template is nil
// then. Errors after the hundredth are left out.
func Compile(value any, vars Vars) (*Template, []Error) {
	return CompileWithin(value, vars, NewEffort())
}

// CompileWithin is Compile for a template that shares its effort with others.
func CompileWithin(value any, vars Vars, effort *Effort) (*Template, []Error) {
	c := compiler{vars: vars, steps: map[string]bool{}, effort: effort}
	root := c.compile(value, "", 0)
	if len(c.errs) > 0 {
		return nil, c.errs
	}
	t := &Template{root: root, input: c.input, saga: c.saga, expressions: c.expressions, interpreted: c.interpreted, steps: make([]string, 0, len(c.steps))}
	for name := range c.steps {
		t.steps = append(t.steps, name)
	}
	sort.Strings(t.steps)
	return t, nil
}

// ErrInterrupted reports that the context of an evaluation ended before the evaluation did. The result is
// not known, and the same evaluation may succeed later.
var ErrInterrupted = errors.New("the evaluation took too long")

// Render evaluates the template. The result shares nothing with the scope.
//
// An error names the first place that fails, as an Error. It is ErrInterrupted when ctx ended first, which is noticed within
// milliseconds; any other error is a property of the template and the scope, so that the same call fails again.
func (t *Template) Render(ctx context.Context, s Scope) (any, error) {
	r := renderer{ctx: ctx, scope: s, cost: maxTemplateCost}
	return r.render(t.root, 0)
}

// Literals returns the texts around the expressions of a string, escapes resolved: one more than there are expressions, so one for a
// string without any. It returns nil for a string that Compile refuses because an expression does not end.
func Literals(s string) []string {
	parts, err := scan(s)
	if err != nil {
		return nil
	}
	literals := []string{""}
	for _, p := range parts {
		if p.expr {
			literals = append(literals, "")
		} else {
			literals[len(literals)-1] = p.text
		}
	}
	return literals
}
