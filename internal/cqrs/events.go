package cqrs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventtype"
)

// Envelope is an event as it stands in the store, beside its decoded fact. A Local bus leaves Position and RecordedAt zero.
type Envelope struct {
	eventstore.Recorded
	// Attempt counts how often this handler has been given the event, from 1.
	Attempt int
}

// Events is a table of event type → handlers, filled at start. By itself it does nothing: NewLocal and NewSubscription bring it events.
type Events struct {
	registry  *eventtype.Registry
	reactions map[string][]*reaction
}

// reaction is a handler of one type of event.
type reaction struct {
	handler string // a name for logs and metrics
	do      func(ctx context.Context, fact any, e Envelope) error
}

// NewEvents returns an empty table. The registry decodes the events, raised to their newest schema version.
func NewEvents(registry *eventtype.Registry) *Events {
	return &Events{registry: registry, reactions: map[string][]*reaction{}}
}

// On has h called for each event of type E, which the registry has to know. Several handlers may be given one type of event. The context ends when the handler has had its time and carries
// the event's trace; a handler has to heed it.
func On[E any](b *Events, h func(ctx context.Context, fact E, e Envelope) error) error {
	t := reflect.TypeFor[E]()
	if h == nil {
		return fmt.Errorf("registering a handler of event %s: there is none", t)
	}
	if t.Kind() != reflect.Struct {
		return fmt.Errorf("registering %s as a handler of event %s: an event is a struct, not a %s", function(h), t, t.Kind())
	}
	var zero E
	name, known := b.registry.Name(zero)
	if !known {
		return fmt.Errorf("registering %s as a handler of event %s: %w", function(h), t, b.registry.Check(zero))
	}
	b.reactions[name] = append(b.reactions[name], &reaction{handler: short(h), do: func(ctx context.Context, fact any, e Envelope) error {
		typed, ok := fact.(E)
		if !ok {
			return fmt.Errorf("decoding a %s event gave a %T, but its handler takes a %T", e.Type, fact, typed)
		}
		return h(ctx, typed, e)
	}})
	return nil
}

// types returns those that have a handler, sorted.
func (b *Events) types() []string { return slices.Sorted(maps.Keys(b.reactions)) }

// handle decodes an event and runs one handler for it, bounded in time. A panic is an error.
func (b *Events) handle(ctx context.Context, r *reaction, e Envelope, timeout time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(WithTraceParent(ctx, e.Metadata.TraceParent), timeout)
	defer cancel()
	fact, err := b.registry.Decode(e.Recorded)
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			err = &eventtype.PanicError{Doing: "handling event " + e.Type + " by " + r.handler, Value: p, Stack: debug.Stack()}
		}
	}()
	return r.do(ctx, fact, e)
}

// short is a function's name without its path: orders.(*Mailer).placed.
func short(f any) string {
	fn := runtime.FuncForPC(reflect.ValueOf(f).Pointer())
	if fn == nil {
		return fmt.Sprintf("%T", f)
	}
	name := fn.Name()
	return strings.TrimSuffix(name[strings.LastIndexByte(name, '/')+1:], "-fm")
}

// stackOf is where a handler has panicked; empty for other errors.
func stackOf(err error) string {
	var p *eventtype.PanicError
	if errors.As(err, &p) {
		return string(p.Stack)
	}
	return ""
}
