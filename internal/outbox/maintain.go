package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// partitionSize is how many positions a partition of the log has, and partitionsAhead how many there are that nothing has been written to.
	partitionSize   = 500_000
	partitionsAhead = 3
	maintainEvery   = 5 * time.Second
)

// maintain keeps partitions ahead of what is appended, drops those that every sink has read, and reports the backlogs.
func (r *Relay) maintain(ctx context.Context) {
	for ctx.Err() == nil {
		err := caught(r.log, "maintaining the outbox", func() error {
			_, _, err := Maintain(ctx, r.pool, r.size, partitionsAhead)
			r.reportBacklogs(ctx)
			return err
		})
		if err != nil && ctx.Err() == nil {
			r.log.Warn("the outbox could not be maintained; it is tried again", "error", err)
		}
		_ = sleep(ctx, maintainEvery)
	}
}

// reportBacklogs sets the gauges of the sinks whose first shard is this process'.
func (r *Relay) reportBacklogs(ctx context.Context) {
	all, err := Statuses(ctx, r.pool)
	if err != nil {
		return // the log says so already, from where it matters
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.reported
	r.reported = map[string]bool{}
	for i := range all {
		if s := r.sinks[all[i].ID]; s != nil && s.shards[0] != nil {
			r.metrics.stands(&all[i])
			r.reported[all[i].Name] = true
		}
	}
	for name := range before {
		if !r.reported[name] {
			r.metrics.forget(name)
		}
	}
}

// Maintain makes partitions of so many positions ahead of what is appended, and drops those that every sink has read. It does without what it cannot have at once.
func Maintain(ctx context.Context, pool *pgxpool.Pool, size int64, ahead int) (made, dropped int, err error) {
	if err := pool.QueryRow(ctx, `SELECT made, dropped FROM maintain_outbox($1, $2)`, size, ahead).Scan(&made, &dropped); err != nil {
		return 0, 0, fmt.Errorf("maintaining the partitions of the outbox: %w", err)
	}
	return made, dropped, nil
}
