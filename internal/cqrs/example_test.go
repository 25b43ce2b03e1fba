package cqrs_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/eventtype"
)

// A command, what it is answered with,
type Deposit struct {
	cqrs.Answers[Deposited]
	Account string
	Cents   int64
}

type Deposited struct {
	Version int64
	Token   string // for queries that are to show it
}

// what is wrong with it by itself,
func (d Deposit) Validate() error {
	if d.Cents <= 0 {
		return fmt.Errorf("%d cents cannot be deposited", d.Cents)
	}
	return nil
}

// and what has happened then.
type MoneyDeposited struct{ Cents int64 }

func Example() {
	ctx := context.Background()
	types := eventtype.MustNewRegistry(eventtype.Of[MoneyDeposited]("MoneyDeposited", 1))

	// Who wants to hear of it, within the process.
	events := cqrs.NewEvents(types)
	told := make(chan string, 1)
	tell := func(_ context.Context, fact MoneyDeposited, e cqrs.Envelope) error {
		told <- fmt.Sprintf("%d cents on %s", fact.Cents, e.Stream)
		return nil
	}
	if err := cqrs.On(events, tell); err != nil {
		panic(err)
	}
	local, err := cqrs.NewLocal(events, cqrs.LocalOptions{})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _ = local.Run(ctx) }()
	store := local.Store(memory.New())

	// Who carries it out.
	commands := cqrs.NewCommands(cqrs.Recover(slog.Default()), cqrs.Trace(nil), cqrs.Validate(), cqrs.RetryConflicts(5, cqrs.Backoff{First: time.Millisecond}))
	deposit := func(ctx context.Context, d Deposit) (Deposited, error) {
		e, err := types.Encode(MoneyDeposited{d.Cents}, eventstore.Metadata{TraceParent: cqrs.TraceParent(ctx)})
		if err != nil {
			return Deposited{}, err
		}
		done, err := store.Append(ctx, eventstore.Append{Stream: "account-" + d.Account, Expected: eventstore.AnyVersion, Events: []eventstore.Event{e}})
		return Deposited{Version: done.Version, Token: done.Token.String()}, err
	}
	if err := cqrs.HandleCommand(commands, deposit); err != nil {
		panic(err)
	}

	done, err := cqrs.Send(ctx, commands, Deposit{Account: "1042", Cents: 500})
	fmt.Println("version:", done.Version, "error:", err)
	fmt.Println("told:", <-told)

	_, err = cqrs.Send(ctx, commands, Deposit{Account: "1042"})
	var invalid *cqrs.InvalidError
	fmt.Println(errors.As(err, &invalid), err)
	// Output:
	// version: 1 error: <nil>
	// told: 500 cents on account-1042
	// true command cqrs_test.Deposit is not valid: 0 cents cannot be deposited
}
