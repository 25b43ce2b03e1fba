package cqrs

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/vextrus/saga-operator/internal/eventtype"
)

// Answers is embedded in a command or a query and says what it is answered with.
//
//	type PlaceOrder struct {
//		cqrs.Answers[Placed]
//		Customer string
//	}
type Answers[R any] struct{}

// Answer is never called. It lets Send and Ask find out what they return.
func (Answers[R]) Answer() (zero R) { return zero }

// Kind is what a message is.
type Kind string

// The kinds of messages.
const (
	CommandKind Kind = "command"
	QueryKind   Kind = "query"
)

// Message is a command or a query on its way to its handler.
type Message struct {
	Kind Kind
	// Name is the Go type with its package, such as operations.StartSaga. There are as many as handlers: it is fit for a metric's label.
	Name string
	// Value is the command or query itself.
	Value any

	// decode reads an answer of the message's type.
	decode func(json.RawMessage) (any, error)
}

// Handler handles one message. What it returns is of the type that the message is answered with; middleware hands it on as it is.
type Handler func(ctx context.Context, m Message) (any, error)

// Middleware is put round handlers. Of several, the first given is the outermost: it sees a message first and its answer last.
type Middleware func(next Handler) Handler

// chain puts middleware round a handler, the first outermost.
func chain(h Handler, middleware ...Middleware) Handler {
	for _, m := range slices.Backward(middleware) {
		h = m(h)
	}
	return h
}

// bus finds the handler of a message by its type.
type bus struct {
	kind       Kind
	middleware []Middleware

	mu      sync.RWMutex
	entries map[reflect.Type]*entry
}

// entry is what is registered for one type.
type entry struct {
	message Message // without a value
	handle  Handler
	handler string // the function, for people
}

func newBus(kind Kind, middleware []Middleware) bus {
	return bus{kind: kind, middleware: slices.Clone(middleware), entries: map[reflect.Type]*entry{}}
}

// needs are the methods that middleware looks for. A message has them on its value: with a pointer receiver they would silently not be found.
var needs = []reflect.Type{reflect.TypeFor[Validator](), reflect.TypeFor[Keyed]()}

// register makes h the handler of messages of type M, which are answered with R.
func register[M, R any](b *bus, h func(context.Context, M) (R, error), inner Handler, middleware []Middleware) error {
	t := reflect.TypeFor[M]()
	doing := fmt.Sprintf("registering a handler of %s %s", b.kind, t)
	if h == nil {
		return fmt.Errorf("%s: there is none", doing)
	}
	if t.Kind() != reflect.Struct {
		return fmt.Errorf("%s: a %s is a struct, not a %s", doing, b.kind, t.Kind())
	}
	for _, n := range needs {
		if !t.Implements(n) && reflect.PointerTo(t).Implements(n) {
			return fmt.Errorf("%s: its method %s has a pointer receiver and would never be called; give it a value receiver", doing, n.Method(0).Name)
		}
	}
	if t.Implements(reflect.TypeFor[Keyed]()) { // its answer is kept as JSON
		if err := eventtype.Lossless(reflect.TypeFor[R]()); err != nil {
			return fmt.Errorf("%s: its answer is to be repeated, and %w", doing, err)
		}
	}
	e := &entry{
		message: Message{Kind: b.kind, Name: t.String(), decode: decodeAs[R]},
		handle:  chain(inner, append(slices.Clone(b.middleware), middleware...)...),
		handler: function(h),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if first := b.entries[t]; first != nil {
		return fmt.Errorf("%s: %s is to handle it, but %s does already; each %s has one handler", doing, e.handler, first.handler, b.kind)
	}
	for other := range b.entries {
		if other.String() == t.String() {
			return fmt.Errorf("%s: %s.%s and %s.%s are both called %s; rename one, so that logs and metrics can tell them apart",
				doing, other.PkgPath(), other.Name(), t.PkgPath(), t.Name(), t)
		}
	}
	b.entries[t] = e
	return nil
}

// call is what a message's handler is wrapped in where there is nothing else to do.
func call[M, R any](h func(context.Context, M) (R, error)) Handler {
	return func(ctx context.Context, m Message) (any, error) {
		message, ok := m.Value.(M)
		if !ok {
			return nil, fmt.Errorf("handling %s %s: middleware handed on a %T", m.Kind, m.Name, m.Value)
		}
		r, err := h(ctx, message)
		if err != nil {
			return nil, err
		}
		return r, nil
	}
}

// dispatch has a message handled.
func dispatch[R any](ctx context.Context, b *bus, value any) (answer R, err error) {
	b.mu.RLock()
	e := b.entries[reflect.TypeOf(value)]
	b.mu.RUnlock()
	if e == nil {
		return answer, b.unknown(value)
	}
	m := e.message
	m.Value = value
	a, err := e.handle(ctx, m)
	if err != nil || a == nil {
		return answer, err
	}
	answer, ok := a.(R)
	if !ok {
		return answer, fmt.Errorf("handling %s %s: it was answered with a %T instead of a %T; the middleware of its bus is at fault", m.Kind, m.Name, a, answer)
	}
	return answer, nil
}

// unknown says that nobody handles a message, and what to do.
func (b *bus) unknown(value any) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	t := reflect.TypeOf(value)
	if t != nil && t.Kind() == reflect.Pointer && b.entries[t.Elem()] != nil {
		return fmt.Errorf("%w of %s %s: it is a pointer; give the %s itself", ErrNoHandler, b.kind, t, b.kind)
	}
	known := "none is registered"
	if names := b.namesLocked(); len(names) > 0 {
		known = "registered are " + strings.Join(names, ", ")
	}
	how := "cqrs.HandleCommand"
	if b.kind == QueryKind {
		how = "cqrs.HandleQuery"
	}
	return fmt.Errorf("%w of %s %v: register one on this bus at start with %s; %s", ErrNoHandler, b.kind, t, how, known)
}

// namesLocked returns the messages that have a handler, sorted; b.mu is held.
func (b *bus) namesLocked() []string {
	names := make([]string, 0, len(b.entries))
	for t := range b.entries {
		names = append(names, t.String())
	}
	slices.Sort(names)
	return names
}

func decodeAs[R any](data json.RawMessage) (any, error) {
	var r R
	err := json.Unmarshal(data, &r)
	return r, err
}

// function names a function for people: what it is called and where it stands.
func function(f any) string {
	pc := reflect.ValueOf(f).Pointer()
	fn := runtime.FuncForPC(pc)
	if fn == nil {
		return fmt.Sprintf("%T", f)
	}
	file, line := fn.FileLine(pc)
	return fmt.Sprintf("%s (%s:%d)", fn.Name(), filepath.Base(file), line)
}
