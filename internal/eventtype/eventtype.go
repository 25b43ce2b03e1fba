// Package eventtype gives the events of the store their Go types. A type is registered under a name and a schema version; events that were written in an
// older form are raised to the newest one as they are read, so that the code which folds them knows one form only. What nobody registered is an error and is
// never skipped.
package eventtype

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Upcaster raises an event's data from one schema version to the next. It is pure, and must go on working as long as one event of the older version is stored.
type Upcaster func(json.RawMessage) (json.RawMessage, error)

// Type is one type of event. Of makes it.
type Type struct {
	name      string
	version   int
	upcasters []Upcaster
	goType    reflect.Type
	decode    func(json.RawMessage) (any, error)
}

// Of describes the events of Go type T, a struct, stored under a name that never changes again. A schema version, counted from 1, is left behind when the form
// of the data changes so that old data no longer decodes to what it meant; a new field with a useful zero value needs none. Upcaster i raises the data from
// version i+1 to version i+2: there is one for every version left behind. What is wrong with the description is reported by NewRegistry.
func Of[T any](name string, schemaVersion int, upcasters ...Upcaster) Type {
	return Type{
		name: name, version: schemaVersion, upcasters: upcasters, goType: reflect.TypeFor[T](),
		decode: func(data json.RawMessage) (any, error) {
			var event T
			if err := json.Unmarshal(data, &event); err != nil {
				return nil, err
			}
			return event, nil
		},
	}
}

func (t *Type) check() error {
	switch {
	case t.goType == nil:
		return errors.New("an event type is made with Of")
	case t.name == "" || !utf8.ValidString(t.name) || strings.ContainsRune(t.name, 0):
		return fmt.Errorf("the name %q of %s is not text", t.name, t.goType)
	case t.version < 1 || t.version > math.MaxInt32:
		return fmt.Errorf("%s: its schema version %d is not between 1 and %d", t.name, t.version, math.MaxInt32)
	case len(t.upcasters) != t.version-1:
		return fmt.Errorf("%s: schema version %d needs %d upcasters, one from each version to the next, and has %d", t.name, t.version, t.version-1, len(t.upcasters))
	case t.goType.Kind() != reflect.Struct:
		return fmt.Errorf("%s: %s is not a struct, and only a struct can get further fields", t.name, t.goType)
	}
	if i := slices.IndexFunc(t.upcasters, func(u Upcaster) bool { return u == nil }); i >= 0 {
		return fmt.Errorf("%s: the upcaster from schema version %d to %d is missing", t.name, i+1, i+2)
	}
	if err := Lossless(t.goType); err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	return nil
}

// Registry knows a set of event types. It does not change, and is safe for concurrent use.
type Registry struct {
	byName map[string]*Type
	byType map[reflect.Type]*Type
	names  []string
}

// NewRegistry returns a registry of the types given. It fails when a name or a Go type comes twice, when an upcaster is missing or superfluous, and
// when JSON would lose a part of the Go type (see Lossless).
func NewRegistry(types ...Type) (*Registry, error) {
	r := &Registry{byName: map[string]*Type{}, byType: map[reflect.Type]*Type{}}
	for i := range types {
		t := &types[i]
		if err := t.check(); err != nil {
			return nil, fmt.Errorf("registering event types: %w", err)
		}
		if r.byName[t.name] != nil {
			return nil, fmt.Errorf("registering event types: the name %s is given to both %s and %s", t.name, r.byName[t.name].goType, t.goType)
		}
		if r.byType[t.goType] != nil {
			return nil, fmt.Errorf("registering event types: %s is registered as both %s and %s", t.goType, r.byType[t.goType].name, t.name)
		}
		own := *t
		own.upcasters = slices.Clone(t.upcasters)
		r.byName[t.name], r.byType[t.goType], r.names = &own, &own, append(r.names, t.name)
	}
	slices.Sort(r.names)
	return r, nil
}

// MustNewRegistry is NewRegistry for the variables of a package. It panics instead of failing.
func MustNewRegistry(types ...Type) *Registry {
	r, err := NewRegistry(types...)
	if err != nil {
		panic(err)
	}
	return r
}

// Names returns the names of all types, sorted.
func (r *Registry) Names() []string { return slices.Clone(r.names) }

// Name returns the name under which the type of an event is registered. A pointer to an event is not an event.
func (r *Registry) Name(event any) (string, bool) {
	t := r.byType[reflect.TypeOf(event)]
	if t == nil {
		return "", false
	}
	return t.name, true
}

