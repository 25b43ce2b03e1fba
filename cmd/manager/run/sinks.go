package run

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/vextrus/saga-operator/controllers"
	"github.com/vextrus/saga-operator/internal/egress"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/participant/message"
	"github.com/vextrus/saga-operator/internal/quota"
	"github.com/vextrus/saga-operator/internal/supervise"
)

// relay publishes the messages of the outbox, on every replica: leases in the database share the sinks among them.
type relay struct {
	*outbox.Relay
	pool *pgxpool.Pool
}

// newRelay makes the relay. What arrives at the sinks' reply addresses is kept, and told by committed, which must not block.
func newRelay(c Config, pool *pgxpool.Pool, log *slog.Logger, committed func()) (*relay, error) {
	answers := &message.Answers{Store: storepg.New(pool, storepg.OnCommit(committed)), Logger: log}
	r, err := outbox.NewRelay(outbox.Options{Pool: pool, Shards: c.OutboxShards, Logger: log, Metrics: metrics.Registry, OnReply: answers.Handle})
	if err != nil {
		return nil, err
	}
	return &relay{Relay: r, pool: pool}, nil
}

// Start implements manager.Runnable.
func (r *relay) Start(ctx context.Context) error { return r.Run(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*relay) NeedLeaderElection() bool { return false }

// Statuses implements controllers.Relay.
func (r *relay) Statuses(ctx context.Context) ([]outbox.Status, error) {
	return outbox.Statuses(ctx, r.pool)
}

// Forget implements controllers.Relay.
func (r *relay) Forget(ctx context.Context, id string) (bool, error) {
	return outbox.Forget(ctx, r.pool, id)
}

// wireSinks has the relay publish to what Sinks and ClusterSinks say, within the egress policy.
func wireSinks(c Config, log *slog.Logger, mgr manager.Manager, r *relay, policy *egress.Policy, quotas *quota.Table) error {
	const connectTimeout = 30 * time.Second // sinks have shorter ones of their own
	sinks := &controllers.SinkReconciler{
		Relay: r, Dial: policy.Dialer(connectTimeout).DialContext, Namespace: operatorNamespace(c), UserAgent: "saga-operator/" + Version, Logger: log, Watches: c.watches, Quotas: quotas,
	}
	if err := sinks.SetupWithManager(mgr); err != nil {
		return err
	}
	return supervise.Add(mgr, log, r)
}

// operatorNamespace is that of the operator's pod, where the Secrets of ClusterSinks are; outside of a cluster that of its lease.
func operatorNamespace(c Config) string {
	if own, err := os.ReadFile(ownNamespace); err == nil {
		return strings.TrimSpace(string(own))
	}
	return leaseNamespace(c)
}
