package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Schema makes the table of the keys in the first schema of the search path, and does nothing where it is. It may be run at every start, by several processes at once, as one call of
// Exec without arguments, or be copied into a migration.
const Schema = `SELECT pg_advisory_xact_lock(hashtextextended('idempotency_keys', 0));
-- Fencing numbers come from one sequence, so that a key that was given back, or has expired, goes on with greater ones.
CREATE SEQUENCE IF NOT EXISTS idempotency_fences;
CREATE TABLE IF NOT EXISTS idempotency_keys (
    realm       text        NOT NULL,
    key         text        NOT NULL,
    fingerprint bytea       NOT NULL,
    state       text        NOT NULL CHECK (state IN ('started', 'completed', 'failed')),
    fence       bigint      NOT NULL DEFAULT nextval('idempotency_fences'),
    lease_until timestamptz,
    status      integer,
    header      json,
    body        bytea,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (realm, key)
);
CREATE INDEX IF NOT EXISTS idempotency_keys_expires_at ON idempotency_keys (expires_at);
`

// DB is a pool, a connection or a transaction of pgx.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Postgres is a store in PostgreSQL, in the table that Schema makes. Claiming a key, and keeping its answer, are one statement each.
type Postgres struct {
	Options
	db     DB
	quotas quotas
}

var _ Store = (*Postgres)(nil)

// NewPostgres returns a store. db should be a pool: what is stored is to stay although the effect's own transaction is rolled back. Within a transaction use Once.
func NewPostgres(db DB, o Options) *Postgres { return &Postgres{Options: o.withDefaults(), db: db} }

// now is the time that the database is told; nil has it look at its own clock.
func (p *Postgres) now() *time.Time {
	if p.Clock == nil {
		return nil
	}
	t := p.Clock()
	return &t
}

// The time of a statement. That of its transaction may be long gone.
const nowSQL = `coalesce($1::timestamptz, statement_timestamp())`

const claimSQL = `INSERT INTO idempotency_keys AS k (realm, key, fingerprint, state, lease_until, created_at, expires_at)
	VALUES ($2, $3, $4, 'started', ` + nowSQL + ` + $5::interval, ` + nowSQL + `, ` + nowSQL + ` + $6::interval)
	ON CONFLICT (realm, key) DO UPDATE SET fingerprint = excluded.fingerprint, state = 'started', fence = excluded.fence, lease_until = excluded.lease_until,
		status = NULL, header = NULL, body = NULL, created_at = excluded.created_at, expires_at = excluded.expires_at
	WHERE k.expires_at <= ` + nowSQL + ` OR k.state = 'started' AND k.lease_until <= ` + nowSQL + ` AND k.fingerprint = excluded.fingerprint
	RETURNING fence, lease_until, xmax = 0` // of a row that is there already, xmax is this transaction

// Begin implements Store.
func (p *Postgres) Begin(ctx context.Context, key Key, of Fingerprint) (Begun, error) {
	if err := key.Check(); err != nil {
		return Begun{}, fmt.Errorf("claiming key %s: %w", key, err)
	}
	if err := p.checkQuota(ctx, p.db, key); err != nil {
		return Begun{}, fmt.Errorf("claiming key %s: %w", key, err)
	}
	const rounds = 10
	for range rounds { // a key that is there may be gone before it is looked at
		c := Claim{Key: key}
		err := p.db.QueryRow(ctx, claimSQL, p.now(), key.Realm, key.Key, of[:], p.Lease, p.TTL).Scan(&c.Fence, &c.LeaseUntil, &c.First)
		if err == nil {
			return Begun{Claim: &c}, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return Begun{}, fmt.Errorf("claiming key %s: %w", key, explain(err))
		}
		r, err := p.look(ctx, p.db, key, of)
		if r != nil || err != nil {
			return Begun{Response: r}, err
		}
	}
	return Begun{}, fmt.Errorf("claiming key %s: %w", key, &InProgressError{RetryAfter: time.Second})
}

