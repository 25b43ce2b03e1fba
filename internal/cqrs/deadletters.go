package cqrs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DeadLetter is an event at which a subscription's handler has failed as often as it may. It waits for a person, and what comes later in its stream waits behind it.
type DeadLetter struct {
	Subscription string
	EventID      uuid.UUID
	Stream       string
	Version      int64
	Type         string
	Attempts     int
	// Error is that of the last attempt.
	Error                string
	RecordedAt, ParkedAt time.Time
	// Followers counts the events that wait behind it.
	Followers int
}

// ErrNoDeadLetter says that there is no such dead letter, or none any more.
var ErrNoDeadLetter = errors.New("there is no such dead letter")

// DeadLetters returns up to limit dead letters of a subscription (of all where its name is empty), those that were parked longest ago first.
func DeadLetters(ctx context.Context, pool *pgxpool.Pool, subscription string, limit int) ([]DeadLetter, error) {
	rows, err := pool.Query(ctx, `SELECT subscription, event_id, stream, version, type, attempts, error, recorded_at, parked_at,
			(SELECT count(*) FROM event_handlers_parked f WHERE f.subscription = p.subscription AND f.stream = p.stream AND f.version > p.version)
		FROM event_handlers_parked p WHERE dead AND $1 IN ('', subscription) ORDER BY parked_at, event_id LIMIT $2`, subscription, max(limit, 0))
	if err != nil {
		return nil, fmt.Errorf("listing dead letters: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
	if err != nil {
		return nil, fmt.Errorf("listing dead letters: %w", err)
	}
	return all, nil
}

// RetryDead has a dead letter tried again, with its attempts counted anew; when it goes through, its followers come after it, in order.
func RetryDead(ctx context.Context, pool *pgxpool.Pool, subscription string, eventID uuid.UUID) error {
	tag, err := pool.Exec(ctx, `UPDATE event_handlers_parked SET dead = false, attempts = 0, due_at = now() WHERE subscription = $1 AND event_id = $2 AND dead`, subscription, eventID)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNoDeadLetter
	}
	if err != nil {
		return fmt.Errorf("retrying event %s in subscription %s: %w", eventID, subscription, err)
	}
	return nil
}

// DropDead has a subscription do without a dead letter for good; its followers go on. Who said so, and why, is kept.
func DropDead(ctx context.Context, pool *pgxpool.Pool, subscription string, eventID uuid.UUID, actor, reason string) error {
	if actor == "" || reason == "" {
		return fmt.Errorf("dropping event %s from subscription %s: say who does so, and why", eventID, subscription)
	}
	tag, err := pool.Exec(ctx, `WITH gone AS (DELETE FROM event_handlers_parked WHERE subscription = $1 AND event_id = $2 AND dead RETURNING *)
		INSERT INTO event_handlers_dropped (subscription, event_id, stream, version, type, error, reason, actor)
		SELECT subscription, event_id, stream, version, type, error, $4, $3 FROM gone`, subscription, eventID, actor, reason)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrNoDeadLetter
	}
	if err != nil {
		return fmt.Errorf("dropping event %s from subscription %s: %w", eventID, subscription, err)
	}
	return nil
}
