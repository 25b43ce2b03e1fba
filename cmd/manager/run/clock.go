package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/vextrus/saga-operator/internal/steadyclock"
	"github.com/vextrus/saga-operator/internal/supervise"
)

// newClock returns the clock of everything that is recorded or expires. It is compared with the
// database's.
func newClock(wall func() time.Time, pool *pgxpool.Pool) *steadyclock.Clock {
	began := time.Now()
	elapsed := func() time.Duration { return time.Since(began) }
	return steadyclock.New(wall, elapsed, func(ctx context.Context) (at time.Time, err error) {
		if err := pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&at); err != nil {
			return at, fmt.Errorf("asking PostgreSQL for the time: %w", err)
		}
		return at, nil
	})
}

// clockWatch compares the clocks, on every replica: one that follows may lead at any time.
type clockWatch struct {
	clock *steadyclock.Clock
	log   *slog.Logger
}

// Start implements manager.Runnable.
func (w *clockWatch) Start(ctx context.Context) error {
	w.clock.Watch(ctx, w.log)
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*clockWatch) NeedLeaderElection() bool { return false }

func wireClock(clock *steadyclock.Clock, mgr manager.Manager, log *slog.Logger) error {
	ahead := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "saga_clock_difference_seconds", Help: "By how much the clock of the operator's machine is ahead of the database's."},
		func() float64 { return clock.Difference().Seconds() })
	return errors.Join(supervise.Add(mgr, log, &clockWatch{clock, log}), metrics.Registry.Register(ahead))
}
