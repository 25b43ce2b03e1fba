package cqrs_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

type add struct {
	cqrs.Answers[sum]
	A, B int
}

type sum struct{ Value int }

func sumUp(_ context.Context, c add) (sum, error) { return sum{c.A + c.B}, nil }

// BenchmarkSend is what a command bus costs over a plain call.
func BenchmarkSend(b *testing.B) {
	bare, full := cqrs.NewCommands(), cqrs.NewCommands(cqrs.Recover(slog.New(slog.DiscardHandler)), cqrs.Trace(nil), must(cqrs.Metrics(nil)), cqrs.Validate())
	for _, bus := range []*cqrs.Commands{bare, full} {
		if err := cqrs.HandleCommand(bus, sumUp); err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		bus  *cqrs.Commands
	}{{"without middleware", bare}, {"with recovery, trace, metrics and validation", full}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			ctx := b.Context()
			for i := 0; b.Loop(); i++ {
				if got, err := cqrs.Send(ctx, c.bus, add{A: i, B: 2000}); err != nil || got.Value != i+2000 {
					b.Fatal(got, err)
				}
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
