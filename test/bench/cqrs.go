package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

// benchCommand is answered with a struct, as commands are.
type benchCommand struct {
	cqrs.Answers[benchAnswer]
	Number int
}

type benchAnswer int

// measureCommands measures what the command bus costs over calling the handler.
func measureCommands(ctx context.Context, _ settings) ([]Row, error) {
	bus := cqrs.NewCommands()
	handle := func(_ context.Context, c benchCommand) (benchAnswer, error) {
		if c.Number == 0 {
			return 0, cqrs.Refuse("NoNumber", "a command needs a number")
		}
		return benchAnswer(c.Number), nil
	}
	if err := cqrs.HandleCommand(bus, handle); err != nil {
		return nil, err
	}
	var failed error
	through := testing.Benchmark(func(b *testing.B) {
		for i := range b.N {
			if got, err := cqrs.Send(ctx, bus, benchCommand{Number: i + 1000}); err != nil || int(got) != i+1000 {
				failed = fmt.Errorf("command %d was answered with %d: %w", i, int(got), err)
			}
		}
	})
	if failed != nil {
		return nil, failed
	}
	bare := testing.Benchmark(func(b *testing.B) {
		for i := range b.N {
			if got, err := handle(ctx, benchCommand{Number: i + 1000}); err != nil || int(got) != i+1000 {
				failed = fmt.Errorf("call %d was answered with %d: %w", i, int(got), err)
			}
		}
	})
	const mark = 2 // µs
	cost := (float64(through.T.Nanoseconds())/float64(through.N) - float64(bare.T.Nanoseconds())/float64(bare.N)) / 1000
	return []Row{row("command.overhead", max(cost, 0), "µs", mark, "a command through the bus, over a call of its handler, without middleware; limit: the mark")}, failed
}
