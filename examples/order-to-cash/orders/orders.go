// Package orders is the service that knows what was ordered, and what has become of it. An order is event-sourced: its truth is its stream in the event store, order.go
// says what can happen to it, and readmodel.go what it looks like from outside.
package orders

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/goods"
	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/projection"
)

// An order as it is shown.
const shown = `SELECT id AS "order", customer, status, amount::text, currency, nullif(tracking, '') AS tracking,
    (SELECT json_agg(json_build_object('sku', sku, 'quantity', quantity) ORDER BY sku) FROM orders.lines WHERE order_id = id) AS lines
FROM orders.orders`

// Service is the HTTP service, the read model's runner, and the relay of what the service tells.
type Service struct {
	*effect.Service
	runner *projection.Runner
	relay  *outbox.Relay
	store  *projection.InlineStore
	log    *slog.Logger
}

// New makes the service, the event store and its tables in the pool's database.
func New(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (*Service, error) {
	if err := postgres.Migrate(ctx, pool.Config().ConnString()); err != nil {
		return nil, err
	}
	s := &Service{Service: effect.New(pool, "orders", log), log: log}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	def := ReadModel()
	var err error
	if s.store, err = projection.NewInlineStore(pool, def); err != nil {
		return nil, err
	}
	if s.runner, err = projection.NewRunner(projection.Options{Pool: pool, Store: s.store, Logger: log, Inline: []*projection.Definition{def}}); err != nil {
		return nil, err
	}
	if err := s.runner.Prepare(ctx); err != nil {
		return nil, err
	}
	if s.relay, err = outbox.NewRelay(outbox.Options{Pool: pool, Logger: log, Shards: 1}); err != nil {
		return nil, err
	}
	s.Handle("POST /orders", s.create)
	s.Handle("POST /orders/{order}/confirm", s.confirm)
	s.Handle("POST /orders/{order}/fulfil", s.fulfil)
	s.Handle("POST /orders/{order}/cancel", s.cancel)
	s.Look("GET /orders", `SELECT coalesce(json_agg(o), '[]')::text FROM (`+shown+` ORDER BY created_at DESC, id LIMIT 1000) o`)
	s.Look("GET /orders/{order}", `SELECT row_to_json(o)::text FROM (`+shown+` WHERE id = $1) o`)
	s.Look("GET /orders/{order}/events", `SELECT json_agg(json_build_object('version', version, 'type', type, 'at', recorded_at, 'data', data) ORDER BY version)::text
		FROM event_store WHERE stream = 'order-' || $1::text HAVING count(*) > 0`)
	return s, nil
}

// Run has the read model built anew where that is asked for, and publishes what the service tells, until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	var relayed error
	wg.Go(func() { relayed = s.relay.Run(ctx) })
	err := s.runner.Run(ctx)
	wg.Wait()
	return errors.Join(err, relayed)
}

// PublishTo has what happens to orders from now on published to a sink.
func (s *Service) PublishTo(ctx context.Context, to outbox.Sink) error { return s.relay.Set(ctx, to) }

// MessageTypePrefix begins the type of every message of the service; the type of the event follows.
const MessageTypePrefix = "com.example.orders."

// told returns what the world is told about the events of an order: all of them, so the version of the stream counts the messages.
func told(o *Order, events []eventstore.Event) []eventstore.Message {
	messages := make([]eventstore.Message, len(events))
	for i, e := range events {
		messages[i] = eventstore.Message{
			ID: e.ID, Type: MessageTypePrefix + e.Type, Key: o.ID(), Source: "/orders", Subject: o.ID(), Sequence: o.Version() + int64(i) + 1,
			Data: e.Data, Metadata: e.Metadata,
		}
	}
	return messages
}

// repository is that of the orders, within the transaction of an effect: the idempotency key, the events and the read model are committed together.
func (s *Service) repository(tx pgx.Tx, key string) (*aggregate.Repository[*Order, State], aggregate.Option, error) {
	r, err := aggregate.NewRepository(s.store.Within(tx), kind, aggregate.Options[*Order]{Logger: s.log, Messages: told})
	return r, aggregate.WithMetadata(eventstore.Metadata{CausationID: key}), err
}

