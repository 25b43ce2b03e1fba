package postgres

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// PutAnswer implements eventstore.Store.
func (s *Store) PutAnswer(ctx context.Context, a eventstore.Answer) (bool, error) {
	if err := a.Validate(); err != nil {
		return false, err
	}
	rows, err := s.pool.Query(ctx, `INSERT INTO saga_answers (uid, step, direction, round, rejected, reason, message, response)
		SELECT uid, $2, $3, $4, $5, $6, $7, $8 FROM saga_state WHERE uid = $1 AND NOT finished ON CONFLICT DO NOTHING RETURNING uid`,
		a.UID, a.Step, a.Direction, a.Round, a.Rejected, a.Reason, a.Message, a.Response)
	var kept []uuid.UUID
	if err == nil {
		kept, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	}
	if err != nil {
		return false, Classified(fmt.Errorf("keeping an answer to the %s of step %q of saga %s: %w", a.Direction, a.Step, a.UID, err))
	}
	if len(kept) > 0 {
		s.committed()
	}
	return len(kept) > 0, nil
}

// Answers implements eventstore.Store.
func (s *Store) Answers(ctx context.Context, uid uuid.UUID, maxResponse int, steps ...string) ([]eventstore.Answer, error) {
	rows, err := s.pool.Query(ctx, `SELECT uid, step, direction, round, rejected, reason, message, CASE WHEN octet_length(response::text) <= $3 THEN response END
		FROM saga_answers WHERE uid = $1 AND step = ANY ($2)`, uid, steps, maxResponse)
	if err != nil {
		return nil, Classified(fmt.Errorf("reading the answers to saga %s: %w", uid, err))
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (eventstore.Answer, error) {
		var a eventstore.Answer
		err := row.Scan(&a.UID, &a.Step, &a.Direction, &a.Round, &a.Rejected, &a.Reason, &a.Message, (*[]byte)(&a.Response))
		return a, err
	})
	if err != nil {
		return nil, Classified(fmt.Errorf("reading the answers to saga %s: %w", uid, err))
	}
	return all, nil
}

// Nudge implements eventstore.Store.
func (s *Store) Nudge(ctx context.Context, uid uuid.UUID) error {
	if _, err := s.pool.Exec(ctx, `INSERT INTO saga_nudges (uid) SELECT uid FROM saga_state WHERE uid = $1 ON CONFLICT DO NOTHING`, uid); err != nil {
		return Classified(fmt.Errorf("nudging saga %s: %w", uid, err))
	}
	s.committed()
	return nil
}

// TakeAnswered implements eventstore.Store.
func (s *Store) TakeAnswered(ctx context.Context, limit int) ([]eventstore.SagaState, error) {
	rows, err := s.pool.Query(ctx, `WITH news AS (
			UPDATE saga_answers SET told = true WHERE (uid, step, direction, round) IN (
				SELECT uid, step, direction, round FROM saga_answers WHERE NOT told ORDER BY received_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING uid),
		nudges AS (DELETE FROM saga_nudges WHERE uid IN (SELECT uid FROM saga_nudges LIMIT $1 - (SELECT count(DISTINCT uid) FROM news) FOR UPDATE SKIP LOCKED) RETURNING uid)
		SELECT `+stateColumns+` FROM saga_state WHERE uid IN (SELECT uid FROM news UNION SELECT uid FROM nudges)`, max(limit, 0))
	if err != nil {
		return nil, Classified(fmt.Errorf("looking for sagas with new answers: %w", err))
	}
	all, err := pgx.CollectRows(rows, scanState)
	if err != nil {
		return nil, Classified(fmt.Errorf("looking for sagas with new answers: %w", err))
	}
	return all, nil
}
