package cqrs

import (
	"context"
	"fmt"
)

// Query asks to read, and is answered with an R. It is a struct that embeds Answers[R].
type Query[R any] interface{ Answer() R }

// Queries is the query bus: one handler for each type of query, which reads read models and changes nothing. It is filled at start and safe for concurrent use.
type Queries struct{ bus bus }

// NewQueries returns a bus on which all queries go through some middleware, the first given outermost.
func NewQueries(middleware ...Middleware) *Queries {
	return &Queries{bus: newBus(QueryKind, middleware)}
}

// HandleQuery makes h the handler of queries of type Q. Middleware given here is put round this handler only, inside of the bus'. A second handler for
// the same query is an error that names both. For whoever wants to read their own writes the query needs WaitFor, or AlwaysCurrent, as middleware.
func HandleQuery[Q Query[R], R any](b *Queries, h func(context.Context, Q) (R, error), middleware ...Middleware) error {
	inner := call(h)
	return register(&b.bus, h, func(ctx context.Context, m Message) (any, error) {
		if tokens := tokensOf(ctx); len(tokens) > 0 { // WaitFor would have taken them away
			return nil, fmt.Errorf("asking %s: it is to show the write %s, and %w; register it with cqrs.WaitFor or cqrs.AlwaysCurrent, or ask without a token", m.Name, tokens[0], ErrCannotWait)
		}
		return inner(ctx, m)
	}, middleware)
}

// Ask has a query answered by its handler. It fails with ErrNoHandler when there is none, with a *StaleError when the read model has not come to the tokens of the
// context in time (see WithToken), and otherwise as the handler or the middleware says.
func Ask[R any](ctx context.Context, b *Queries, q Query[R]) (R, error) {
	return dispatch[R](ctx, &b.bus, q)
}