func (s *Service) create(r *effect.Request) (effect.Effect, error) {
	var in struct {
		Order    string       `json:"order"`
		Customer string       `json:"customer"`
		Lines    []goods.Line `json:"lines"`
		Total    kernel.Money `json:"total"`
	}
	if err := r.Decode(&in); err != nil {
		return effect.Effect{}, err
	}
	if err := errors.Join(effect.CheckOrder(in.Order), goods.Check(in.Lines)); err != nil {
		return effect.Effect{}, err
	}
	lines := make([]Line, len(in.Lines))
	for i, l := range in.Lines {
		quantity, err := kernel.NewQuantity(l.Quantity)
		if err != nil {
			return effect.Effect{}, err
		}
		lines[i] = Line{SKU: l.SKU, Quantity: quantity}
	}
	// What every order must be is an invariant of the aggregate; a request that cannot become an order is refused before its key is used up.
	if err := (State{}).Evolve(OrderPlaced{Customer: in.Customer, Lines: lines, Total: in.Total}).Validate(); err != nil {
		return effect.Effect{}, err
	}
	return effect.Effect{Verb: "create", Order: in.Order, Status: http.StatusCreated, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		if err := s.Act(ctx, tx, in.Order); err != nil {
			return effect.Result{}, err
		}
		repo, because, err := s.repository(tx, r.Key)
		if err != nil {
			return effect.Result{}, err
		}
		if _, err := repo.Create(ctx, in.Order, func(o *Order) error { return o.Place(in.Customer, lines, in.Total) }, because); err != nil {
			return effect.Result{}, refusal(err, in.Order)
		}
		return changed(in.Order, Pending), nil
	}}, nil
}

// refusal makes definite answers of the errors that are one.
func refusal(err error, order string) error {
	var violated *aggregate.InvariantError
	switch {
	case errors.Is(err, aggregate.ErrNotFound):
		return effect.Refuse(http.StatusNotFound, "there is no order %s", order)
	case errors.Is(err, aggregate.ErrExists):
		return effect.Refuse(http.StatusConflict, "order %s has been placed already", order)
	case errors.As(err, &violated):
		return effect.Refuse(http.StatusUnprocessableEntity, "order %s: %v", order, violated.Err)
	default:
		return err
	}
}

// update makes an effect of a command on an order that is there.
func (s *Service) update(r *effect.Request, verb string, becomes Status, command func(*Order) error) (effect.Effect, error) {
	order, err := r.Order()
	return effect.Effect{Verb: verb, Order: order, Status: http.StatusOK, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		repo, because, err := s.repository(tx, r.Key)
		if err != nil {
			return effect.Result{}, err
		}
		if _, err := repo.Update(ctx, order, command, because); err != nil {
			return effect.Result{}, refusal(err, order)
		}
		return changed(order, becomes), nil
	}}, err
}

func (s *Service) confirm(r *effect.Request) (effect.Effect, error) {
	return s.update(r, "confirm", Confirmed, (*Order).Confirm)
}

func (s *Service) fulfil(r *effect.Request) (effect.Effect, error) {
	var in struct {
		Tracking string `json:"tracking"`
	}
	if err := r.Decode(&in); err != nil {
		return effect.Effect{}, err
	}
	return s.update(r, "fulfil", Fulfilled, func(o *Order) error { return o.Fulfil(in.Tracking) })
}

// cancel undoes create, and confirm with it.
func (s *Service) cancel(r *effect.Request) (effect.Effect, error) {
	e, err := s.update(r, "cancel", Cancelled, (*Order).Cancel)
	do := e.Do
	e.Do = func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		there, err := s.Undo(ctx, tx, e.Order)
		if err != nil || !there {
			result := changed(e.Order, Cancelled)
			result.Changed = false
			return result, err
		}
		return do(ctx, tx)
	}
	return e, err
}

func changed(order string, status Status) effect.Result {
	return effect.Result{Changed: true, Body: map[string]string{"order": order, "status": string(status)}}
}
