package cqrs

import (
	"context"
	"fmt"
)

// Validator is a command or query that can say what is wrong with itself, without looking anything up.
type Validator interface{ Validate() error }

// InvalidError is a command or query that is wrong by itself. Nothing was done.
type InvalidError struct {
	Kind Kind
	Name string
	Err  error
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("%s %s is not valid: %v", e.Kind, e.Name, e.Err)
}

func (e *InvalidError) Unwrap() error { return e.Err }

// Validate lets only those through that have nothing to say against themselves, and those that are no Validator.
func Validate() Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (any, error) {
			if v, ok := m.Value.(Validator); ok {
				if err := v.Validate(); err != nil {
					return nil, &InvalidError{Kind: m.Kind, Name: m.Name, Err: err}
				}
			}
			return next(ctx, m)
		}
	}
}
