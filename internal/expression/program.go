package expression

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// program is one compiled expression. It is immutable and safe for concurrent use.
type program struct {
	source string
	steps  []string
	// input and saga say whether it reads the variable of that name.
	input, saga bool
	// path is set when the expression only follows names, like input.orderId: most do, and need no interpreter.
	path []string
	// choices is set when the value is always one of the texts that are written in the expression.
	choices []string
	cel     cel.Program
}

// interruptFrequency is after how many calls and rounds of loops an evaluation looks whether its time is
// over.
const interruptFrequency = 64

// errCost says that the expressions of a template are too much together, though each may be little enough.
var errCost = errors.New("the expressions up to this one need too many operations together")

// eval returns a CEL value or a JSON-like one, and subtracts the cost of the evaluation from cost. It
// returns ErrInterrupted when ctx ends first.
func (p *program) eval(ctx context.Context, s Scope, cost *int64) (result any, err error) {
	if v, ok := p.follow(s); ok {
		return v, nil
	}
	if ctx.Err() != nil {
		return nil, ErrInterrupted
	}
	// The interpreter catches its own panics; this is for those on its edge.
	defer func() {
		if r := recover(); r != nil {
			result, err = nil, fmt.Errorf("internal error: %v", r)
		}
	}()
	v, details, err := p.cel.ContextEval(ctx, &activation{scope: s, budget: maxNodes})
	var cancelled interpreter.EvalCancelledError
	switch {
	case errors.As(err, &cancelled) && cancelled.Cause == interpreter.ContextCancelled, errors.Is(err, interpreter.InterruptError{}):
		return nil, ErrInterrupted
	case err != nil:
		return nil, err
	}
	if used := details.ActualCost(); used != nil {
		*cost -= int64(min(*used, maxCost))
	}
	if *cost < 0 {
		return nil, errCost
	}
	return v, nil
}

// follow walks the path through maps. Whatever is out of the ordinary is left to CEL, which has the words for it.
func (p *program) follow(s Scope) (any, bool) {
	if p.path == nil {
		return nil, false
	}
	v, ok := s.variable(p.path[0])
	for _, name := range p.path[1:] {
		m, isMap := v.(map[string]any)
		if !isMap {
			return nil, false
		}
		if v, ok = m[name]; !ok {
			return nil, false
		}
	}
	return v, ok
}

// describe says in a user's words what went wrong with the expression.
func (p *program) describe(err error) string {
	message := err.Error()
	if strings.Contains(message, "actual cost limit exceeded") {
		message = "it needs too many operations"
	}
	return fmt.Sprintf("${%s}: %s", clip(p.source), strings.TrimPrefix(message, "evaluation error: "))
}

func (s *Scope) variable(name string) (any, bool) {
	switch name {
	case "input":
		return s.Input, true
	case "saga":
		return s.Saga, true
	case "steps":
		return s.Steps, true
	case "response":
		return s.Response, true
	}
	return nil, false
}

// activation gives the variables to CEL, and the budget of this evaluation to the guards.
type activation struct {
	scope  Scope
	budget int
}

// budgetName cannot be written in an expression.
const budgetName = "@budget"

// ResolveName implements cel.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	if name == budgetName {
		return &a.budget, true
	}
	return a.scope.variable(strings.TrimPrefix(name, "."))
}

// Parent implements cel.Activation.
func (a *activation) Parent() cel.Activation { return nil }

// environment is what one set of variables is compiled in.
type environment struct {
	env   *cel.Env
	known string
	opts  []cel.ProgramOption
}

var environments = sync.OnceValue(func() [2]*environment {
	return [2]*environment{newEnvironment("input", "saga", "steps"), newEnvironment("input", "saga", "steps", "response")}
})

func newEnvironment(variables ...string) *environment {
	opts := []cel.EnvOption{
		func(e *cel.Env) (*cel.Env, error) {
			return cel.CustomTypeAdapter(adapter{e.CELTypeAdapter()})(e)
		},
		ext.Strings(), ext.Math(), ext.Sets(), ext.Bindings(),
		ext.Lists(ext.ListsMaxRangeSize(10_000)),
		// Version 1 adds json.encode, which writes large integers as strings; text rendering does better.
		ext.Encoders(ext.EncodersVersion(0)),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(MaxExpressionBytes),
		cel.ParserRecursionLimit(64),
		cel.ExpressionNodeLimit(4096),
		cel.CostSizingStrategy(cost.AggregateSizingStrategy(types.SizeCalculatorMaxDepth(2*MaxDepth), types.SizeCalculatorMaxTraversal(1<<20))),
		cel.ASTValidators(cel.ValidateComprehensionNestingLimit(32), cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(),
			cel.ValidateDurationLiterals()),
	}
	for _, name := range variables {
		opts = append(opts, cel.Variable(name, cel.DynType))
	}
	env, err := cel.NewEnv(opts...)
	if err != nil {
		panic("expression: the CEL environment is broken: " + err.Error())
	}
	// The checker collects the names that it suggests for an unknown one when it meets the first, and writes
	// them where other checks read without a lock: it meets one before there are others.
	_, _ = env.Compile("unknown")
	guarded, err := guardedFunctions(env)
	if err != nil {
		panic("expression: the CEL environment is broken: " + err.Error())
	}
	return &environment{env, strings.Join(variables, ", "), []cel.ProgramOption{cel.CostTracking(tariff{}), cel.CostLimit(maxCost), cel.InterruptCheckFrequency(interruptFrequency), cel.Functions(guarded...)}} //nolint:staticcheck // what takes its place declares functions anew; these stand around ones that exist
}

