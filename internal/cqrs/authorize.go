package cqrs

import (
	"context"
	"fmt"
)

// DeniedError is a command or query that its sender may not send. Nothing was done.
type DeniedError struct {
	Kind Kind
	Name string
	Err  error
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s %s is denied: %v", e.Kind, e.Name, e.Err)
}

func (e *DeniedError) Unwrap() error { return e.Err }

// Authorize lets through what allowed returns nil for. Who asks is in the context, put there by whoever has authenticated them.
func Authorize(allowed func(context.Context, Message) error) Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (any, error) {
			if err := allowed(ctx, m); err != nil {
				return nil, &DeniedError{Kind: m.Kind, Name: m.Name, Err: err}
			}
			return next(ctx, m)
		}
	}
}
