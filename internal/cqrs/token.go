package cqrs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

type tokensKey struct{}

// WithToken has the queries asked with the context show a write: the token is that of its append (eventstore.Appended), which a command's answer brings along. Several tokens add up. As a text it
// goes through HTTP and back with Token.String and eventstore.ParseToken.
func WithToken(ctx context.Context, token eventstore.Token) context.Context {
	return context.WithValue(ctx, tokensKey{}, append(slices.Clone(tokensOf(ctx)), token))
}

func tokensOf(ctx context.Context) []eventstore.Token {
	tokens, _ := ctx.Value(tokensKey{}).([]eventstore.Token)
	return tokens
}

// satisfied returns the context of a query whose tokens have been seen to.
func satisfied(ctx context.Context) context.Context {
	return context.WithValue(ctx, tokensKey{}, []eventstore.Token(nil))
}

// StaleError says that a read model does not show a write yet. Err says why: usually that the time was over, else that the read model has stopped.
type StaleError struct {
	Query, ReadModel string
	Token            eventstore.Token
	Waited           time.Duration
	Err              error
}

func (e *StaleError) Error() string {
	why := "does not show the write " + e.Token.String() + " yet"
	if !errors.Is(e.Err, context.DeadlineExceeded) {
		why = "cannot be waited for: " + e.Err.Error()
	}
	return fmt.Sprintf("asking %s: after %s read model %s %s; ask again later, or without the token for what it shows now", e.Query, e.Waited.Round(time.Millisecond), e.ReadModel, why)
}

func (e *StaleError) Unwrap() error { return e.Err }

// WaitFor has a query wait until its read model shows the writes of the context's tokens, for as long as the context allows and no longer than longest (0: 2 s). A query without a token waits
// for nothing. show is projection.Wait with a pool:
//
//	func(ctx context.Context, model string, t eventstore.Token) error { return projection.Wait(ctx, pool, model, t) }
func WaitFor(readModel string, longest time.Duration, show func(ctx context.Context, readModel string, token eventstore.Token) error) Middleware {
	if longest <= 0 {
		longest = 2 * time.Second
	}
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (any, error) {
			tokens := tokensOf(ctx)
			if len(tokens) == 0 {
				return next(ctx, m)
			}
			began := time.Now()
			waiting, cancel := context.WithTimeout(ctx, longest)
			defer cancel()
			for _, token := range tokens {
				err := show(waiting, readModel, token)
				switch {
				case err == nil:
				case errors.Is(ctx.Err(), context.Canceled):
					return nil, fmt.Errorf("asking %s: waiting for read model %s: %w", m.Name, readModel, ctx.Err())
				default:
					if late := waiting.Err(); late != nil {
						err = late // whatever was under way has failed for this
					}
					return nil, &StaleError{Query: m.Name, ReadModel: readModel, Token: token, Waited: time.Since(began), Err: err}
				}
			}
			return next(satisfied(ctx), m)
		}
	}
}

// AlwaysCurrent is for queries that read what the write side itself writes, or a read model that moves with the append: there is nothing to wait for.
func AlwaysCurrent() Middleware {
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (any, error) { return next(satisfied(ctx), m) }
	}
}
