package cqrs

import (
	"errors"
	"fmt"
)

// Errors of the buses; test with errors.Is.
var (
	// ErrNoHandler says that nobody handles the type of a command or query.
	ErrNoHandler = errors.New("there is no handler")
	// ErrCannotWait says that a query has no way to wait for a write.
	ErrCannotWait = errors.New("it cannot wait for one")
)

// RefusedError is a handler's definite no: nothing was changed, and the same command would be refused again. Idempotent keeps it, as it keeps an answer.
type RefusedError struct {
	// Reason is one word for programs; Message is for people.
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Refuse returns a *RefusedError.
func Refuse(reason, format string, args ...any) error {
	return &RefusedError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func (e *RefusedError) Error() string { return e.Message }
