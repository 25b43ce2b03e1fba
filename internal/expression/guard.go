package expression

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// CEL charges an operation when it is done. That bounds loops, but not one operation that alone is too much: the replacement of every
// letter of a long string by another long string, the comparison of two lists that hold themselves a thousand times over. The guards
// here look before, and end the whole evaluation: an error would do for one call, but all() and exists() go on after an error. There are
// three:
//
//   - what functions are about to make or do is estimated from their arguments (guardedFunctions);
//   - whatever an expression makes, beyond what it only points at, is charged to a budget per evaluation (charged);
//   - a regular expression is bounded by its own size times that of its text (matches).
const (
	maxWork         = 4 << 20                     // element comparisons or text steps of one call
	maxRegexWork    = regexStepsPerCost * maxCost // bytes of text times instructions of the program
	maxRegexProgram = 1000
	bytesPerNode    = 32 // a string counts as one node for every so many bytes
)

var (
	errMakesTooMuch = errors.New("it makes too much data on the way")
	errTooMuchWork  = errors.New("its arguments are too large for this function")
)

// stop ends the evaluation the way CEL does it itself when a limit is exceeded.
func stop(err error) {
	panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: err.Error()})
}

// estimates say for each function whether its arguments are too large.
var estimates = map[string]func(args []ref.Val) error{
	"replace":         estimateReplace,
	"join":            estimateJoin,
	"format":          estimateFormat,
	"indexOf":         estimateSearch,
	"lastIndexOf":     estimateSearch,
	"distinct":        estimatePairs,
	"sets.contains":   estimatePairs,
	"sets.equivalent": estimatePairs,
	"sets.intersects": estimatePairs,
	"hasOnly":         estimatePairs,
	"hasAny":          estimatePairs,
	"hasAll":          estimatePairs,
	"hasExactly":      estimatePairs,
	"sort":            estimateWeight,
	"flatten":         estimateWeight,
	"base64.encode":   estimateWeight,
	"base64.decode":   estimateWeight,
	"strings.quote":   estimateWeight,
	"reverse":         estimateWeight,
	"substring":       estimateWeight,
	"charAt":          estimateWeight,
}

// guardedFunctions wraps the functions that estimates names.
func guardedFunctions(env *cel.Env) ([]*functions.Overload, error) {
	var all []*functions.Overload
	for name, estimate := range estimates {
		bindings, err := env.Functions()[name].Bindings()
		if err != nil {
			return nil, err
		}
		if len(bindings) == 0 {
			return nil, fmt.Errorf("no function %q to guard", name)
		}
		for _, b := range bindings {
			all = append(all, wrap(*b, estimate))
		}
	}
	return all, nil
}

func wrap(o functions.Overload, estimate func([]ref.Val) error) *functions.Overload {
	if unary := o.Unary; unary != nil {
		o.Unary = func(a ref.Val) ref.Val {
			if err := estimate([]ref.Val{a}); err != nil {
				stop(err)
			}
			return unary(a)
		}
	}
	if binary := o.Binary; binary != nil {
		o.Binary = func(a, b ref.Val) ref.Val {
			if err := estimate([]ref.Val{a, b}); err != nil {
				stop(err)
			}
			return binary(a, b)
		}
	}
	if function := o.Function; function != nil {
		o.Function = func(args ...ref.Val) ref.Val {
			if err := estimate(args); err != nil {
				stop(err)
			}
			return function(args...)
		}
	}
	return &o
}

// texts returns the arguments when the first n are strings; what is not is left to the function to complain about.
func texts(args []ref.Val, n int) ([]string, bool) {
	if len(args) < n {
		return nil, false
	}
	out := make([]string, n)
	for i := range n {
		s, ok := args[i].(types.String)
		if !ok {
			return nil, false
		}
		out[i] = string(s)
	}
	return out, true
}

func estimateReplace(args []ref.Val) error {
	s, ok := texts(args, 3)
	if !ok {
		return nil
	}
	n := strings.Count(s[0], s[1])
	if len(args) == 4 {
		if most, ok := args[3].(types.Int); ok && most >= 0 && int64(most) < int64(n) {
			n = int(most)
		}
	}
	if len(s[0])+n*(len(s[2])-len(s[1])) > MaxRenderedBytes {
		return errTooLarge
	}
	return nil
}

func estimateJoin(args []ref.Val) error {
	l, ok := args[0].(traits.Lister)
	if !ok {
		return nil
	}
	total := 0
	n := l.Size().(types.Int)
	if len(args) == 2 {
		if s, ok := args[1].(types.String); ok {
			total = len(s) * int(n)
		}
	}
	for i := types.Int(0); i < n && total <= MaxRenderedBytes; i++ {
		if s, ok := l.Get(i).(types.String); ok {
			total += len(s)
		}
	}
	if total > MaxRenderedBytes {
		return errTooLarge
	}
	return nil
}

// estimateFormat counts each argument once, because format uses each once, and three times as long as it is in memory, for %x.
func estimateFormat(args []ref.Val) error {
	left := MaxRenderedBytes / bytesPerNode / 3
	for _, a := range args {
		if left -= weigh(a, left); left < 0 {
			return errTooLarge
		}
	}
	return nil
}

