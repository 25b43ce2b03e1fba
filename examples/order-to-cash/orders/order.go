package orders

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventtype"
	"github.com/vextrus/saga-operator/internal/kernel"
)

// Status is where an order stands.
type Status string

// An order is placed, confirmed once everything about it is done, and fulfilled when it has arrived. Until then it can be cancelled.
const (
	Pending   Status = "pending"
	Confirmed Status = "confirmed"
	Cancelled Status = "cancelled"
	Fulfilled Status = "fulfilled"
)

// Line is so many pieces of one article.
type Line struct {
	SKU      string          `json:"sku"`
	Quantity kernel.Quantity `json:"quantity"`
}

// What can happen to an order. The names and forms are stored forever.
type (
	// OrderPlaced is the first event of every order.
	OrderPlaced struct {
		Customer string       `json:"customer"`
		Lines    []Line       `json:"lines"`
		Total    kernel.Money `json:"total"`
	}
	// OrderConfirmed says that stock, money and shipping are settled.
	OrderConfirmed struct{}
	// OrderFulfilled says that the goods have arrived.
	OrderFulfilled struct {
		Tracking string `json:"tracking"`
	}
	// OrderCancelled says that nothing is to come of it.
	OrderCancelled struct{}
)

// Events are the event types of orders.
var Events = eventtype.MustNewRegistry(
	eventtype.Of[OrderPlaced]("OrderPlaced", 1),
	eventtype.Of[OrderConfirmed]("OrderConfirmed", 1),
	eventtype.Of[OrderFulfilled]("OrderFulfilled", 1),
	eventtype.Of[OrderCancelled]("OrderCancelled", 1),
)

// State is the fold of an order's events.
type State struct {
	Status   Status           `json:"status"`
	Customer string           `json:"customer"`
	Pieces   map[string]int64 `json:"pieces"`
	Total    *kernel.Money    `json:"total,omitempty"`
	Tracking string           `json:"tracking,omitempty"`
}

// Evolve implements aggregate.State.
func (s State) Evolve(event any) State {
	switch e := event.(type) {
	case OrderPlaced:
		s.Status, s.Customer, s.Total, s.Pieces = Pending, e.Customer, &e.Total, map[string]int64{}
		for _, l := range e.Lines {
			s.Pieces[l.SKU] += l.Quantity.Int64()
		}
	case OrderConfirmed:
		s.Status = Confirmed
	case OrderFulfilled:
		s.Status, s.Tracking = Fulfilled, e.Tracking
	case OrderCancelled:
		s.Status = Cancelled
	}
	return s
}

const (
	maxLines    = 100
	maxQuantity = 1_000_000
)

// Validate implements aggregate.State: what is true of every order, whatever has happened to it.
func (s State) Validate() error {
	switch {
	case s.Customer == "" || len(s.Customer) > 200:
		return errors.New("customer: 1 to 200 bytes are needed")
	case s.Total == nil || s.Total.Sign() <= 0:
		return errors.New("total: more than nothing is needed")
	case len(s.Pieces) == 0 || len(s.Pieces) > maxLines:
		return fmt.Errorf("lines: 1 to %d are needed", maxLines)
	}
	for _, sku := range slices.Sorted(maps.Keys(s.Pieces)) {
		if sku == "" || len(sku) > 64 || s.Pieces[sku] > maxQuantity {
			return fmt.Errorf("lines: an article has a name of 1 to 64 bytes, and is ordered at most %d times", maxQuantity)
		}
	}
	return nil
}

// Order is the aggregate: its methods decide what happens to an order. What they refuse has not happened.
type Order struct{ aggregate.Root[State] }

// Place begins an order.
func (o *Order) Place(customer string, lines []Line, total kernel.Money) error {
	if o.State().Status != "" {
		return effect.Refuse(http.StatusConflict, "order %s has been placed already", o.ID())
	}
	o.Apply(OrderPlaced{Customer: customer, Lines: lines, Total: total})
	return nil
}

// Confirm says that everything about the order is settled.
func (o *Order) Confirm() error {
	if s := o.State().Status; s != Pending {
		return effect.Refuse(http.StatusConflict, "order %s is %s already", o.ID(), s)
	}
	o.Apply(OrderConfirmed{})
	return nil
}

// Fulfil says that the goods have arrived. An order that was not confirmed cannot have sent any.
func (o *Order) Fulfil(tracking string) error {
	if s := o.State().Status; s != Confirmed {
		return effect.Refuse(http.StatusConflict, "order %s is %s, not confirmed", o.ID(), s)
	}
	if tracking == "" || len(tracking) > 100 {
		return effect.Refuse(http.StatusUnprocessableEntity, "tracking: 1 to 100 bytes are needed")
	}
	o.Apply(OrderFulfilled{Tracking: tracking})
	return nil
}

// Cancel takes back an order that has not arrived, a confirmed one too. Cancelling it again changes nothing.
func (o *Order) Cancel() error {
	switch o.State().Status {
	case Cancelled:
		return nil
	case Fulfilled:
		return effect.Refuse(http.StatusConflict, "order %s has arrived and cannot be cancelled", o.ID())
	default:
		o.Apply(OrderCancelled{})
		return nil
	}
}

// category is that of the orders' streams, order-<id>.
const category = "order"

var kind = aggregate.Kind[*Order, State]{
	Category: category, New: func() *Order { return &Order{} }, Events: Events, SchemaVersion: 1, Snapshots: aggregate.Policy{Every: 3},
}
