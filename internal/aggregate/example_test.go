package aggregate_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/eventtype"
)

// What can happen to a bank account,
type (
	Opened    struct{ Owner string }
	Deposited struct{ Cents int64 }
	Withdrawn struct{ Cents int64 }
)

var accountEvents = eventtype.MustNewRegistry(
	eventtype.Of[Opened]("AccountOpened", 1), eventtype.Of[Deposited]("Deposited", 1), eventtype.Of[Withdrawn]("Withdrawn", 1),
)

// what it comes to,
type Balance struct {
	Owner string
	Cents int64
}

func (b Balance) Evolve(event any) Balance {
	switch e := event.(type) {
	case Opened:
		b.Owner = e.Owner
	case Deposited:
		b.Cents += e.Cents
	case Withdrawn:
		b.Cents -= e.Cents
	}
	return b
}

// what must never be,
func (b Balance) Validate() error {
	if b.Cents < 0 {
		return fmt.Errorf("the balance would be %d cents", b.Cents)
	}
	return nil
}

// and what can be asked of it.
type Account struct{ aggregate.Root[Balance] }

func (a *Account) Open(owner string)    { a.Apply(Opened{Owner: owner}) }
func (a *Account) Deposit(cents int64)  { a.Apply(Deposited{Cents: cents}) }
func (a *Account) Withdraw(cents int64) { a.Apply(Withdrawn{Cents: cents}) }

func ExampleRepository() {
	accounts, err := aggregate.NewRepository(memory.New(), aggregate.Kind[*Account, Balance]{
		Category: "account", New: func() *Account { return &Account{} }, Events: accountEvents,
		SchemaVersion: 1, Snapshots: aggregate.Policy{Every: 100},
	}, aggregate.Options[*Account]{})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()

	_, err = accounts.Create(ctx, "1042", func(a *Account) error {
		a.Open("Ann")
		a.Deposit(5000)
		return nil
	}, aggregate.WithMetadata(eventstore.Metadata{Actor: "teller 3"}))
	fmt.Println("created:", err)

	result, err := accounts.Update(ctx, "1042", func(a *Account) error { a.Withdraw(1500); return nil })
	fmt.Println("withdrawn: version", result.Version, err)

	_, err = accounts.Update(ctx, "1042", func(a *Account) error { a.Withdraw(9900); return nil })
	var refused *aggregate.InvariantError
	fmt.Println("refused:", errors.As(err, &refused), err)

	account, err := accounts.Load(ctx, "1042")
	if err != nil {
		panic(err)
	}
	fmt.Println(account.State().Owner, "has", account.State().Cents, "cents at version", account.Version())
	// Output:
	// created: <nil>
	// withdrawn: version 3 <nil>
	// refused: true the command on account-1042 is refused, nothing was appended: the balance would be -6400 cents
	// Ann has 3500 cents at version 3
}
