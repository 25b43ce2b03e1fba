package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Selection is which parked messages a person means. What is given narrows it; the zero value is all of them.
type Selection struct {
	// IDs are those of messages.
	IDs []uuid.UUID
	// Sink is the name or the ID of a sink.
	Sink string
	// OlderThan selects what was committed longer ago.
	OlderThan time.Duration
	// Dead selects dead letters only.
	Dead bool
	// Limit bounds how many are listed; 1000 by default. Retry and Drop know no limit.
	Limit int
}

// Parked is a message that a sink did not take, or that follows one.
type Parked struct {
	ID        uuid.UUID
	Sink      string // the name
	Key, Type string
	Attempts  int
	// Dead says that it waits for a person; DueAt, where it is the oldest of its key and not dead, when it is tried again.
	Dead       bool
	DueAt      time.Time
	RecordedAt time.Time
	// Reason and Error are those of the last attempt; empty for a message that only follows another of its key.
	Reason, Error string
}

// ErrNoneSelected says that no message was meant.
var ErrNoneSelected = errors.New("no parked message is selected")

// where is the condition of a selection, with its arguments.
func (s *Selection) where() (condition string, args []any) {
	all := []string{"true"}
	add := func(format string, arg any) {
		args = append(args, arg)
		all = append(all, fmt.Sprintf(format, len(args)))
	}
	if len(s.IDs) > 0 {
		add("p.message_id = ANY ($%d)", s.IDs)
	}
	if s.Sink != "" {
		add("p.sink IN (SELECT sink FROM outbox_readers WHERE $%[1]d IN (sink, name) UNION SELECT $%[1]d)", s.Sink)
	}
	if s.OlderThan > 0 {
		add("p.recorded_at < now() - $%d::interval", s.OlderThan)
	}
	if s.Dead {
		all = append(all, "p.dead")
	}
	return strings.Join(all, " AND "), args
}

// List returns parked messages, the oldest first.
func List(ctx context.Context, pool *pgxpool.Pool, s Selection) ([]Parked, error) {
	const usual = 1000
	if s.Limit <= 0 {
		s.Limit = usual
	}
	where, args := s.where()
	rows, err := pool.Query(ctx, `SELECT p.message_id, coalesce((SELECT max(name) FROM outbox_readers r WHERE r.sink = p.sink), p.sink), p.key, p.type, p.attempts, p.dead, p.due_at,
		p.recorded_at, p.reason, p.error FROM outbox_parked p WHERE `+where+fmt.Sprintf(` ORDER BY p.sequence LIMIT %d`, s.Limit), args...)
	if err != nil {
		return nil, fmt.Errorf("listing the parked messages: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Parked])
	if err != nil {
		return nil, fmt.Errorf("listing the parked messages: %w", err)
	}
	return all, nil
}

// RetryParked has parked messages tried again now: dead letters come to life, with their attempts counted anew, and their followers go out behind them. It returns how many dead
// letters there were among them; ErrNoneSelected where there is no message to try.
func RetryParked(ctx context.Context, pool *pgxpool.Pool, s Selection) (dead int, err error) {
	err = command(ctx, pool, s, func(tx pgx.Tx, where string, args []any) (int64, error) {
		var all int64
		err := tx.QueryRow(ctx, `WITH changed AS (UPDATE outbox_parked p SET attempts = CASE WHEN p.dead THEN 0 ELSE p.attempts END, dead = false, due_at = now()
				FROM outbox_parked before WHERE (before.sink, before.shard, before.key, before.sequence) = (p.sink, p.shard, p.key, p.sequence)
				AND `+where+` RETURNING before.dead)
			SELECT count(*), count(*) FILTER (WHERE dead) FROM changed`, args...).Scan(&all, &dead)
		return all, err
	})
	if err != nil {
		return 0, fmt.Errorf("retrying parked messages: %w", err)
	}
	return dead, nil
}

// Drop has parked messages never be published; their followers go out. Who said so, and why, is kept. It returns how many there were.
func Drop(ctx context.Context, pool *pgxpool.Pool, s Selection, actor, reason string) (dropped int64, err error) {
	if reason == "" || actor == "" {
		return 0, errors.New("dropping parked messages: say who does so, and why")
	}
	err = command(ctx, pool, s, func(tx pgx.Tx, where string, args []any) (int64, error) {
		n := len(args)
		tag, err := tx.Exec(ctx, fmt.Sprintf(`WITH gone AS (DELETE FROM outbox_parked p WHERE %s RETURNING *)
			INSERT INTO outbox_dropped (message_id, sink, key, type, error, reason, actor)
			SELECT message_id, sink, key, type, error, $%d, $%d FROM gone ON CONFLICT DO NOTHING`, where, n+1, n+2), append(args, reason, actor)...)
		dropped = tag.RowsAffected()
		return dropped, err
	})
	if err != nil {
		return 0, fmt.Errorf("dropping parked messages: %w", err)
	}
	return dropped, nil
}

// command changes parked messages and has those who publish look again.
func command(ctx context.Context, pool *pgxpool.Pool, s Selection, change func(tx pgx.Tx, where string, args []any) (int64, error)) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		where, args := s.where()
		changed, err := change(tx, where, args)
		switch {
		case err != nil:
			return err
		case changed == 0:
			return ErrNoneSelected
		}
		_, err = tx.Exec(ctx, `UPDATE outbox_readers SET commands = commands + 1`)
		return err
	})
}
