// Package orders is the service that knows what was ordered, and what has become of it. An order is event-sourced: its truth is its stream in the event store. order.go
// says what can happen to it, commands.go and queries.go what can be asked of the service, orders.go how over HTTP, and readmodel.go what an order looks like from outside.
package orders

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/projection"
)

// Service is the HTTP service, the read model's runner, and the relay of what the service tells.
type Service struct {
	*effect.Service
	commands *cqrs.Commands
	queries  *cqrs.Queries
	runner   *projection.Runner
	relay    *outbox.Relay
}

// New makes the service, the event store and its tables in the pool's database.
func New(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (*Service, error) {
	if err := postgres.Migrate(ctx, pool.Config().ConnString()); err != nil {
		return nil, err
	}
	s := &Service{Service: effect.New(pool, "orders", nil, log)}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	def := ReadModel()
	store, err := projection.NewInlineStore(pool, def)
	if err != nil {
		return nil, err
	}
	if s.runner, err = projection.NewRunner(projection.Options{Pool: pool, Store: store, Logger: log, Inline: []*projection.Definition{def}}); err != nil {
		return nil, err
	}
	if err := s.runner.Prepare(ctx); err != nil {
		return nil, err
	}
	if s.relay, err = outbox.NewRelay(outbox.Options{Pool: pool, Logger: log, Shards: 1, Lease: relayLease}); err != nil {
		return nil, err
	}
	if s.commands, err = newCommands(&handlers{store: store, log: log}); err != nil {
		return nil, err
	}
	if s.queries, err = newQueries(pool); err != nil {
		return nil, err
	}
	s.routes()
	return s, nil
}

// Run has the read model built anew where that is asked for, and publishes what the service tells, until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	var relayed error
	wg.Go(func() { relayed = s.relay.Run(ctx) })
	wg.Go(func() { _ = s.Service.Run(ctx) })
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
