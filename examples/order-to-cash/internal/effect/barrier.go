package effect

import (
	"context"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
)

// The barrier: one row per order says whether the action was done or undone. Action and compensation both begin by writing it, so one
// of them waits for the other, and the second finds what the first has left. A compensation that finds nothing leaves a tombstone,
// which an action that was under way for longer than its compensation runs into.

// Act claims an order for the action. It returns a *Refusal if the action was done already, under another key, or was undone.
func (s *Service) Act(ctx context.Context, tx pgx.Tx, order string) error {
	tag, err := tx.Exec(ctx, s.sql.act, order)
	if err != nil {
		return fmt.Errorf("entering the barrier for order %s: %w", order, err)
	}
	if tag.RowsAffected() == 1 {
		return nil
	}
	var state string
	if err := tx.QueryRow(ctx, s.sql.state, order).Scan(&state); err != nil {
		return fmt.Errorf("reading the barrier for order %s: %w", order, err)
	}
	if state == "undone" {
		return Refuse(http.StatusConflict, "order %s has been undone", order)
	}
	return Refuse(http.StatusConflict, "order %s has been here before", order)
}

// Undo claims an order for the compensation and tells whether there is an action to be undone. It never will be again.
func (s *Service) Undo(ctx context.Context, tx pgx.Tx, order string) (bool, error) {
	tag, err := tx.Exec(ctx, s.sql.tombstone, order)
	if err != nil {
		return false, fmt.Errorf("leaving a tombstone for order %s: %w", order, err)
	}
	if tag.RowsAffected() == 1 {
		return false, nil
	}
	tag, err = tx.Exec(ctx, s.sql.undo, order)
	if err != nil {
		return false, fmt.Errorf("undoing order %s: %w", order, err)
	}
	return tag.RowsAffected() == 1, nil
}
