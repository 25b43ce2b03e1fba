package expression

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// node is one value of a compiled template.
type node interface{}

type (
	staticNode struct{ value any }
	exprNode   struct {
		path string
		prog *program
	}
	// textNode is a string with at least one expression and something else.
	textNode struct {
		path  string
		url   bool
		parts []textPart
	}
	textPart struct {
		text string
		prog *program // nil: literal text
	}
	listNode []node
	mapNode  []mapEntry
	mapEntry struct {
		key   string
		value node
	}
)

// compiler walks a value and gathers errors.
type compiler struct {
	vars        Vars
	steps       map[string]bool
	input, saga bool
	expressions int
	interpreted int
	effort      *Effort
	stopped     bool // nothing more is compiled, because the effort is spent or the errors are many
	errs        []Error
}

func (c *compiler) fail(path, format string, args ...any) node {
	c.errs = append(c.errs, Error{path, fmt.Sprintf(format, args...)})
	c.stopped = c.stopped || len(c.errs) >= maxErrors
	return nil
}

// maxErrors limits the errors of one template.
const maxErrors = 100

func (c *compiler) compile(value any, path string, depth int) node {
	if c.stopped {
		return nil
	}
	if depth > MaxDepth {
		return c.fail(path, "nested deeper than %d levels", MaxDepth)
	}
	switch v := value.(type) {
	case nil, bool, int64, float64:
		return staticNode{v}
	case int:
		return staticNode{int64(v)}
	case json.Number:
		n, err := number(string(v))
		if err != nil {
			return c.fail(path, "%v", err)
		}
		return staticNode{n}
	case string:
		return c.compileString(v, path)
	case []any:
		list := make(listNode, len(v))
		for i, e := range v {
			list[i] = c.compile(e, path+"["+strconv.Itoa(i)+"]", depth+1)
		}
		return list
	case map[string]any:
		m := make(mapNode, 0, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			m = append(m, mapEntry{k, c.compile(v[k], join(path, k), depth+1)})
		}
		return m
	default:
		return c.fail(path, "a %T is not a JSON value", value)
	}
}

func (c *compiler) compileString(s, path string) node {
	parts, err := scan(s)
	if err != nil {
		return c.fail(path, "%v", err)
	}
	if len(parts) == 0 {
		return staticNode{""}
	}
	if len(parts) == 1 && !parts[0].expr {
		return staticNode{parts[0].text}
	}
	text := textNode{path: path, url: path == "url" && c.vars == WithoutResponse}
	for _, p := range parts {
		if c.stopped {
			return nil
		}
		if !p.expr {
			text.parts = append(text.parts, textPart{text: p.text})
			continue
		}
		if c.expressions++; c.expressions > MaxExpressions {
			if c.expressions == MaxExpressions+1 { // said once
				c.fail(path, "there are more than %d expressions up to here; have fewer, or put what belongs together into one", MaxExpressions)
			}
			return nil
		}
		prog, err := programs.get(p.text, c.vars, c.effort)
		if errors.Is(err, errEffortLeft) {
			c.fail(path, "%v", err)
			c.stopped = true
			return nil
		}
		if err != nil {
			c.fail(path, "%v", err)
			continue
		}
		for _, name := range prog.steps {
			c.steps[name] = true
		}
		if prog.path == nil {
			c.interpreted++
		}
		c.input, c.saga = c.input || prog.input, c.saga || prog.saga
		text.parts = append(text.parts, textPart{prog: prog})
	}
	if len(parts) == 1 && len(text.parts) == 1 {
		return exprNode{path, text.parts[0].prog}
	}
	return text
}

// join appends a key to a path; keys that would be ambiguous are quoted.
func join(path, key string) string {
	for i := range len(key) {
		if c := key[i]; !isLetter(c) && (c < '0' || c > '9') && c != '-' {
			return path + "[" + strconv.Quote(key) + "]"
		}
	}
	switch {
	case key == "":
		return path + `[""]`
	case path == "":
		return key
	}
	return path + "." + key
}

// renderer evaluates one template once.
type renderer struct {
	ctx   context.Context
	scope Scope
	size  sizer
	cost  int64 // what is left
}

func (r *renderer) render(n node, depth int) (any, error) {
	switch n := n.(type) {
	case staticNode:
		if s, ok := n.value.(string); ok {
			return n.value, r.size.add(len(s) + 2)
		}
		return n.value, r.size.add(8)
	case exprNode:
		v, err := n.prog.eval(r.ctx, r.scope, &r.cost)
		if err == nil {
			v, err = r.size.convert(v, depth)
		}
		if err != nil {
			return nil, failure(n.path, n.prog, err)
		}
		return v, nil
	case textNode:
		return r.text(n)
	case listNode:
		list := make([]any, len(n))
		for i, e := range n {
			v, err := r.render(e, depth+1)
			if err != nil {
				return nil, err
			}
			list[i] = v
		}
		return list, r.size.add(2)
	case mapNode:
		m := make(map[string]any, len(n))
		for _, e := range n {
			v, err := r.render(e.value, depth+1)
			if err != nil {
				return nil, err
			}
			if err := r.size.add(len(e.key) + 4); err != nil {
				return nil, err
			}
			m[e.key] = v
		}
		return m, r.size.add(2)
	}
	return nil, fmt.Errorf("render: unknown node %T", n)
}

// failure returns the error of an expression at a place of the template.
func failure(path string, p *program, err error) error {
	if errors.Is(err, ErrInterrupted) {
		return fmt.Errorf("%w: %w", ErrInterrupted, Error{path, "${" + clip(p.source) + "}"})
	}
	return Error{path, p.describe(err)}
}

func (r *renderer) text(n textNode) (any, error) {
	var b strings.Builder
	for _, p := range n.parts {
		if p.prog == nil {
			b.WriteString(p.text)
			continue
		}
		v, err := p.prog.eval(r.ctx, r.scope, &r.cost)
		var s string
		if err == nil {
			s, err = textOf(v)
		}
		if err == nil && n.url {
			s, err = escapeURL(b.String(), s, p.prog.choices != nil)
		}
		if err != nil {
			return nil, failure(n.path, p.prog, err)
		}
		if b.Len()+len(s) > MaxRenderedBytes {
			return nil, Error{n.path, p.prog.describe(errTooLarge)}
		}
		b.WriteString(s)
	}
	return b.String(), r.size.add(b.Len() + 2)
}
