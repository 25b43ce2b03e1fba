package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// DefaultBatch is how many rows Sweep deletes in one transaction where it is not told; MaxBatch is how many it may be told.
const (
	DefaultBatch = 1_000
	MaxBatch     = 100_000
)

// Executor runs SQL: *pgxpool.Pool or *pgx.Conn.
type Executor interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// Sweep forgets the messages of all consumers that were handled longer than olderThan ago, by the database's clock, and returns how many. One of them that came again would be handled
// again: olderThan has to be longer than any message can take to come again, which is how long the broker keeps it, or how long a dead letter may wait for a person to retry it. Some weeks
// are usual.
//
// It deletes batch rows in a transaction of its own, again and again until none is left; DefaultBatch where batch is 0. Rows that another sweep has in hand are left to that, so several
// processes may sweep at once. After an error, what was swept until then is gone, and is in the number.
func Sweep(ctx context.Context, db Executor, olderThan time.Duration, batch int) (swept int64, err error) {
	if batch == 0 {
		batch = DefaultBatch
	}
	switch {
	case olderThan <= 0:
		return 0, fmt.Errorf("sweeping the inbox: olderThan is %s; it has to be longer than a message can take to come again", olderThan)
	case batch < 0 || batch > MaxBatch:
		return 0, fmt.Errorf("sweeping the inbox: batch is %d; it has to be from 1 to %d, or 0 for %d", batch, MaxBatch, DefaultBatch)
	}
	for {
		tag, err := db.Exec(ctx, `DELETE FROM inbox_messages WHERE ctid = ANY (ARRAY (
			SELECT ctid FROM inbox_messages WHERE handled_at < now() - make_interval(secs => $1) ORDER BY handled_at LIMIT $2 FOR UPDATE SKIP LOCKED))`,
			olderThan.Seconds(), batch)
		if err != nil {
			return swept, fmt.Errorf("sweeping the inbox: %w", explain(err))
		}
		swept += tag.RowsAffected()
		if tag.RowsAffected() < int64(batch) {
			return swept, nil
		}
	}
}