// look returns what was answered under a key before, or why there is no answer; neither where the key is free.
func (p *Postgres) look(ctx context.Context, db DB, key Key, of Fingerprint) (*Response, error) {
	var fingerprint, header []byte
	var state string
	var status *int
	var left *time.Duration
	var r Response
	err := db.QueryRow(ctx, `SELECT fingerprint, state, lease_until - `+nowSQL+`, status, header, body FROM idempotency_keys
		WHERE realm = $2 AND key = $3 AND expires_at > `+nowSQL, p.now(), key.Realm, key.Key).Scan(&fingerprint, &state, &left, &status, &header, &r.Body)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking key %s up: %w", key, explain(err))
	case Fingerprint(fingerprint) != of:
		return nil, fmt.Errorf("looking key %s up: %w", key, ErrMismatch)
	case state == "started":
		if left == nil || *left <= 0 {
			return nil, nil
		}
		return nil, fmt.Errorf("looking key %s up: %w", key, &InProgressError{RetryAfter: *left})
	}
	if status != nil {
		r.Status = *status
	}
	if len(header) > 0 {
		if err := json.Unmarshal(header, &r.Header); err != nil {
			return nil, fmt.Errorf("looking key %s up: the headers of its answer are damaged: %w", key, err)
		}
	}
	return &r, nil
}

// Complete implements Store.
func (p *Postgres) Complete(ctx context.Context, c Claim, r Response) error {
	return p.end(ctx, c, r, "completed")
}

// Fail implements Store.
func (p *Postgres) Fail(ctx context.Context, c Claim, r Response) error {
	return p.end(ctx, c, r, "failed")
}

func (p *Postgres) end(ctx context.Context, c Claim, r Response, state string) error {
	header, err := encode(r)
	if err != nil {
		return fmt.Errorf("keeping the answer of key %s: %w", c.Key, err)
	}
	tag, err := p.db.Exec(ctx, `UPDATE idempotency_keys SET state = $5, status = $6, header = $7, body = $8, lease_until = NULL, expires_at = `+nowSQL+` + $9::interval
		WHERE realm = $2 AND key = $3 AND fence = $4 AND state = 'started'`, p.now(), c.Key.Realm, c.Key.Key, c.Fence, state, r.Status, header, r.Body, p.TTL)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("keeping the answer of key %s: %w", c.Key, explain(err))
	}
	p.quotas.add(c.Key.Realm, rowBytes+int64(len(r.Body)))
	return nil
}

// encode checks an answer and returns its headers as they are kept.
func encode(r Response) ([]byte, error) {
	if err := checkResponse(r); err != nil {
		return nil, err
	}
	if len(r.Header) == 0 {
		return nil, nil
	}
	return json.Marshal(r.Header)
}

// Release implements Store.
func (p *Postgres) Release(ctx context.Context, c Claim) error {
	tag, err := p.db.Exec(ctx, `DELETE FROM idempotency_keys WHERE realm = $1 AND key = $2 AND fence = $3 AND state = 'started'`, c.Key.Realm, c.Key.Key, c.Fence)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("giving key %s back: %w", c.Key, explain(err))
	}
	return nil
}

// Abandon implements Store.
func (p *Postgres) Abandon(ctx context.Context, c Claim) error {
	tag, err := p.db.Exec(ctx, `UPDATE idempotency_keys SET lease_until = `+nowSQL+` WHERE realm = $2 AND key = $3 AND fence = $4 AND state = 'started'`,
		p.now(), c.Key.Realm, c.Key.Key, c.Fence)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("abandoning key %s: %w", c.Key, explain(err))
	}
	return nil
}

// Sweep implements Store. Several processes may sweep at once.
func (p *Postgres) Sweep(ctx context.Context, limit int) (int, error) {
	tag, err := p.db.Exec(ctx, `DELETE FROM idempotency_keys WHERE (realm, key) IN (
		SELECT realm, key FROM idempotency_keys WHERE expires_at <= `+nowSQL+` ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)`, p.now(), max(limit, 0))
	if err != nil {
		return 0, fmt.Errorf("sweeping keys: %w", explain(err))
	}
	return int(tag.RowsAffected()), nil
}

// explain says what to do about an error of PostgreSQL's that the caller can do something about.
func explain(err error) error {
	const undefinedTable = "42P01"
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) && e.Code == undefinedTable {
		return fmt.Errorf("%w; run idempotency.Schema first, and mind the search path", err)
	}
	return err
}
