package orders

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/goods"
	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/pkg/participant"
)

const (
	// relayLease is how long orders wait for their sagas after this service was killed.
	relayLease = 3 * time.Second
	// queryTimeout bounds a query.
	queryTimeout = 10 * time.Second
)

// parse makes the command of a request, and names the order that it is about.
type parse func(*participant.Request) (order string, c cqrs.Command[Receipt], err error)

// routes puts the buses behind HTTP: a customer places and withdraws, a saga does the rest.
func (s *Service) routes() {
	s.once("POST /orders", "place", http.StatusCreated, placeByCustomer)
	s.once("PUT /orders/{order}", "place", http.StatusCreated, placeBySaga)
	s.command("POST /orders/{order}/accept", "accept", http.StatusOK, about(func(order string, r *participant.Request) cqrs.Command[Receipt] {
		return AcceptOrder{Order: order, Saga: r.SagaID}
	}))
	s.once("POST /orders/{order}/confirm", "confirm", http.StatusOK, about(func(order string, _ *participant.Request) cqrs.Command[Receipt] {
		return ConfirmOrder{Order: order}
	}))
	s.command("POST /orders/{order}/withdraw", "withdraw", http.StatusOK, about(func(order string, _ *participant.Request) cqrs.Command[Receipt] {
		return WithdrawOrder{Order: order}
	}))
	s.undo("POST /orders/{order}/cancel", "cancel", about(func(order string, r *participant.Request) cqrs.Command[Receipt] {
		return CancelOrder{Order: order, Saga: r.SagaID}
	}))
	s.once("POST /orders/{order}/fulfil", "fulfil", http.StatusOK, fulfil)
	s.query("GET /orders", func(*http.Request) cqrs.Query[json.RawMessage] { return ListOrders{} })
	s.query("GET /orders/{order}", func(r *http.Request) cqrs.Query[json.RawMessage] { return GetOrder{Order: r.PathValue("order")} })
	s.query("GET /orders/{order}/events", func(r *http.Request) cqrs.Query[json.RawMessage] { return OrderHistory{Order: r.PathValue("order")} })
}

// command has requests sent as commands that change nothing when they come again: the stream of an order, and not a barrier, says what may follow what.
func (s *Service) command(pattern, verb string, status int, parse parse) {
	s.Action(pattern, verb, s.sent(status, parse))
}

// once has requests sent as commands that would be refused when they come again. A barrier keeps the answer for as long as a saga may ask for it.
func (s *Service) once(pattern, verb string, status int, parse parse) {
	send := s.sent(status, parse)
	s.Action(pattern, verb, func(r *participant.Request) (effect.Intent, error) {
		in, err := send(r)
		in.Effect = verb + " " + in.Order
		return in, err
	})
}

// undo has requests sent as commands that undo: what they refuse is not kept, because a person may have it tried again.
func (s *Service) undo(pattern, verb string, parse parse) {
	s.Compensation(pattern, verb, s.sent(http.StatusOK, parse))
}

func (s *Service) sent(status int, parse parse) effect.Parse {
	return func(r *participant.Request) (in effect.Intent, err error) {
		order, c, err := parse(r)
		if err != nil {
			return in, err
		}
		// A request that cannot become a command is refused before its key is used up.
		if v, ok := c.(cqrs.Validator); ok {
			if err := v.Validate(); err != nil {
				return in, err
			}
		}
		in.Order, in.After = order, s.relay.Wake
		in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
			receipt, err := cqrs.Send(context.WithValue(ctx, withinKey{}, within{tx: tx, key: r.Key}), s.commands, c)
			return participant.Answer{Status: status, Body: receipt}, err
		}
		return in, nil
	}
}

// query has a page asked for on the query bus.
func (s *Service) query(pattern string, parse func(*http.Request) cqrs.Query[json.RawMessage]) {
	s.Page(pattern, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
		defer cancel()
		found, err := cqrs.Ask(ctx, s.queries, parse(r))
		switch {
		case errors.Is(err, ErrNotFound):
			effect.WriteMessage(w, http.StatusNotFound, err.Error())
		case err != nil:
			s.Log().Error("a query failed", "path", r.URL.Path, "error", err)
			effect.WriteMessage(w, http.StatusInternalServerError, "the database did not answer")
		default:
			effect.Write(w, http.StatusOK, found)
		}
	})
}

// wanted is an order as it is asked for.
type wanted struct {
	// Order is the id that the caller gives it; one is made up for a customer who gives none.
	Order    string       `json:"order"`
	Customer string       `json:"customer"`
	Lines    []goods.Line `json:"lines"`
	Total    kernel.Money `json:"total"`
	Card     string       `json:"card"`
	Country  string       `json:"country"`
}

func place(r *participant.Request) (PlaceOrder, error) {
	var in wanted
	if err := r.Decode(&in); err != nil {
		return PlaceOrder{}, err
	}
	if in.Order == "" {
		in.Order = uuid.NewSHA1(uuid.NameSpaceURL, []byte("orders:"+r.Key)).String() // the same when it is sent again
	}
	if err := errors.Join(effect.CheckOrder(in.Order), goods.Check(in.Lines)); err != nil {
		return PlaceOrder{}, err
	}
	lines := make([]Line, len(in.Lines))
	for i, l := range in.Lines {
		quantity, err := kernel.NewQuantity(l.Quantity)
		if err != nil {
			return PlaceOrder{}, err
		}
		lines[i] = Line{SKU: l.SKU, Quantity: quantity}
	}
	return PlaceOrder{Order: in.Order, Customer: in.Customer, Lines: lines, Total: in.Total, Card: in.Card, Country: in.Country}, nil
}

func placeByCustomer(r *participant.Request) (string, cqrs.Command[Receipt], error) {
	c, err := place(r)
	return c.Order, c, err
}

// placeBySaga places the order of a saga that somebody has started by hand: it is accepted at once, and no other saga is started for it.
func placeBySaga(r *participant.Request) (string, cqrs.Command[Receipt], error) {
	c, err := place(r)
	if err != nil {
		return "", nil, err
	}
	order, err := effect.Order(r)
	switch {
	case err != nil:
		return "", nil, err
	case c.Order != order:
		return "", nil, errors.New("order: it is another one than in the path")
	case r.SagaID == "":
		return "", nil, errors.New("the header Saga-Id is missing: this is for sagas; everybody else sends POST /orders")
	}
	c.By = r.SagaID
	return order, c, nil
}

// about is for commands that need nothing but the order in the path.
func about(command func(string, *participant.Request) cqrs.Command[Receipt]) parse {
	return func(r *participant.Request) (string, cqrs.Command[Receipt], error) {
		order, err := effect.Order(r)
		return order, command(order, r), err
	}
}

func fulfil(r *participant.Request) (string, cqrs.Command[Receipt], error) {
	var in struct {
		Tracking string `json:"tracking"`
	}
	if err := r.Decode(&in); err != nil {
		return "", nil, err
	}
	order, err := effect.Order(r)
	return order, FulfilOrder{Order: order, Tracking: in.Tracking}, err
}
