package aggregate

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventtype"
)

// Errors of a repository; test with errors.Is.
var (
	// ErrNotFound says that the aggregate has no events.
	ErrNotFound = errors.New("the aggregate does not exist")
	// ErrExists says that an aggregate to create has events already.
	ErrExists = errors.New("the aggregate exists already")
	// ErrUnknownFate says that an append may or may not have been committed. Nothing was retried. Loading the aggregate tells; a command that finds in the state
	// that its work is done, and applies nothing, may simply be sent again.
	ErrUnknownFate = errors.New("it is not known whether the events were appended; load the aggregate to see")
)

// InvariantError is a command that was refused because the state after it would violate an invariant. Nothing was appended.
type InvariantError struct {
	// Stream is that of the aggregate.
	Stream string
	// Err is what Validate said.
	Err error
}

func (e *InvariantError) Error() string {
	return fmt.Sprintf("the command on %s is refused, nothing was appended: %v", e.Stream, e.Err)
}

func (e *InvariantError) Unwrap() error { return e.Err }

// ConflictError is a command that lost to other writers every time. Nothing was appended. It is an eventstore.ErrWrongVersion.
type ConflictError struct {
	// Stream is that of the aggregate.
	Stream string
	// Attempts is how often the command was run.
	Attempts int
	// Err is the last loss.
	Err error
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("the command on %s lost to other writers %d times, nothing was appended: try again later: %v", e.Stream, e.Attempts, e.Err)
}

func (e *ConflictError) Unwrap() error { return e.Err }

// appendError says what an append's error means to the caller, as the contract of eventstore.Store has it.
func appendError(err error) error {
	for _, definite := range []error{eventstore.ErrWrongVersion, eventstore.ErrArchived, eventstore.ErrInvalid} {
		if errors.Is(err, definite) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnknownFate, err)
}

// guarded runs code that came with an aggregate and turns its panic into an error.
func guarded(doing, stream string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &eventtype.PanicError{Doing: doing + " " + stream, Value: p, Stack: debug.Stack()}
		}
	}()
	return f()
}
