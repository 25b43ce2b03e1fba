package run

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/panics"
	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/internal/projection/sagas"
)

// readModels keeps the operator's read models up to date, and other processes informed of what is committed. Every replica does: leases in the database decide which
// of them feeds what.
type readModels struct {
	announcer *storepg.Announcer
	runner    *projection.Runner
	wake      func()
}

// newReadModels returns the read models of a database. The store that appends has to call committed. Whoever else is to know of every commit, here and in other processes, is
// told by wake, which must not block.
func newReadModels(pool *pgxpool.Pool, log *slog.Logger, wake func()) (*readModels, error) {
	runner, err := projection.NewRunner(projection.Options{
		Pool: pool, Store: storepg.New(pool), Logger: log, Metrics: metrics.Registry,
	}, sagas.History(), sagas.Summary())
	if err != nil {
		return nil, err
	}
	m := &readModels{runner: runner, wake: wake}
	m.announcer = storepg.NewAnnouncer(pool, log, m.heard)
	return m, nil
}

// committed tells that something may have been appended.
func (m *readModels) committed() {
	m.heard()
	m.announcer.Announce()
}

// heard wakes those who read, for something that was committed here or elsewhere.
func (m *readModels) heard() {
	m.runner.Wake()
	m.wake()
}

// Start implements manager.Runnable.
func (m *readModels) Start(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { _ = panics.Restart(ctx, nil, "announcing commits", m.announcer.Run) })
	wg.Go(func() { _ = panics.Restart(ctx, nil, "feeding read models", m.runner.Run) })
	wg.Wait()
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*readModels) NeedLeaderElection() bool { return false }

const (
	// retentionBatch is how many sagas are removed in one transaction.
	retentionBatch = 200
	// retentionMargin is how much longer a history is kept. When a saga finished is a time of the
	// database, whose clock may have been an hour behind.
	retentionMargin = time.Hour + 5*time.Minute
	// maxRetentionPause is how often retention looks at least.
	maxRetentionPause = 10 * time.Minute
)

// retention removes the history of sagas that finished long ago. One replica, the leader, does so.
type retention struct {
	store eventstore.Store
	after time.Duration
	clock func() time.Time
	log   *slog.Logger
}

// Start implements manager.Runnable.
func (r *retention) Start(ctx context.Context) error {
	if r.after <= 0 {
		return nil // everything is kept
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			r.remove(ctx)
			timer.Reset(min(max(r.after/10, time.Second), maxRetentionPause))
		}
	}
}

func (r *retention) remove(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("removing the history of finished sagas panicked; it is tried again later", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	total := 0
	for {
		n, err := r.store.RemoveFinished(ctx, r.clock().Add(-r.after-retentionMargin), retentionBatch)
		total += n
		if err != nil && ctx.Err() == nil {
			r.log.Warn("the history of finished sagas could not be removed; it is tried again later", "error", err)
		}
		if err != nil || n < retentionBatch {
			break
		}
	}
	if total > 0 {
		r.log.Info("removed the history of finished sagas", "sagas", total, "finishedBefore", r.after.String()+" ago")
	}
}