// Encode makes an event to append: with a new UUIDv7 as its id, in the newest schema version.
func (r *Registry) Encode(event any, meta eventstore.Metadata) (encoded eventstore.Event, err error) {
	t := r.byType[reflect.TypeOf(event)]
	if t == nil {
		return eventstore.Event{}, fmt.Errorf("encoding an event: %w", r.unregistered(event))
	}
	defer recovered(&err, func() string { return "encoding event " + t.name })
	data, err := json.Marshal(event)
	if err != nil {
		return eventstore.Event{}, fmt.Errorf("encoding event %s: %w", t.name, err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return eventstore.Event{}, fmt.Errorf("encoding event %s: making its id: %w", t.name, err)
	}
	return eventstore.Event{ID: id, Type: t.name, SchemaVersion: t.version, Data: data, Metadata: meta}, nil
}

// Check returns an error that says why when Encode would not know the event.
func (r *Registry) Check(event any) error {
	if r.byType[reflect.TypeOf(event)] == nil {
		return r.unregistered(event)
	}
	return nil
}

func (r *Registry) unregistered(event any) error {
	if p := reflect.TypeOf(event); p != nil && p.Kind() == reflect.Pointer && r.byType[p.Elem()] != nil {
		return fmt.Errorf("%T is a pointer to an event; give the event itself", event)
	}
	return fmt.Errorf("%T is not a registered event type; register it with eventtype.Of", event)
}

// Decode returns the event as a value, not a pointer, of its registered Go type, raised to the newest schema version. Fields that the Go type does not have
// are let through. It fails with an *UnknownTypeError, with a *NewerSchemaError, or saying what is wrong with the data.
func (r *Registry) Decode(recorded eventstore.Recorded) (event any, err error) {
	t := r.byName[recorded.Type]
	switch {
	case t == nil:
		return nil, &UnknownTypeError{Type: recorded.Type, SchemaVersion: recorded.SchemaVersion, Stream: recorded.Stream, Version: recorded.Version}
	case recorded.SchemaVersion > t.version:
		return nil, &NewerSchemaError{Type: t.name, SchemaVersion: recorded.SchemaVersion, Known: t.version, Stream: recorded.Stream, Version: recorded.Version}
	}
	doing := func() string {
		return fmt.Sprintf("decoding event %s (schema version %d) at version %d of stream %s", t.name, recorded.SchemaVersion, recorded.Version, recorded.Stream)
	}
	if recorded.SchemaVersion < 1 {
		return nil, fmt.Errorf("%s: schema versions are counted from 1", doing())
	}
	defer recovered(&err, doing)
	data, err := t.raise(recorded.Data, recorded.SchemaVersion)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing(), err)
	}
	if event, err = t.decode(data); err != nil {
		return nil, fmt.Errorf("%s: %w", doing(), err)
	}
	return event, nil
}

// raise brings data from a schema version to the newest.
func (t *Type) raise(data json.RawMessage, from int) (json.RawMessage, error) {
	if from < t.version {
		data = bytes.Clone(data) // an upcaster may work in place
	}
	for v := from; v < t.version; v++ {
		raised, err := t.upcasters[v-1](data)
		if err != nil {
			return nil, fmt.Errorf("raising it from schema version %d to %d: %w", v, v+1, err)
		}
		data = raised
	}
	// JSON decodes null to a struct without any complaint, and an event of zeros is not what happened.
	if bytes.Equal(bytes.TrimSpace(data), []byte("null")) {
		return nil, errors.New("its data is null")
	}
	return data, nil
}

// recovered turns a panic of code that came with a type into an error.
func recovered(err *error, doing func() string) {
	if p := recover(); p != nil {
		*err = &PanicError{Doing: doing(), Value: p, Stack: debug.Stack()}
	}
}

// PanicError is a panic of code that was called, caught there.
type PanicError struct {
	// Doing is what was being done, and to what.
	Doing string
	Value any
	// Stack is where it happened.
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("%s: panic: %v", e.Doing, e.Value) }

// UnknownTypeError is an event whose type is not registered.
type UnknownTypeError struct {
	Type          string
	SchemaVersion int
	Stream        string
	// Version is the event's place in the stream.
	Version int64
}

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("decoding version %d of stream %s: the event type %q is not known; a newer program has probably written it: run that one, or register the type. Nothing is skipped",
		e.Version, e.Stream, e.Type)
}

// NewerSchemaError is an event of a registered type in a form that is newer than the registered one.
type NewerSchemaError struct {
	Type string
	// SchemaVersion is the event's; Known the newest that is registered.
	SchemaVersion, Known int
	Stream               string
	// Version is the event's place in the stream.
	Version int64
}

func (e *NewerSchemaError) Error() string {
	return fmt.Sprintf("decoding version %d of stream %s: the event is a %s of schema version %d, and this program knows versions up to %d; a newer program has written it: run that one",
		e.Version, e.Stream, e.Type, e.SchemaVersion, e.Known)
}
