package expression

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// walker checks what CEL does not: which steps are read must be known before anything runs.
type walker struct {
	source string
	steps  []string
	// input and saga are true if the expression reads the variable of that name.
	input, saga bool
	// appends holds the ids of the additions by which comprehensions gather their results.
	appends map[int64]bool
	err     error
}

func (w *walker) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *walker) walk(e ast.Expr) {
	if name, ok := w.step(e); ok {
		w.steps = append(w.steps, name)
		return
	}
	switch e.Kind() {
	case ast.IdentKind:
		switch variable(e) {
		case "input":
			w.input = true
		case "saga":
			w.saga = true
		case "steps":
			w.fail(`steps can only be used with the name of a step behind it: steps.NAME.output or steps["NAME"].output`)
		}
	case ast.SelectKind:
		w.selection(e.AsSelect())
	case ast.CallKind:
		w.call(e.AsCall())
	case ast.ListKind:
		for _, element := range e.AsList().Elements() {
			w.walk(element)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			w.walk(entry.AsMapEntry().Key())
			w.walk(entry.AsMapEntry().Value())
		}
	case ast.StructKind:
		w.fail("%s{…} makes a protocol buffer message; only JSON values can be made here", e.AsStruct().TypeName())
	case ast.ComprehensionKind:
		w.comprehension(e.AsComprehension())
	}
}

func (w *walker) selection(s ast.SelectExpr) {
	operand, field := s.Operand(), s.FieldName()
	if name, ok := w.step(operand); ok && field != "output" {
		w.fail("a step has only output: write steps[%q].output", name)
	}
	if variable(operand) == "saga" && !slices.Contains([]string{"name", "namespace", "uid"}, field) {
		w.fail("saga has name, namespace and uid, but no %s", field)
	}
	w.walk(operand)
}

func (w *walker) call(c ast.CallExpr) {
	if name, ok := w.dashed(c); ok {
		w.fail("steps.%s is a subtraction in CEL; write steps[%q]", name, name)
		return
	}
	if c.FunctionName() == operators.Index && variable(c.Args()[0]) == "steps" {
		w.fail(`the name of a step must be written out, as in steps["NAME"]: which steps are read must be known before the saga starts`)
		return
	}
	if c.IsMemberFunction() {
		w.walk(c.Target())
	}
	for _, arg := range c.Args() {
		w.walk(arg)
	}
}

func (w *walker) comprehension(c ast.ComprehensionExpr) {
	for _, name := range []string{c.IterVar(), c.IterVar2(), c.AccuVar()} {
		switch name {
		case "input", "saga", "steps", "response":
			w.fail("%s is a variable already; give the loop's variable another name", name)
			return
		}
	}
	if w.appends == nil {
		w.appends = map[int64]bool{}
	}
	// map and filter add to their result as accu + [x], perhaps behind a condition.
	steps := []ast.Expr{c.LoopStep()}
	for len(steps) > 0 {
		step := steps[0]
		steps = steps[1:]
		if step.Kind() != ast.CallKind {
			continue
		}
		switch call := step.AsCall(); call.FunctionName() {
		case operators.Conditional:
			steps = append(steps, call.Args()[1:]...)
		case operators.Add:
			if left := call.Args()[0]; left.Kind() == ast.IdentKind && left.AsIdent() == c.AccuVar() {
				w.appends[step.ID()] = true
			}
		}
	}
	for _, part := range []ast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()} {
		w.walk(part)
	}
}

// step recognizes steps.NAME and steps["NAME"].
func (w *walker) step(e ast.Expr) (string, bool) {
	switch e.Kind() {
	case ast.SelectKind:
		return e.AsSelect().FieldName(), variable(e.AsSelect().Operand()) == "steps"
	case ast.CallKind:
		c := e.AsCall()
		if c.FunctionName() != operators.Index || variable(c.Args()[0]) != "steps" || c.Args()[1].Kind() != ast.LiteralKind {
			return "", false
		}
		name, ok := c.Args()[1].AsLiteral().(types.String)
		return string(name), ok
	}
	return "", false
}

// dashed recognizes steps.reserve-stock, which parses as (steps.reserve) - stock, and returns the name that was meant.
func (w *walker) dashed(c ast.CallExpr) (string, bool) {
	if c.FunctionName() != operators.Subtract {
		return "", false
	}
	var left string
	switch l := c.Args()[0]; l.Kind() {
	case ast.SelectKind:
		name, ok := w.step(l)
		if !ok {
			return "", false
		}
		left = name
	case ast.CallKind:
		name, ok := w.dashed(l.AsCall())
		if !ok {
			return "", false
		}
		left = name
	default:
		return "", false
	}
	right := c.Args()[1]
	for right.Kind() == ast.SelectKind {
		right = right.AsSelect().Operand()
	}
	switch right.Kind() {
	case ast.IdentKind:
		return left + "-" + right.AsIdent(), true
	case ast.LiteralKind:
		return left + "-" + fmt.Sprint(right.AsLiteral().Value()), true
	}
	return left + "-…", true
}

// variable returns the name when the expression is nothing but a name.
func variable(e ast.Expr) string {
	if e.Kind() != ast.IdentKind {
		return ""
	}
	return strings.TrimPrefix(e.AsIdent(), ".")
}

// follows returns the names along an expression that does nothing but follow names from a variable, or nil.
func follows(e ast.Expr) []string {
	var names []string
	for {
		switch e.Kind() {
		case ast.IdentKind:
			name := variable(e)
			if _, known := (&Scope{}).variable(name); !known {
				return nil
			}
			names = append(names, name)
			slices.Reverse(names)
			return names
		case ast.SelectKind:
			s := e.AsSelect()
			if s.IsTestOnly() {
				return nil
			}
			names = append(names, s.FieldName())
			e = s.Operand()
		case ast.CallKind:
			c := e.AsCall()
			if c.FunctionName() != operators.Index || c.Args()[1].Kind() != ast.LiteralKind {
				return nil
			}
			key, ok := c.Args()[1].AsLiteral().(types.String)
			if !ok {
				return nil
			}
			names = append(names, string(key))
			e = c.Args()[0]
		default:
			return nil
		}
	}
}

var (
	errTooLarge = fmt.Errorf("the rendered value is larger than %d bytes", MaxRenderedBytes)
	errTooMany  = fmt.Errorf("the rendered value holds more than %d values", maxNodes)
	errTooDeep  = fmt.Errorf("the rendered value is nested deeper than %d levels", MaxDepth)
	errNull     = errors.New("it is null, which cannot be part of a text")
)
