package orders

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"

	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventtype"
	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// Status is where an order stands.
type Status string

// An order is placed, accepted by the saga that is to carry it out, confirmed when everything about it is settled, and fulfilled when its parcel is on its way. Until then
// it can be cancelled: by the customer while no saga has accepted it, and by its saga.
const (
	Pending   Status = "pending"
	Accepted  Status = "accepted"
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
		// Card is what pays for it, Country where it goes.
		Card    string `json:"card"`
		Country string `json:"country"`
		// Saga is the one that placed it and carries it out; empty for an order that a customer placed, which is given one.
		Saga string `json:"saga,omitempty"`
	}
	// OrderAccepted says that a saga has begun to carry it out.
	OrderAccepted struct {
		Saga string `json:"saga"`
	}
	// OrderConfirmed says that stock, money and shipping are settled.
	OrderConfirmed struct{}
	// OrderFulfilled says that the goods are on their way, and everything is paid.
	OrderFulfilled struct {
		Tracking string `json:"tracking"`
	}
	// OrderCancelled says that nothing is to come of it.
	OrderCancelled struct {
		// By is the customer or the saga.
		By string `json:"by"`
	}
)

// Who cancels an order.
const (
	byCustomer = "customer"
	bySaga     = "saga"
)

// Events are the event types of orders.
var Events = eventtype.MustNewRegistry(
	eventtype.Of[OrderPlaced]("OrderPlaced", 1),
	eventtype.Of[OrderAccepted]("OrderAccepted", 1),
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
	Card     string           `json:"card"`
	Country  string           `json:"country"`
	Saga     string           `json:"saga,omitempty"`
	Tracking string           `json:"tracking,omitempty"`
}

// Evolve implements aggregate.State.
func (s State) Evolve(event any) State {
	switch e := event.(type) {
	case OrderPlaced:
		s.Status, s.Customer, s.Total, s.Card, s.Country, s.Saga = Pending, e.Customer, &e.Total, e.Card, e.Country, e.Saga
		s.Pieces = map[string]int64{}
		for _, l := range e.Lines {
			s.Pieces[l.SKU] += l.Quantity.Int64()
		}
	case OrderAccepted:
		s.Status, s.Saga = Accepted, e.Saga
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

var (
	card    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	country = regexp.MustCompile(`^[A-Z]{2}$`)
)

// Validate implements aggregate.State: what is true of every order, whatever has happened to it.
func (s State) Validate() error {
	switch {
	case s.Customer == "" || len(s.Customer) > 200:
		return errors.New("customer: 1 to 200 bytes are needed")
	case s.Total == nil || s.Total.Sign() <= 0:
		return errors.New("total: more than nothing is needed")
	case !card.MatchString(s.Card):
		return errors.New("card: 1 to 64 lower-case letters, digits and hyphens are needed")
	case !country.MatchString(s.Country):
		return errors.New("country: two capital letters are needed, such as DE")
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
func (o *Order) Place(p OrderPlaced) error {
	if o.State().Status != "" {
		return participant.Refuse(http.StatusConflict, "order %s has been placed already", o.ID())
	}
	o.Apply(p)
	return nil
}

// Accept has a saga carry the order out. Accepting it again changes nothing; another saga is refused, and so is one that comes after the order was cancelled.
func (o *Order) Accept(saga string) error {
	switch s := o.State(); {
	case s.Status == Pending:
		o.Apply(OrderAccepted{Saga: saga})
		return nil
	case s.Status != Cancelled && s.Saga == saga:
		return nil
	case s.Status == Cancelled:
		return participant.Refuse(http.StatusConflict, "order %s has been cancelled", o.ID())
	default:
		return participant.Refuse(http.StatusConflict, "order %s is carried out by another saga", o.ID())
	}
}

// Confirm says that everything about the order is settled.
func (o *Order) Confirm() error {
	if s := o.State().Status; s != Accepted {
		return participant.Refuse(http.StatusConflict, "order %s is %s, not accepted", o.ID(), s)
	}
	o.Apply(OrderConfirmed{})
	return nil
}

// Fulfil says that the goods are on their way. An order that was not confirmed cannot have sent any.
func (o *Order) Fulfil(tracking string) error {
	if s := o.State().Status; s != Confirmed {
		return participant.Refuse(http.StatusConflict, "order %s is %s, not confirmed", o.ID(), s)
	}
	if tracking == "" || len(tracking) > 100 {
		return participant.Refuse(http.StatusUnprocessableEntity, "tracking: 1 to 100 bytes are needed")
	}
	o.Apply(OrderFulfilled{Tracking: tracking})
	return nil
}

// Withdraw is the customer's change of mind. It comes too late when a saga carries the order out: that one is asked to cancel instead.
func (o *Order) Withdraw() error {
	switch s := o.State().Status; s {
	case Cancelled:
		return nil
	case Pending:
		o.Apply(OrderCancelled{By: byCustomer})
		return nil
	default:
		return participant.Refuse(http.StatusConflict, "order %s is %s: it is being carried out", o.ID(), s)
	}
}

// Cancel takes back an order that is not fulfilled, a confirmed one too: it undoes what a saga did to the order. There is nothing to undo when it is cancelled already,
// or when another saga carries it out.
func (o *Order) Cancel(saga string) error {
	switch s := o.State(); {
	case s.Status == Cancelled || s.Saga != "" && s.Saga != saga:
		return nil
	case s.Status == Fulfilled:
		return participant.Refuse(http.StatusConflict, "order %s is on its way and cannot be cancelled", o.ID())
	default:
		o.Apply(OrderCancelled{By: bySaga})
		return nil
	}
}

// category is that of the orders' streams, order-<id>.
const category = "order"

var kind = aggregate.Kind[*Order, State]{
	Category: category, New: func() *Order { return &Order{} }, Events: Events, SchemaVersion: 2, Snapshots: aggregate.Policy{Every: 3},
}
