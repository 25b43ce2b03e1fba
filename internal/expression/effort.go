package expression

import (
	"errors"

	"cel.dev/cel-go/common/ast"
)

// Limits of the work to check and compile expressions. The unit takes up to three microseconds, and
// mostly less than one.
const (
	// maxEffort limits the expressions of one saga together.
	maxEffort = 1_000_000
	// maxExpressionEffort limits one expression.
	maxExpressionEffort = 50_000
	// smallEffort takes so little time that namespaces need not take turns.
	smallEffort = 10_000

	effortPerExpression = 100
	bytesPerEffort      = 2 // of the text of an expression
	effortPerNode       = 10
	depthPerEffort      = 8 // of the square of a node's depth: the types of nested values grow with it
)

var (
	errEffort     = errors.New("it takes too much work to check; write it more simply, with fewer values or less nesting")
	errEffortLeft = errors.New("the expressions of the saga up to this one take too much work to check; have fewer, or simpler ones")
)

// Effort is the work that it may take to compile the templates of one saga. It is computed from the
// expressions alone, so that the same definition is accepted every time. A nil Effort has no limit.
type Effort struct{ left int64 }

// NewEffort returns the effort that a new saga may take.
func NewEffort() *Effort { return &Effort{left: maxEffort} }

// SmallEffort returns an effort that takes milliseconds, at most about thirty.
func SmallEffort() *Effort { return &Effort{left: smallEffort} }

// Exceeded reports whether a compilation was stopped because there was not enough effort left.
func (e *Effort) Exceeded() bool { return e != nil && e.left < 0 }

// spend reports whether the effort was still available.
func (e *Effort) spend(effort int64) bool {
	if e == nil {
		return true
	}
	e.left -= effort
	return e.left >= 0
}

// textEffort returns the effort to parse an expression.
func textEffort(source string) int64 {
	return effortPerExpression + int64(len(source)/bytesPerEffort)
}

// nodeEffort returns the effort to check and compile an expression at a depth of nesting.
func nodeEffort(e ast.Expr, depth int64) int64 {
	effort := effortPerNode + depth*depth/depthPerEffort
	for _, child := range children(e) {
		effort += nodeEffort(child, depth+1)
	}
	return effort
}

func children(e ast.Expr) []ast.Expr {
	switch e.Kind() {
	case ast.SelectKind:
		return []ast.Expr{e.AsSelect().Operand()}
	case ast.CallKind:
		c := e.AsCall()
		if c.IsMemberFunction() {
			return append([]ast.Expr{c.Target()}, c.Args()...)
		}
		return c.Args()
	case ast.ListKind:
		return e.AsList().Elements()
	case ast.MapKind:
		var all []ast.Expr
		for _, entry := range e.AsMap().Entries() {
			all = append(all, entry.AsMapEntry().Key(), entry.AsMapEntry().Value())
		}
		return all
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		return []ast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()}
	}
	return nil
}