// compile turns one expression into a program. It spends the effort before it does the work, and returns
// what it spent, also when it fails. The error is errEffortLeft when there was not enough effort.
func compile(source string, vars Vars, left *Effort) (p *program, effort int64, err error) {
	defer func() {
		if r := recover(); r != nil {
			p, effort, err = nil, maxExpressionEffort, fmt.Errorf("${%s}: internal error: %v", clip(source), r)
		}
	}()
	if effort = textEffort(source); !left.spend(effort) {
		return nil, effort, errEffortLeft
	}
	e := environments()[vars]
	parsed, issues := e.env.Parse(source)
	if issues.Err() != nil {
		return nil, effort, e.describe(source, issues)
	}
	root := parsed.NativeRep().Expr()
	more := min(nodeEffort(root, 0), maxExpressionEffort-effort+1)
	if effort += more; !left.spend(more) {
		return nil, effort, errEffortLeft
	}
	if effort > maxExpressionEffort {
		return nil, effort, fmt.Errorf("${%s}: %w", clip(source), errEffort)
	}
	p, err = e.compile(source, parsed)
	return p, effort, err
}

// compile checks an expression that has been parsed and makes a program of it.
func (e *environment) compile(source string, parsed *cel.Ast) (*program, error) {
	w := walker{source: source}
	w.walk(parsed.NativeRep().Expr())
	if w.err != nil {
		return nil, fmt.Errorf("${%s}: %w", clip(source), w.err)
	}
	checked, issues := e.env.Check(parsed)
	if issues.Err() != nil {
		return nil, e.describe(source, issues)
	}
	prog, err := e.env.Program(checked, append(slices.Clip(e.opts), cel.CustomDecoratorV2(w.guard))...)
	if err != nil {
		return nil, fmt.Errorf("${%s}: %w", clip(source), err)
	}
	slices.Sort(w.steps)
	return &program{source: source, steps: slices.Compact(w.steps), input: w.input, saga: w.saga,
		path:    follows(checked.NativeRep().Expr()),
		choices: choices(checked.NativeRep().Expr()), cel: prog}, nil
}

var undeclared = regexp.MustCompile(`undeclared reference to '([^']*)'( \(in container ''\))?`)

// describe puts the first of CEL's complaints into one line; the rest mostly follow from it.
func (e *environment) describe(source string, issues *cel.Issues) error {
	message := "it is not valid"
	if errs := issues.Errors(); len(errs) > 0 {
		message = errs[0].Message
		if errs[0].Location != nil && errs[0].Location.Column() > 0 {
			message += fmt.Sprintf(" (at character %d)", errs[0].Location.Column()+1)
		}
	}
	message = undeclared.ReplaceAllString(message, `the name "$1" is not known here; known are `+e.known)
	if len(message) > 400 {
		message = strings.ToValidUTF8(message[:400], "") + "…"
	}
	return fmt.Errorf("${%s}: %s", clip(source), strings.Join(strings.Fields(message), " "))
}

// cache keeps compiled expressions, and the errors of those that do not compile: thousands of sagas share the same few. It drops what
// was used least recently, and is bounded by the number of expressions and by the length of their text, which their size follows.
type cache struct {
	mu      sync.Mutex
	entries map[cacheKey]*list.Element
	recent  *list.List
	bytes   int
}

type cacheKey struct {
	vars   Vars
	source string
}

type cacheEntry struct {
	key    cacheKey
	prog   *program
	effort int64
	err    error
}

const (
	maxCached      = 2048
	maxCachedBytes = 256 << 10
)

var programs = newCache()

func newCache() *cache {
	return &cache{entries: map[cacheKey]*list.Element{}, recent: list.New()}
}

// get returns the program of an expression. It spends the effort to compile it, whether it is compiled now
// or not; the error is errEffortLeft when there is not enough.
func (c *cache) get(source string, vars Vars, effort *Effort) (*program, error) {
	if vars != WithoutResponse && vars != WithResponse {
		return nil, errors.New("unknown set of variables")
	}
	key := cacheKey{vars, source}
	if entry := c.find(key); entry != nil {
		if !effort.spend(entry.effort) {
			return nil, errEffortLeft
		}
		return entry.prog, entry.err
	}
	// Outside of the lock: two that miss at once both compile, and that is harmless.
	prog, spent, err := compile(source, vars, effort)
	if !errors.Is(err, errEffortLeft) {
		c.put(&cacheEntry{key, prog, spent, err})
	}
	return prog, err
}

func (c *cache) find(key cacheKey) *cacheEntry {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cacheEntry)
}

func (c *cache) put(entry *cacheEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[entry.key]; !ok {
		c.entries[entry.key] = c.recent.PushFront(entry)
		c.bytes += len(entry.key.source)
	}
	for len(c.entries) > maxCached || c.bytes > maxCachedBytes {
		oldest := c.recent.Back()
		k := c.recent.Remove(oldest).(*cacheEntry).key
		delete(c.entries, k)
		c.bytes -= len(k.source)
	}
}
