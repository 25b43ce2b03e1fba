package idempotency

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
)

// Beginner begins transactions: *pgxpool.Pool, *pgx.Conn, or pgx.Tx, in which what it begins is a savepoint.
type Beginner interface {
	DB
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Refusal is an error of a handler: a definite no. What the handler has done is undone, and the response is stored like any other; one
// with a status of 4xx gets the header [HeaderOutcome].
type Refusal struct{ Response Response }

func (r *Refusal) Error() string { return fmt.Sprintf("refused with status %d", r.Response.Status) }

// Once carries a request out in a transaction, unless that was done before: then it returns the answer that was given, and true. What do writes through tx, the key and the answer are
// committed together; after an error, none of them is, and the request may come again. do must not end tx itself, and whatever it does outside of tx may happen more than once.
//
// It costs one statement: the key is put down with the answer, after the effect. A duplicate finds it there, and what it did itself is rolled back; of two at once the second waits for
// the first in that statement, or in whatever the effect locks before. That is why an error of do is believed only after a look whether the first has been there.
//
// It fails with ErrMismatch, with ErrInvalidKey, with an *InProgressError where a Store holds the key, and otherwise with do's error. Given a pgx.Tx, it works within that: the answer counts when it
// is committed. Any isolation level is safe; above READ COMMITTED a duplicate that has waited fails with SQLSTATE 40001, and gets its answer when it comes again.
func Once(ctx context.Context, db Beginner, key Key, of Fingerprint, do func(ctx context.Context, tx pgx.Tx) (Response, error)) (r Response, replayed bool, err error) {
	return NewPostgres(db, Options{}).Once(ctx, db, key, of, do)
}

// Once is the function of that name with the store's TTL, clock and quota. With
// [Options.RealmBytes], it also fails with [ErrQuota], and may cost two more statements.
func (p *Postgres) Once(ctx context.Context, db Beginner, key Key, of Fingerprint, do func(ctx context.Context, tx pgx.Tx) (Response, error)) (r Response, replayed bool, err error) {
	if err := key.Check(); err != nil {
		return r, false, fmt.Errorf("acting once for key %s: %w", key, err)
	}
	if err := p.checkQuota(ctx, db, key); err != nil {
		return r, false, fmt.Errorf("acting once for key %s: %w", key, err)
	}
	const rounds = 5
	for range rounds { // a key that is there may have expired, or been given back, before it is looked at
		r, err = p.attempt(ctx, db, key, of, do)
		if err == nil {
			return r, false, nil
		}
		if ctx.Err() == nil {
			before, wrong := p.look(ctx, db, key, of)
			if before != nil {
				return *before, true, nil
			}
			if errors.Is(wrong, ErrMismatch) || errors.Is(wrong, ErrInProgress) {
				return Response{}, false, fmt.Errorf("acting once for key %s: %w", key, wrong)
			}
		}
		if no := (*Refusal)(nil); errors.As(err, &no) {
			r, err = p.refuse(ctx, db, key, of, no.Response)
			if err == nil {
				return r, false, nil
			}
		}
		if !errors.Is(err, errTaken) {
			return Response{}, false, fmt.Errorf("acting once for key %s: %w", key, err)
		}
	}
	return Response{}, false, fmt.Errorf("acting once for key %s: %w", key, &InProgressError{RetryAfter: time.Second})
}

// errTaken says that somebody else has put the key down.
var errTaken = errors.New("the key is there already")

// undoTimeout bounds how long a transaction is undone whose context may be over already.
const undoTimeout = 5 * time.Second

// attempt carries the request out and puts the key down with the answer.
func (p *Postgres) attempt(ctx context.Context, db Beginner, key Key, of Fingerprint, do func(ctx context.Context, tx pgx.Tx) (Response, error)) (Response, error) {
	tx, err := db.Begin(ctx)
	if err != nil {
		return Response{}, fmt.Errorf("beginning a transaction: %w", err)
	}
	defer func() { // nothing is left to undo after the commit
		undoing, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		_ = tx.Rollback(undoing)
	}()
	r, err := do(ctx, tx)
	if err != nil {
		return r, err
	}
	if err := p.put(ctx, tx, key, of, r, "completed"); err != nil {
		return r, err
	}
	if err := tx.Commit(ctx); err != nil {
		return r, fmt.Errorf("committing: %w", err)
	}
	return r, nil
}

// refuse stores a definite no, after what was done has been undone. The response vouches for itself if its status is a no.
func (p *Postgres) refuse(ctx context.Context, db Beginner, key Key, of Fingerprint, r Response) (Response, error) {
	if r.Status >= http.StatusBadRequest && r.Status < http.StatusInternalServerError {
		r.Header = r.Header.Clone()
		if r.Header == nil {
			r.Header = http.Header{}
		}
		r.Header.Set(HeaderOutcome, OutcomeRejected)
	}
	return r, p.put(ctx, db, key, of, r, "failed")
}

// put puts a key down with its answer; errTaken where it is there.
func (p *Postgres) put(ctx context.Context, db DB, key Key, of Fingerprint, r Response, state string) error {
	header, err := encode(r)
	if err != nil {
		return err
	}
	tag, err := db.Exec(ctx, `INSERT INTO idempotency_keys AS k (realm, key, fingerprint, state, status, header, body, created_at, expires_at)
		VALUES ($2, $3, $4, $5, $6, $7, $8, `+nowSQL+`, `+nowSQL+` + $9::interval)
		ON CONFLICT (realm, key) DO UPDATE SET fingerprint = excluded.fingerprint, state = excluded.state, fence = excluded.fence, lease_until = NULL,
			status = excluded.status, header = excluded.header, body = excluded.body, created_at = excluded.created_at, expires_at = excluded.expires_at
		WHERE k.expires_at <= `+nowSQL+` OR k.state = 'started' AND k.lease_until <= `+nowSQL+` AND k.fingerprint = excluded.fingerprint`,
		p.now(), key.Realm, key.Key, of[:], state, r.Status, header, r.Body, p.TTL)
	if err != nil {
		return explain(err)
	}
	if tag.RowsAffected() == 0 {
		return errTaken
	}
	p.quotas.add(key.Realm, rowBytes+int64(len(r.Body))) // also if db rolls back; it is counted again
	return nil
}
