package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/saga"
)

// DefinitionError says that a definition does not make a plan.
type DefinitionError struct {
	Fields []saga.FieldError
	// Recorded is true for the definition that a saga was started with: it made a plan once, for another version of the operator.
	Recorded bool
}

func (e *DefinitionError) Error() string {
	texts := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		texts[i] = f.Error()
	}
	return "the definition is not valid: " + strings.Join(texts, "; ")
}

// StreamError says that an event of a saga cannot be understood.
type StreamError struct {
	Stream  string
	Version int64
	Err     error
}

func (e *StreamError) Error() string {
	return fmt.Sprintf("reading version %d of stream %s: %v", e.Version, e.Stream, e.Err)
}

func (e *StreamError) Unwrap() error { return e.Err }

// PanicError says that the operator's own code panicked over one saga. The log has the stack.
type PanicError struct{ Value any }

func (e *PanicError) Error() string { return fmt.Sprintf("the operator panicked: %v", e.Value) }

// Reasons that Problem gives.
const (
	ReasonInvalidDefinition     = "InvalidDefinition"
	ReasonDefinitionUnreadable  = "DefinitionUnreadable"
	ReasonStreamUnreadable      = "StreamUnreadable"
	ReasonTooLarge              = "TooLarge"
	ReasonHistoryRemoved        = "HistoryRemoved"
	ReasonEventStoreUnavailable = "EventStoreUnavailable"
	ReasonContended             = "Contended"
	ReasonPreparing             = "Preparing"
	ReasonAdvanceFailed         = "AdvanceFailed"
	ReasonInternalError         = "InternalError"
)

// Problem says what an error of Advance means for the saga: a reason for its conditions, a message for people, and whether it passes by itself. One that
// does not pass stalls this saga, and no other, until somebody does something.
func Problem(err error) (reason, message string, transient bool) {
	var def *DefinitionError
	var stream *StreamError
	var newer *saga.NewerError
	var panicked *PanicError
	switch {
	case errors.As(err, &panicked):
		line, _, _ := strings.Cut(panicked.Error(), "\n")
		return ReasonInternalError, "This is a fault of the operator, please report it with the stack in its log: " + line + ". The saga is tried again from time to time.", false
	case errors.As(err, &def) && def.Recorded:
		return ReasonDefinitionUnreadable, "The saga was started by an operator that could read its definition, and this one cannot: " + def.Error(), false
	case errors.As(err, &def):
		return ReasonInvalidDefinition, def.Error(), false
	case errors.As(err, &newer):
		return ReasonDefinitionUnreadable, err.Error(), false
	case errors.As(err, &stream):
		return ReasonStreamUnreadable, stream.Error(), false
	case errors.Is(err, eventstore.ErrArchived):
		return ReasonHistoryRemoved, "This saga finished, and its history has been removed since (--history-retention). Nothing is left to do.", false
	case errors.Is(err, eventstore.ErrInvalid):
		return ReasonTooLarge, err.Error(), false
	case errors.Is(err, ErrPreparing):
		return ReasonPreparing, err.Error(), true
	case errors.Is(err, errContended):
		return ReasonContended, err.Error(), true
	case errors.Is(err, eventstore.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errClosed):
		return ReasonEventStoreUnavailable, err.Error(), true
	default:
		return ReasonAdvanceFailed, err.Error(), true
	}
}
