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

// placed is a customer's order.
func placed() orders.OrderPlaced {
	return orders.OrderPlaced{Customer: "c-7", Lines: lines(), Total: total(), Card: "card-1", Country: "DE"}
}

func TestAnOrderGoesItsWayAndNoOther(t *testing.T) {
	t.Parallel()
	accepted, confirmed, fulfilled := orders.OrderAccepted{Saga: "s-1"}, orders.OrderConfirmed{}, orders.OrderFulfilled{Tracking: "TRK1"}
	byCustomer, bySaga := orders.OrderCancelled{By: "customer"}, orders.OrderCancelled{By: "saga"}
	place := func(o *orders.Order) error { return o.Place(placed()) }
	accept := func(o *orders.Order) error { return o.Accept("s-1") }
	fulfil := func(o *orders.Order) error { return o.Fulfil("TRK1") }
	cancel := func(o *orders.Order) error { return o.Cancel("s-1") }
	another := func(o *orders.Order) error { return o.Cancel("s-2") }
	type events = []any
	for name, c := range map[string]struct {
		history []any
		command func(*orders.Order) error
		want    []any // nil: refused
	}{
		"place":                   {nil, place, events{placed()}},
		"place twice":             {events{placed()}, place, nil},
		"accept":                  {events{placed()}, accept, events{accepted}},
		"accept twice":            {events{placed(), accepted}, accept, events{}},
		"accept a confirmed":      {events{placed(), accepted, confirmed}, accept, events{}},
		"accept a cancelled":      {events{placed(), byCustomer}, accept, nil},
		"accept for another saga": {events{placed(), accepted}, func(o *orders.Order) error { return o.Accept("s-2") }, nil},
		"confirm":                 {events{placed(), accepted}, (*orders.Order).Confirm, events{confirmed}},
		"confirm a pending":       {events{placed()}, (*orders.Order).Confirm, nil},
		"confirm twice":           {events{placed(), accepted, confirmed}, (*orders.Order).Confirm, nil},
		"confirm a cancelled":     {events{placed(), accepted, bySaga}, (*orders.Order).Confirm, nil},
		"fulfil":                  {events{placed(), accepted, confirmed}, fulfil, events{fulfilled}},
		"fulfil an unconfirmed":   {events{placed(), accepted}, fulfil, nil},
		"fulfil without a label":  {events{placed(), accepted, confirmed}, func(o *orders.Order) error { return o.Fulfil("") }, nil},
		"withdraw":                {events{placed()}, (*orders.Order).Withdraw, events{byCustomer}},
		"withdraw twice":          {events{placed(), byCustomer}, (*orders.Order).Withdraw, events{}},
		"withdraw an accepted":    {events{placed(), accepted}, (*orders.Order).Withdraw, nil},
		"cancel a pending":        {events{placed()}, cancel, events{bySaga}},
		"cancel":                  {events{placed(), accepted}, cancel, events{bySaga}},
		"cancel a confirmed":      {events{placed(), accepted, confirmed}, cancel, events{bySaga}},
		"cancel twice":            {events{placed(), accepted, bySaga}, cancel, events{}},
		"cancel a withdrawn":      {events{placed(), byCustomer}, cancel, events{}},
		"cancel another saga's":   {events{placed(), accepted}, another, events{}},
		"cancel a fulfilled":      {events{placed(), accepted, confirmed, fulfilled}, cancel, nil},
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
	for want, spoil := range map[string]func(*orders.OrderPlaced){
		"customer": func(p *orders.OrderPlaced) { p.Customer = "" },
		"total":    func(p *orders.OrderPlaced) { p.Total = must(kernel.ParseMoney("0 EUR")) },
		"card":     func(p *orders.OrderPlaced) { p.Card = "" },
		"country":  func(p *orders.OrderPlaced) { p.Country = "Germany" },
		"lines: 1": func(p *orders.OrderPlaced) { p.Lines = nil },
		"ordered at most": func(p *orders.OrderPlaced) {
			p.Lines = []orders.Line{{SKU: "B-1", Quantity: many}, {SKU: "B-1", Quantity: many}}
		},
	} {
		bad := placed()
		spoil(&bad)
		var violated *aggregate.InvariantError
		_, err := repo.Create(t.Context(), "1", func(o *orders.Order) error { return o.Place(bad) })
		if !errors.As(err, &violated) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want an invariant about %q", err, want)
		}
	}
	if _, err := repo.Load(t.Context(), "1"); !errors.Is(err, aggregate.ErrNotFound) {
		t.Errorf("something was appended: %v", err)
	}
}

// Whatever people and sagas try in whatever order, an order is never fulfilled unconfirmed, has one saga, never changes once it is over, and loads as it was.
func TestOrdersKeepTheirPromisesWhateverIsTried(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		repo := must(aggregate.NewRepository(memory.New(), orders.Kind(), aggregate.Options[*orders.Order]{PageSize: 2}))
		must(repo.Create(t.Context(), "1", func(o *orders.Order) error { return o.Place(placed()) }))
		confirmed, over, saga := false, orders.Status(""), ""
		for range rapid.IntRange(1, 16).Draw(t, "commands") {
			command := rapid.SampledFrom([]string{"accept", "confirm", "fulfil", "withdraw", "cancel"}).Draw(t, "command")
			by := rapid.SampledFrom([]string{"s-1", "s-2"}).Draw(t, "saga")
			_, err := repo.Update(t.Context(), "1", func(o *orders.Order) error {
				switch command {
				case "accept":
					return o.Accept(by)
				case "confirm":
					return o.Confirm()
				case "fulfil":
					return o.Fulfil("TRK")
				case "withdraw":
					return o.Withdraw()
				default:
					return o.Cancel(by)
				}
			})
			s := must(repo.Load(t.Context(), "1")).State()
			confirmed = confirmed || command == "confirm" && err == nil
			if saga != "" && s.Saga != saga {
				t.Fatalf("the order of saga %s became that of %s", saga, s.Saga)
			}
			saga = s.Saga
			if over != "" && s.Status != over {
				t.Fatalf("an order that was %s became %s", over, s.Status)
			}
			if s.Status == orders.Fulfilled && !confirmed {
				t.Fatal("an order was fulfilled that was never confirmed")
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
