package participant

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// The barrier is one row for each effect. Action and compensation both begin by writing it, so one of them waits for the other, and the second finds what the first has left. A compensation that
// finds nothing leaves a tombstone, which an action that was on its way for longer than its compensation runs into. Empty and hanging compensations are known problems of sagas over
// unreliable networks; the barrier is their usual answer.

// Effect names what an action does and its compensation undoes, by something that both know, such as "charge 1042".
type Effect struct{ Realm, Name string }

// String implements fmt.Stringer.
func (e Effect) String() string {
	if e.Realm == "" {
		return fmt.Sprintf("%.80q", e.Name)
	}
	return fmt.Sprintf("%.80q of %.80q", e.Name, e.Realm)
}

// Turn is what an action finds at the barrier.
type Turn int

// The turns.
const (
	// Proceed: it is the first, and nothing has been undone. Do it.
	Proceed Turn = iota + 1
	// Repeated: it was done before.
	Repeated
	// Undone: its compensation was here before it. It must never be done.
	Undone
)

// Tx is a transaction of pgx, or anything else that speaks for one.
type Tx interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Act is how an action enters the barrier, within the transaction that does it. Only after Proceed it is to be done. It waits for another action or compensation of the effect whose
// transaction is open. Whoever uses it alone keeps the answers of keys by other means, for as long as a saga may ask again; those of Service are kept with the barrier.
func Act(ctx context.Context, tx Tx, e Effect) (Turn, error) {
	turn, _, err := enter(ctx, tx, e, nil)
	return turn, err
}

// enter is Act for the request with a key. Where the effect was done by a request with the same key, it returns what that was answered with.
func enter(ctx context.Context, tx Tx, e Effect, key *string) (Turn, *idempotency.Response, error) {
	var state string
	var first bool
	var status *int
	var body []byte
	err := tx.QueryRow(ctx, `INSERT INTO saga_barriers AS b (realm, effect, state, key) VALUES ($1, $2, 'done', $3)
		ON CONFLICT (realm, effect) DO UPDATE SET state = b.state
		RETURNING state, xmax = 0, CASE WHEN key = $3 THEN status END, CASE WHEN key = $3 THEN body END`, e.Realm, e.Name, key).Scan(&state, &first, &status, &body)
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("entering the barrier of effect %s: %w", e, explain(err))
	case first:
		return Proceed, nil, nil
	case state != "done":
		return Undone, nil, nil
	case status != nil:
		before := response(*status, body)
		return Repeated, &before, nil
	default:
		return Repeated, nil, nil
	}
}

// keep keeps with the barrier what an action was answered with. The key itself is kept for a day; a saga may ask for a month.
func keep(ctx context.Context, tx Tx, e Effect, a idempotency.Response) error {
	_, err := tx.Exec(ctx, `UPDATE saga_barriers SET status = $3, body = $4 WHERE realm = $1 AND effect = $2 AND state = 'done'`, e.Realm, e.Name, a.Status, a.Body)
	if err != nil {
		return fmt.Errorf("keeping the answer of effect %s: %w", e, explain(err))
	}
	return nil
}

// Undo is how a compensation enters the barrier, within the transaction that undoes. It reports whether there is something to undo; there never will be again, and an action that comes
// later finds Undone. It waits as Act does.
func Undo(ctx context.Context, tx Tx, e Effect) (bool, error) {
	var first bool
	err := tx.QueryRow(ctx, `INSERT INTO saga_barriers AS b (realm, effect, state) VALUES ($1, $2, 'undone')
		ON CONFLICT (realm, effect) DO UPDATE SET state = 'undone', at = now(), status = NULL, body = NULL WHERE b.state = 'done' RETURNING xmax = 0`, e.Realm, e.Name).Scan(&first)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // it was undone before
		return false, nil
	case err != nil:
		return false, fmt.Errorf("entering the barrier of effect %s: %w", e, explain(err))
	default:
		return !first, nil
	}
}
