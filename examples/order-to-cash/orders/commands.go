package orders

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// Receipt is what a command is answered with.
type Receipt struct {
	Order  string `json:"order"`
	Status Status `json:"status"`
	// Saga is the name of the saga that is to carry out an order that was just placed.
	Saga string `json:"saga,omitempty"`
}

// The commands. Each is about one order.
type (
	// PlaceOrder begins an order. By is the saga that places and accepts it in one; empty for a customer's, which is given a saga.
	PlaceOrder struct {
		cqrs.Answers[Receipt]
		Order    string
		Customer string
		Lines    []Line
		Total    kernel.Money
		Card     string
		Country  string
		By       string
	}
	// AcceptOrder has a saga carry an order out.
	AcceptOrder struct {
		cqrs.Answers[Receipt]
		Order, Saga string
	}
	// ConfirmOrder says that everything about an order is settled.
	ConfirmOrder struct {
		cqrs.Answers[Receipt]
		Order string
	}
	// FulfilOrder says that the goods are on their way.
	FulfilOrder struct {
		cqrs.Answers[Receipt]
		Order, Tracking string
	}
	// WithdrawOrder is a customer's change of mind.
	WithdrawOrder struct {
		cqrs.Answers[Receipt]
		Order string
	}
	// CancelOrder undoes what a saga did to an order. There may be no such order.
	CancelOrder struct {
		cqrs.Answers[Receipt]
		Order, Saga string
	}
)

// placed is the event that the command is about.
func (c PlaceOrder) placed() OrderPlaced {
	return OrderPlaced{Customer: c.Customer, Lines: c.Lines, Total: c.Total, Card: c.Card, Country: c.Country, Saga: c.By}
}

// Validate implements cqrs.Validator: what every order must be is an invariant of the aggregate.
func (c PlaceOrder) Validate() error { return (State{}).Evolve(c.placed()).Validate() }

// SagaName is the name of the saga that carries out a customer's order.
func SagaName(order string) string { return "order-" + order }

// handlers carry out commands. The transaction that they are a part of comes with the context: idempotency key, events, read model and messages are committed together.
type handlers struct {
	store *projection.InlineStore
	log   *slog.Logger
}

type withinKey struct{}

// within is the transaction of a command, and the idempotency key that it came under.
type within struct {
	tx  pgx.Tx
	key string
}

func newCommands(h *handlers) (*cqrs.Commands, error) {
	b := cqrs.NewCommands(cqrs.Recover(h.log), cqrs.Validate())
	return b, errors.Join(
		cqrs.HandleCommand(b, h.place),
		cqrs.HandleCommand(b, h.cancel),
		cqrs.HandleCommand(b, func(ctx context.Context, c AcceptOrder) (Receipt, error) {
			return h.update(ctx, c.Order, func(o *Order) error { return o.Accept(c.Saga) })
		}),
		cqrs.HandleCommand(b, func(ctx context.Context, c ConfirmOrder) (Receipt, error) {
			return h.update(ctx, c.Order, (*Order).Confirm)
		}),
		cqrs.HandleCommand(b, func(ctx context.Context, c FulfilOrder) (Receipt, error) {
			return h.update(ctx, c.Order, func(o *Order) error { return o.Fulfil(c.Tracking) })
		}),
		cqrs.HandleCommand(b, func(ctx context.Context, c WithdrawOrder) (Receipt, error) {
			return h.update(ctx, c.Order, (*Order).Withdraw)
		}),
	)
}

// repository is that of the orders, within the command's transaction.
func (h *handlers) repository(ctx context.Context) (within, *aggregate.Repository[*Order, State], aggregate.Option, error) {
	w, ok := ctx.Value(withinKey{}).(within)
	if !ok {
		return w, nil, nil, errors.New("a command on an order was sent without a transaction")
	}
	r, err := aggregate.NewRepository(h.store.Within(w.tx), kind, aggregate.Options[*Order]{Logger: h.log, Messages: told})
	return w, r, aggregate.WithMetadata(eventstore.Metadata{CausationID: w.key}), err
}

// barrier is what placing and cancelling an order have in common.
func barrier(order string) participant.Effect { return participant.Effect{Name: "order " + order} }

func (h *handlers) place(ctx context.Context, c PlaceOrder) (Receipt, error) {
	w, repo, because, err := h.repository(ctx)
	if err != nil {
		return Receipt{}, err
	}
	turn, err := participant.Act(ctx, w.tx, barrier(c.Order))
	if err != nil {
		return Receipt{}, err
	}
	if turn == participant.Undone { // a cancellation came first
		return Receipt{}, participant.Refuse(http.StatusConflict, "order %s has been cancelled", c.Order)
	}
	receipt := Receipt{Order: c.Order, Status: Pending, Saga: SagaName(c.Order)}
	_, err = repo.Create(ctx, c.Order, func(o *Order) error {
		if err := o.Place(c.placed()); err != nil || c.By == "" {
			return err
		}
		receipt.Status, receipt.Saga = Accepted, ""
		return o.Accept(c.By)
	}, because)
	return receipt, refusal(err, c.Order)
}

// update runs a command on an order that is there.
func (h *handlers) update(ctx context.Context, order string, command func(*Order) error) (Receipt, error) {
	_, repo, because, err := h.repository(ctx)
	if err != nil {
		return Receipt{}, err
	}
	receipt := Receipt{Order: order}
	_, err = repo.Update(ctx, order, func(o *Order) error {
		err := command(o)
		receipt.Status = o.State().Status
		return err
	}, because)
	return receipt, refusal(err, order)
}

func (h *handlers) cancel(ctx context.Context, c CancelOrder) (Receipt, error) {
	w, _, _, err := h.repository(ctx)
	if err != nil {
		return Receipt{}, err
	}
	// Where there is no order yet, this keeps a late one from being placed. Where there is one, its stream says whether this saga may cancel it.
	if _, err := participant.Undo(ctx, w.tx, barrier(c.Order)); err != nil {
		return Receipt{}, err
	}
	receipt, err := h.update(ctx, c.Order, func(o *Order) error { return o.Cancel(c.Saga) })
	if no, refused := errors.AsType[*participant.Refusal](err); refused && no.Status == http.StatusNotFound {
		return Receipt{Order: c.Order, Status: Cancelled}, nil
	}
	return receipt, err
}

// refusal makes definite answers of the errors that are one.
func refusal(err error, order string) error {
	var violated *aggregate.InvariantError
	switch {
	case errors.Is(err, aggregate.ErrNotFound):
		return participant.Refuse(http.StatusNotFound, "there is no order %s", order)
	case errors.Is(err, aggregate.ErrExists):
		return participant.Refuse(http.StatusConflict, "order %s has been placed already", order)
	case errors.As(err, &violated):
		return participant.Refuse(http.StatusUnprocessableEntity, "order %s: %v", order, violated.Err)
	default:
		return err
	}
}
