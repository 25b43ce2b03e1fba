package projection

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Handler folds one event into the read model. It writes through tx and nowhere else: what it does is committed with the checkpoint, or not at all, and may be tried
// again. An error stops the projection at this event until somebody retries or skips it, unless the error is one of a database that is away for a while.
type Handler func(ctx context.Context, tx *Tx, e eventstore.Recorded) error

// Definition is a projection: a table of event type → handler.
//
//	projection.Define("orders", 1, "order").
//		Tables("orders_rows").
//		On("OrderPlaced", projection.For(decode, placed)).
//		On("OrderCancelled", projection.For(decode, cancelled)).
//		Ignore("OrderViewed")
type Definition struct {
	name       string
	version    int
	categories []string
	tables     []string
	handlers   map[string]Handler
	err        error
}

var identifier = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// Define begins a projection of the streams of some categories. The version is the code's: with a higher one the read model is built anew beside the old one.
// What is wrong with a definition comes out when it is given to a Runner.
func Define(name string, version int, categories ...string) *Definition {
	d := &Definition{name: name, version: version, categories: categories, handlers: map[string]Handler{}}
	if !identifier.MatchString(name) || version < 1 || len(categories) == 0 {
		d.fail("it needs a name of lower-case letters, digits and _, a version from 1 on, and the categories of streams that it reads")
	}
	return d
}

// Tables names the tables that the handlers write. Each has a column generation, of type integer, that is part of its key. Old generations are removed from them.
func (d *Definition) Tables(names ...string) *Definition {
	for _, name := range names {
		if !identifier.MatchString(name) && !qualified.MatchString(name) {
			d.fail("the table %q is not a name such as orders_rows", name)
		}
	}
	d.tables = append(d.tables, names...)
	return d
}

var qualified = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}\.[a-z][a-z0-9_]{0,62}$`)

// On says what to do with a type of event.
func (d *Definition) On(eventType string, h Handler) *Definition {
	if _, twice := d.handlers[eventType]; twice || h == nil {
		d.fail("%s needs one handler", eventType)
	}
	d.handlers[eventType] = h
	return d
}

// Ignore names types of events that the projection does without. A type that is neither handled nor ignored stops the projection: nothing is skipped by accident.
func (d *Definition) Ignore(eventTypes ...string) *Definition {
	for _, t := range eventTypes {
		d.On(t, ignore)
	}
	return d
}

func ignore(context.Context, *Tx, eventstore.Recorded) error { return nil }

// Knows reports whether the projection handles or ignores a type of event.
func (d *Definition) Knows(eventType string) bool { return d.handlers[eventType] != nil }

// Name is the name of the projection.
func (d *Definition) Name() string { return d.name }

func (d *Definition) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("defining projection %q: %s", d.name, fmt.Sprintf(format, args...))
	}
}

// check returns what is wrong with some definitions.
func check(defs []*Definition) error {
	var errs []error
	var names []string
	for _, d := range defs {
		errs = append(errs, d.err)
		if slices.Contains(names, d.name) {
			errs = append(errs, fmt.Errorf("defining projection %q: it is defined twice", d.name))
		}
		names = append(names, d.name)
	}
	return errors.Join(errs...)
}

// handle finds the handler of an event and runs it. A panic is an error of this event.
func (d *Definition) handle(ctx context.Context, tx *Tx, e eventstore.Recorded) (err error) {
	h, known := d.handlers[e.Type]
	if !known {
		return fmt.Errorf("projection %s knows no event type %q: a newer program has written it, or the definition has to handle or ignore it", d.name, e.Type)
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("its handler panicked: %v", r)
		}
	}()
	return h(ctx, tx, e)
}

// Event is an event with its decoded fact.
type Event[T any] struct {
	eventstore.Recorded
	Fact T
}

// Decoder reads the fact of an event, as eventtype.Registry.Decode does.
type Decoder func(eventstore.Recorded) (any, error)

// For makes a handler of a function that wants its fact decoded.
func For[T any](decode Decoder, do func(ctx context.Context, tx *Tx, e Event[T]) error) Handler {
	return func(ctx context.Context, tx *Tx, e eventstore.Recorded) error {
		fact, err := decode(e)
		if err != nil {
			return err
		}
		typed, ok := fact.(T)
		if !ok {
			return fmt.Errorf("decoding a %s event gave a %T, but its handler takes a %T", e.Type, fact, typed)
		}
		return do(ctx, tx, Event[T]{e, typed})
	}
}
