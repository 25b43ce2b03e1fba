package cqrs

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
)

// PanicError is a panic of a handler, caught at the bus.
type PanicError struct {
	Kind Kind
	Name string
	// Value is what it panicked with; Stack is where.
	Value any
	Stack []byte
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("handling %s %s: panic: %v; whether it was done is not known, and the log has the stack", e.Kind, e.Name, e.Value)
}

// Recover makes a *PanicError of a panic and logs its stack. It belongs outermost, or right inside of what is to hear of the error.
func Recover(log *slog.Logger) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (answer any, err error) {
			defer func() {
				if p := recover(); p != nil {
					stack := debug.Stack()
					log.ErrorContext(ctx, "a handler has panicked", "kind", m.Kind, "name", m.Name, "panic", p, "stack", string(stack))
					answer, err = nil, &PanicError{Kind: m.Kind, Name: m.Name, Value: p, Stack: stack}
				}
			}()
			return next(ctx, m)
		}
	}
}
