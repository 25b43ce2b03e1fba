package orders_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/kernel"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func lines() []orders.Line {
	return []orders.Line{{SKU: "B-1", Quantity: must(kernel.NewQuantity(2))}}
}

func total() kernel.Money { return must(kernel.ParseMoney("129.90 EUR")) }

// after returns an order to which some things have happened.
func after(t *testing.T, events ...any) *orders.Order {
	t.Helper()
	o := &orders.Order{}
	if err := o.LoadFromHistory("1042", events...); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestAnOrderIsPlacedConfirmedAndFulfilledInThisOrder(t *testing.T) {
	t.Parallel()
	placed := orders.OrderPlaced{Customer: "c-7", Lines: lines(), Total: total()}
	place := func(o *orders.Order) error { return o.Place("c-7", lines(), total()) }
	fulfil := func(o *orders.Order) error { return o.Fulfil("TRK1") }
	for name, c := range map[string]struct {
		history []any
		command func(*orders.Order) error
		want    []any // nil: refused
	}{
		"place":                  {nil, place, []any{placed}},
		"place twice":            {[]any{placed}, place, nil},
		"confirm":                {[]any{placed}, (*orders.Order).Confirm, []any{orders.OrderConfirmed{}}},
		"confirm twice":          {[]any{placed, orders.OrderConfirmed{}}, (*orders.Order).Confirm, nil},
		"confirm a cancelled":    {[]any{placed, orders.OrderCancelled{}}, (*orders.Order).Confirm, nil},
		"fulfil":                 {[]any{placed, orders.OrderConfirmed{}}, fulfil, []any{orders.OrderFulfilled{Tracking: "TRK1"}}},
		"fulfil an unconfirmed":  {[]any{placed}, fulfil, nil},
		"fulfil without a label": {[]any{placed, orders.OrderConfirmed{}}, func(o *orders.Order) error { return o.Fulfil("") }, nil},
		"cancel":                 {[]any{placed}, (*orders.Order).Cancel, []any{orders.OrderCancelled{}}},
		"cancel a confirmed":     {[]any{placed, orders.OrderConfirmed{}}, (*orders.Order).Cancel, []any{orders.OrderCancelled{}}},
		"cancel twice":           {[]any{placed, orders.OrderCancelled{}}, (*orders.Order).Cancel, []any{}},
		"cancel what arrived":    {[]any{placed, orders.OrderConfirmed{}, orders.OrderFulfilled{Tracking: "TRK1"}}, (*orders.Order).Cancel, nil},
	} {
		o := after(t, c.history...)
		err := c.command(o)
		if (err == nil) != (c.want != nil) {
			t.Errorf("%s: error %v", name, err)
		}
		if diff := cmp.Diff(c.want, o.Uncommitted(), cmp.Comparer(func(a, b kernel.Money) bool { return a == b }), cmp.Comparer(func(a, b kernel.Quantity) bool { return a == b })); len(c.want)+len(o.Uncommitted()) > 0 && diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestAnOrderThatViolatesAnInvariantIsNotPlaced(t *testing.T) {
	t.Parallel()
	repo, err := aggregate.NewRepository(memory.New(), orders.Kind(), aggregate.Options[*orders.Order]{})
	if err != nil {
		t.Fatal(err)
	}
	many := must(kernel.NewQuantity(600_000))
	for want, place := range map[string]func(*orders.Order) error{
		"customer": func(o *orders.Order) error { return o.Place("", lines(), total()) },
		"total":    func(o *orders.Order) error { return o.Place("c", lines(), must(kernel.ParseMoney("0 EUR"))) },
		"lines: 1": func(o *orders.Order) error { return o.Place("c", nil, total()) },
		"ordered at most": func(o *orders.Order) error {
			return o.Place("c", []orders.Line{{SKU: "B-1", Quantity: many}, {SKU: "B-1", Quantity: many}}, total())
		},
	} {
		var violated *aggregate.InvariantError
		if _, err := repo.Create(t.Context(), "1", place); !errors.As(err, &violated) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want an invariant about %q", err, want)
		}
	}
	if _, err := repo.Load(t.Context(), "1"); !errors.Is(err, aggregate.ErrNotFound) {
		t.Errorf("something was appended: %v", err)
	}
}

// Whatever people try in whatever order, an order never arrives unconfirmed, never changes once it is over, and loads as it was.
func TestOrdersKeepTheirPromisesWhateverIsTried(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		repo := must(aggregate.NewRepository(memory.New(), orders.Kind(), aggregate.Options[*orders.Order]{PageSize: 2}))
		must(repo.Create(t.Context(), "1", func(o *orders.Order) error { return o.Place("c", lines(), total()) }))
		confirmed, over := false, orders.Status("")
		for range rapid.IntRange(1, 12).Draw(t, "commands") {
			command := rapid.SampledFrom([]string{"confirm", "fulfil", "cancel"}).Draw(t, "command")
			_, err := repo.Update(t.Context(), "1", func(o *orders.Order) error {
				switch command {
				case "confirm":
					return o.Confirm()
				case "fulfil":
					return o.Fulfil("TRK")
				default:
					return o.Cancel()
				}
			})
			s := must(repo.Load(t.Context(), "1")).State()
			confirmed = confirmed || command == "confirm" && err == nil
			if over != "" && s.Status != over {
				t.Fatalf("an order that was %s became %s", over, s.Status)
			}
			if s.Status == orders.Fulfilled && !confirmed {
				t.Fatal("an order arrived that was never confirmed")
			}
			if s.Status == orders.Cancelled || s.Status == orders.Fulfilled {
				over = s.Status
			}
			if *s.Total != total() || s.Pieces["B-1"] != 2 {
				t.Fatalf("the order became %+v", s)
			}
		}
	})
}
