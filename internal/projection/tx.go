package projection

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// maxQueued bounds the statements that wait to be sent together.
const maxQueued = 500

// Tx is the transaction in which a read model and its checkpoint move.
type Tx struct {
	tx         pgx.Tx
	generation int
	queued     *pgx.Batch
}

// Generation is what the handler puts into the column generation of every row it writes, and compares with it in every statement.
func (t *Tx) Generation() int { return t.generation }

// Queue has a statement carried out with others, in order, before the next Exec or Query and before the commit. It is the fast way to write: its error, if any,
// comes later, and the event it belongs to is found by trying one at a time.
func (t *Tx) Queue(ctx context.Context, sql string, args ...any) error {
	if t.queued == nil {
		t.queued = &pgx.Batch{}
	}
	t.queued.Queue(sql, args...)
	if t.queued.Len() >= maxQueued {
		return t.flush(ctx)
	}
	return nil
}

// Exec carries a statement out at once.
func (t *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := t.flush(ctx); err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.tx.Exec(ctx, sql, args...)
}

// Query reads, and sees what has been written before.
func (t *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := t.flush(ctx); err != nil {
		return nil, err
	}
	return t.tx.Query(ctx, sql, args...)
}

// QueryRow reads one row.
func (t *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if err := t.flush(ctx); err != nil {
		return failedRow{err}
	}
	return t.tx.QueryRow(ctx, sql, args...)
}

func (t *Tx) flush(ctx context.Context) error {
	if t.queued == nil || t.queued.Len() == 0 {
		return nil
	}
	batch := t.queued
	t.queued = nil
	return t.tx.SendBatch(ctx, batch).Close()
}

type failedRow struct{ err error }

func (r failedRow) Scan(...any) error { return r.err }