func estimateSearch(args []ref.Val) error {
	if s, ok := texts(args, 2); ok && len(s[0])*len(s[1]) > maxWork {
		return errTooMuchWork
	}
	return nil
}

// estimatePairs is for functions that compare each element with each.
func estimatePairs(args []ref.Val) error {
	if pairWork(args) > maxWork {
		return errTooMuchWork
	}
	return nil
}

func estimateWeight(args []ref.Val) error {
	if weigh(args[0], maxNodes) > maxNodes {
		return errTooMuchWork
	}
	return nil
}

// guard decorates the plan of one expression.
func (w *walker) guard(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	switch n := i.(type) {
	case interpreter.InterpretableConstructor:
		return &charged{n}, nil
	case interpreter.InterpretableCall:
		switch {
		case n.Function() == overloads.Matches && len(n.Args()) == 2:
			return matches(n)
		case n.Function() == operators.Add && w.appends[n.ID()]:
			// The element that is added was charged when it was made; the list grows in place.
			return i, nil
		}
		return &charged{n}, nil
	}
	return i, nil
}

// charged charges what a node makes to the evaluation's budget.
type charged struct{ interpreter.InterpretableV2 }

// Exec implements interpreter.InterpretableV2.
func (c *charged) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	if frame.CheckInterrupt() {
		panic(interpreter.EvalCancelledError{Cause: interpreter.ContextCancelled, Message: ErrInterrupted.Error()})
	}
	v := c.InterpretableV2.Exec(frame)
	switch v := v.(type) {
	case types.String:
		if len(v) < bytesPerNode {
			return v
		}
	case types.Bytes, traits.Lister, traits.Mapper:
	default:
		return v
	}
	b, _ := frame.ResolveName(budgetName)
	budget, ok := b.(*int)
	if !ok {
		stop(errMakesTooMuch)
	}
	if *budget -= weigh(v, *budget); *budget < 0 {
		stop(errMakesTooMuch)
	}
	// A map literal does not pass the adapter.
	if m, ok := v.(traits.Mapper); ok {
		return ordered(m)
	}
	return v
}

// Eval implements interpreter.Interpretable.
func (c *charged) Eval(a interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(a, c.Exec)
}

// weigh counts the values that are reachable from v, and stops soon after most. What is reachable in two ways counts twice, because
// that is what it costs to compare or to render it.
func weigh(value any, most int) int {
	switch v := value.(type) {
	case types.String:
		return 1 + len(v)/bytesPerNode
	case string:
		return 1 + len(v)/bytesPerNode
	case types.Bytes:
		return 1 + len(v)/bytesPerNode
	case map[string]any:
		n := 1
		for k, e := range v {
			if n += 1 + len(k)/bytesPerNode + weigh(e, most-n); n > most {
				break
			}
		}
		return n
	case []any:
		n := 1
		for _, e := range v {
			if n += weigh(e, most-n); n > most {
				break
			}
		}
		return n
	case orderedMap:
		return weigh(v.Mapper, most)
	case traits.Mapper:
		if native, ok := v.Value().(map[string]any); ok {
			return weigh(native, most)
		}
		n := 1
		for it := v.Iterator(); n <= most && it.HasNext() == types.True; {
			key := it.Next()
			n += weigh(key, most-n)
			n += weigh(v.Get(key), most-n)
		}
		return n
	case traits.Lister:
		n := 1
		for i, size := types.Int(0), v.Size().(types.Int); i < size && n <= most; i++ {
			n += weigh(v.Get(i), most-n)
		}
		return n
	}
	return 1
}

// matches replaces CEL's own matching by one that looks at the size of its arguments and compiles a constant pattern once.
func matches(call interpreter.InterpretableCall) (interpreter.InterpretableV2, error) {
	var constant *pattern
	if c, ok := call.Args()[1].(interpreter.InterpretableConst); ok {
		if s, ok := c.Value().(types.String); ok {
			p, err := compilePattern(string(s))
			if err != nil {
				return nil, err
			}
			constant = p
		}
	}
	return &charged{interpreter.NewCall(call.ID(), call.Function(), call.OverloadID(), call.Args(), func(args ...ref.Val) ref.Val {
		s, ok := texts(args, 2)
		if !ok {
			return types.NewErr("matches needs a text and a pattern")
		}
		p := constant
		if p == nil {
			var err error
			if p, err = compilePattern(s[1]); err != nil {
				return types.WrapErr(err)
			}
		}
		if len(s[0])*p.size > maxRegexWork {
			stop(errTooMuchWork)
		}
		return types.Bool(p.MatchString(s[0]))
	})}, nil
}

type pattern struct {
	*regexp.Regexp
	size int
}

func compilePattern(s string) (*pattern, error) {
	size, err := types.RegexProgramSize(s)
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", clip(s), err)
	}
	if size > maxRegexProgram {
		return nil, fmt.Errorf("regular expression %q: its program has %d instructions; the limit is %d", clip(s), size, maxRegexProgram)
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, err
	}
	return &pattern{re, size}, nil
}
