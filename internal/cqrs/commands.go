package cqrs

import (
	"context"
)

// Command asks for a change, and is answered with an R. It is a struct that embeds Answers[R].
type Command[R any] interface{ Answer() R }

// Commands is the command bus: one handler for each type of command. It is filled at start and safe for concurrent use.
type Commands struct{ bus bus }

// NewCommands returns a bus on which all commands go through some middleware, the first given outermost.
func NewCommands(middleware ...Middleware) *Commands {
	return &Commands{bus: newBus(CommandKind, middleware)}
}

// HandleCommand makes h the handler of commands of type C. Middleware given here is put round this handler only, inside of the bus'. A second handler for
// the same command is an error that names both.
func HandleCommand[C Command[R], R any](b *Commands, h func(context.Context, C) (R, error), middleware ...Middleware) error {
	return register(&b.bus, h, call(h), middleware)
}

// Send has a command carried out by its handler and returns the answer. It fails with ErrNoHandler when there is none, and otherwise as the handler or the middleware
// says. The handler runs in the caller's goroutine.
func Send[R any](ctx context.Context, b *Commands, c Command[R]) (R, error) {
	return dispatch[R](ctx, &b.bus, c)
}
