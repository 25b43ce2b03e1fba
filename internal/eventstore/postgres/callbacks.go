package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// PutCallback implements eventstore.Store.
func (s *Store) PutCallback(ctx context.Context, c eventstore.Callback) error {
	if err := c.Validate(); err != nil {
		return err
	}
	_, err := s.pool.Exec(ctx, `INSERT INTO saga_callbacks (token_hash, uid, step, direction, attempt, expires_at) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (token_hash) DO NOTHING`,
		c.TokenHash[:], c.UID, c.Step, c.Direction, c.Attempt, c.ExpiresAt)
	if err != nil {
		return Classified(fmt.Errorf("keeping a callback of the %s of step %q of saga %s: %w", c.Direction, c.Step, c.UID, err))
	}
	return nil
}

// Callback implements eventstore.Store.
func (s *Store) Callback(ctx context.Context, tokenHash [32]byte) (eventstore.Callback, error) {
	c := eventstore.Callback{TokenHash: tokenHash}
	err := s.pool.QueryRow(ctx, `SELECT uid, step, direction, attempt, coalesce(s.namespace, ''), expires_at
		FROM saga_callbacks LEFT JOIN saga_state s USING (uid) WHERE token_hash = $1`, tokenHash[:]).
		Scan(&c.UID, &c.Step, &c.Direction, &c.Attempt, &c.Namespace, &c.ExpiresAt)
	c.ExpiresAt = c.ExpiresAt.UTC()
	if errors.Is(err, pgx.ErrNoRows) {
		return c, fmt.Errorf("looking a callback up: %w", eventstore.ErrNotFound)
	}
	if err != nil {
		return c, Classified(fmt.Errorf("looking a callback up: %w", err))
	}
	return c, nil
}

// RemoveCallbacks implements eventstore.Store.
func (s *Store) RemoveCallbacks(ctx context.Context, expiredBefore time.Time, limit int) (int, error) {
	tag, err := s.pool.Exec(ctx, `DELETE FROM saga_callbacks WHERE token_hash IN (
		SELECT token_hash FROM saga_callbacks WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)`, expiredBefore, max(limit, 0))
	if err != nil {
		return 0, Classified(fmt.Errorf("removing callbacks that expired before %s: %w", expiredBefore.Format(time.RFC3339), err))
	}
	return int(tag.RowsAffected()), nil
}
