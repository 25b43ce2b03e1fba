// Package aggregate is for objects whose truth is the stream of their events. A state says how each event changes it; a command looks at the state and
// applies events; a Repository folds the stream, runs the command, and appends what it applied, unless the stream has moved meanwhile or the
// state that would result is not allowed. Start reading at Repository.
package aggregate

import (
	"errors"
	"fmt"
)

// State is the fold of an aggregate's events. It is a value: its zero value is that of an aggregate that does not exist yet.
type State[S any] interface {
	// Evolve returns the state after an event. It is pure: it decides nothing, and copies the maps and slices that it changes. It is only ever
	// given values of registered event types.
	Evolve(event any) S
	// Validate reports an invariant that the state violates.
	Validate() error
}

// Root is embedded in the struct of an aggregate, whose methods are its commands. The zero value is an aggregate that does not exist yet. It is not
// safe for concurrent use.
type Root[S State[S]] struct {
	id          string
	version     int64
	state       S
	uncommitted []any
	// known says why an event may not be applied; nil in an aggregate that no repository has made.
	known   func(event any) error
	refused error
}

// ID returns the aggregate's id; empty in one that neither a repository nor a Load… method has named.
func (r *Root[S]) ID() string { return r.id }

// Version returns the version of the last committed event that is folded; 0 when there is none. Uncommitted events do not count.
func (r *Root[S]) Version() int64 { return r.version }

// State returns the state after all events, those applied included. It is not to be changed: what it refers to is the aggregate's own.
func (r *Root[S]) State() S { return r.state }

// Apply folds events and remembers them as uncommitted. An event whose type is not registered is not folded, and makes the command fail.
func (r *Root[S]) Apply(events ...any) {
	for _, event := range events {
		if r.known != nil {
			if err := r.known(event); err != nil {
				r.refused = errors.Join(r.refused, fmt.Errorf("applying an event: %w", err))
				continue
			}
		}
		r.state = r.state.Evolve(event)
		r.uncommitted = append(r.uncommitted, event)
	}
}

// Uncommitted returns the events applied since the aggregate was loaded, oldest first.
func (r *Root[S]) Uncommitted() []any { return append([]any(nil), r.uncommitted...) }

// LoadFromSnapshot makes the aggregate the one with this id, whose first events, up to the version given, fold to state. What it was before is lost.
func (r *Root[S]) LoadFromSnapshot(id string, version int64, state S) {
	r.id, r.version, r.state, r.uncommitted, r.refused = id, version, state, nil, nil
}

// LoadFromHistory folds the committed events that follow on Version. It fails when the aggregate has uncommitted events, which would not be the last any more, or
// is another one.
func (r *Root[S]) LoadFromHistory(id string, events ...any) error {
	switch {
	case len(r.uncommitted) > 0:
		return fmt.Errorf("loading %s from its history: it has %d uncommitted events", id, len(r.uncommitted))
	case r.version > 0 && r.id != id:
		return fmt.Errorf("loading %s from its history: the aggregate is %s", id, r.id)
	}
	r.id = id
	for _, event := range events {
		r.state = r.state.Evolve(event)
		r.version++
	}
	return nil
}

// ValidateState reports an invariant that the state violates.
func (r *Root[S]) ValidateState() error { return r.state.Validate() }

// committed makes the uncommitted events, which have been appended, a part of the history.
func (r *Root[S]) committed(version int64) { r.version, r.uncommitted = version, nil }

func (r *Root[S]) root() *Root[S] { return r }

// Aggregate is a pointer to a struct that embeds a Root.
type Aggregate[S State[S]] interface {
	ID() string
	Version() int64
	State() S
	Apply(events ...any)
	Uncommitted() []any
	ValidateState() error
	root() *Root[S]
}
