package operations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Decider records a person's decision; it is the engine.
type Decider interface {
	Decide(ctx context.Context, key engine.Key, d saga.Decision) error
}

// Callbacks takes participants' later answers; it is engine.Callbacks.
type Callbacks interface {
	Find(ctx context.Context, token string) (namespace string, err error)
	Answer(ctx context.Context, token string, a engine.CallbackAnswer) error
}

// Options are what the operations work on.
type Options struct {
	// Client talks to the API server itself, not to a cache, and has it validate fields strictly: see NewClient. It acts with the operator's own rights.
	Client client.Client
	// Impersonate has sagas written with the identity of the caller, by the cluster's constrained
	// impersonation. Client is one of NewClient then.
	Impersonate bool
	// Access decides who may do what.
	Access Access
	// Database has the history of sagas.
	Database *pgxpool.Pool
	// Keys keeps what was answered to which idempotency key.
	Keys      cqrs.IdempotencyStore
	Decider   Decider
	Abandoner Abandoner
	Callbacks Callbacks
	// Watches reports whether this operator carries out the sagas of a namespace; nil is all.
	Watches func(namespace string) bool
	Logger  *slog.Logger
	// Metrics is where the buses' metrics are registered; nil is nowhere.
	Metrics prometheus.Registerer

	// Reauthorize is how often those who follow a saga are asked about again; 0 is 15 s.
	Reauthorize time.Duration
	// Poll is how soon those who follow a saga look for news, at first; 0 is 100 ms. It grows to ten times that while nothing happens.
	Poll time.Duration
}

// Operations are the operator's two buses.
type Operations struct {
	Commands *cqrs.Commands
	Queries  *cqrs.Queries
}

type handlers struct {
	Options
	history history
	signer  *signer
}

// New returns the buses with everything on them.
func New(o Options) (*Operations, error) {
	if o.Client == nil || o.Access == nil || o.Database == nil || o.Keys == nil || o.Decider == nil || o.Abandoner == nil || o.Callbacks == nil || o.Logger == nil {
		return nil, errors.New("making the operations: client, access, database, keys, decider, abandoner, callbacks and logger are needed")
	}
	if o.Watches == nil {
		o.Watches = func(string) bool { return true }
	}
	if o.Reauthorize <= 0 {
		o.Reauthorize = 15 * time.Second
	}
	if o.Poll <= 0 {
		o.Poll = 100 * time.Millisecond
	}
	metrics, err := cqrs.Metrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("making the operations: %w", err)
	}
	h := &handlers{Options: o, history: history{o.Database}, signer: &signer{pool: o.Database}}
	// Who may not send a command learns nothing of what became of an earlier one: authorization stands before the keys.
	ops := &Operations{
		Commands: cqrs.NewCommands(cqrs.Recover(o.Logger), metrics, cqrs.Validate(), authorize(o.Access), cqrs.Idempotent(namespacedKeys{o.Keys, o.Client})),
		Queries:  cqrs.NewQueries(cqrs.Recover(o.Logger), metrics, cqrs.Validate(), authorize(o.Access)),
	}
	err = errors.Join(
		cqrs.HandleCommand(ops.Commands, h.start),
		cqrs.HandleCommand(ops.Commands, h.suspend),
		cqrs.HandleCommand(ops.Commands, h.resume),
		cqrs.HandleCommand(ops.Commands, h.cancel),
		cqrs.HandleCommand(ops.Commands, h.decide),
		cqrs.HandleCommand(ops.Commands, h.abandon),
		cqrs.HandleCommand(ops.Commands, h.answer),
		cqrs.HandleQuery(ops.Queries, h.get, cqrs.AlwaysCurrent()),
		cqrs.HandleQuery(ops.Queries, h.list, cqrs.AlwaysCurrent()),
		cqrs.HandleQuery(ops.Queries, h.findCallback, cqrs.AlwaysCurrent()),
		cqrs.HandleQuery(ops.Queries, h.readHistory),
		cqrs.HandleQuery(ops.Queries, h.follow),
	)
	if err != nil {
		return nil, fmt.Errorf("making the operations: %w", err)
	}
	return ops, nil
}
