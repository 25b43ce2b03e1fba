// Package participant is for Go services on PostgreSQL that take part in sagas: what the operator calls to have a step done, or undone. It keeps the promises that the operator relies on:
//
//   - A request that comes again, under the same Idempotency-Key, is answered as before and does nothing.
//   - An effect, its key and its answer are committed together, so a crash leaves all of them or none.
//   - An undo that comes before its action is remembered, and the late action does nothing: the barrier.
//   - Undoing nothing is a success.
//   - Work that takes long is accepted and written down, and its outcome is told at the Saga-Callback until somebody has taken it.
//
// A Service makes handlers of functions that do the work in a transaction:
//
//	s := participant.New(pool, participant.Options{})
//	mux.Handle("POST /charges", s.Action(func(r *participant.Request) (participant.Intent, error) {
//		var in struct{ Order string; Cents int64 }
//		if err := r.Decode(&in); err != nil {
//			return participant.Intent{}, err
//		}
//		return participant.Intent{Effect: "charge " + in.Order, Do: func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
//			…
//		}}, nil
//	}))
//	mux.Handle("DELETE /charges/{order}", s.Compensation(…)) // with the same Effect
//
// The parts are there for themselves, too: Act and Undo are the barrier, idempotency.Once the key.
package participant

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// Schema makes the tables of this package, and that of idempotency keys, in the first schema of the search path, and does nothing where they are. It may be run at every start, by several
// processes at once, as one call of Exec without arguments, or be copied into a migration.
const Schema = idempotency.Schema + `
-- Which effects have been done, by which key and with which answer, and which must not be any more.
CREATE TABLE IF NOT EXISTS saga_barriers (
    realm  text        NOT NULL,
    effect text        NOT NULL,
    state  text        NOT NULL CHECK (state IN ('done', 'undone')),
    at     timestamptz NOT NULL DEFAULT now(),
    key    text,
    status integer,
    body   bytea,
    PRIMARY KEY (realm, effect)
);
-- Looked for first: who alters a table waits for everybody who works with it, and has everybody wait, also where there is nothing to do.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'saga_barriers'::regclass AND attname = 'body') THEN
        ALTER TABLE saga_barriers ADD COLUMN IF NOT EXISTS key text, ADD COLUMN IF NOT EXISTS status integer, ADD COLUMN IF NOT EXISTS body bytea;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_index JOIN pg_class i ON i.oid = indexrelid WHERE indrelid = 'saga_barriers'::regclass AND relname = 'saga_barriers_at') THEN
        CREATE INDEX saga_barriers_at ON saga_barriers (at);
    END IF;
END $$;
-- Work that was accepted, and where its outcome is told.
CREATE TABLE IF NOT EXISTS saga_work (
    realm       text        NOT NULL,
    key         text        NOT NULL,
    effect      text        NOT NULL,
    callback    text        NOT NULL,
    data        json,
    accepted_at timestamptz NOT NULL DEFAULT now(),
    outcome     json,
    attempts    integer     NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now(),
    ended       text CHECK (ended IN ('told', 'refused', 'withdrawn')),
    PRIMARY KEY (realm, key)
);
CREATE INDEX IF NOT EXISTS saga_work_effect ON saga_work (realm, effect);
CREATE INDEX IF NOT EXISTS saga_work_due ON saga_work (due_at) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS saga_work_ended ON saga_work (due_at) WHERE ended IS NOT NULL;
`

// DB is a pool, a connection or a transaction of pgx.
type DB interface {
	idempotency.Beginner
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Options are those of a Service. The zero value is usable.
type Options struct {
	// Realm tells on whose behalf a request comes, where several tenants share the service; nil is one realm for all. Its error is answered with 401.
	Realm func(*http.Request) (string, error)
	// MaxBody is the largest body of a request, in bytes; 0 is 1 MiB.
	MaxBody int64
	// Timeout bounds the work for one request; 0 is 20 s. It should be shorter than the step's attemptTimeout.
	Timeout time.Duration
	// TTL is how long the answers of keys are kept; 0 is idempotency.DefaultTTL. Those of actions that name their Effect are kept longer, with the barrier. For one without it has to be longer
	// than the operator goes on trying.
	TTL time.Duration
	// Operators are the base URLs under which callbacks are posted, such as https://saga-operator-api.saga-system.svc; a request with another Saga-Callback is answered with 400. Where it is
	// empty any URL is called: then only the operator may be able to reach the service, or somebody has it call what they cannot reach themselves.
	Operators []string
	// Client posts callbacks; nil is one that follows no redirects and gives up after 10 s.
	Client *http.Client
	// Poll is how often work and callbacks are looked for that are due; 0 is 250 ms.
	Poll time.Duration
	// Logger is told of what goes wrong; nil is nobody.
	Logger *slog.Logger
}

// Service makes handlers for actions and compensations. It is safe for concurrent use.
type Service struct {
	Options
	db   DB
	keys *idempotency.Postgres
}

// New makes a service whose tables, made by Schema, are in the search path of the pool.
func New(pool DB, o Options) *Service {
	const (
		usualBody    = 1 << 20
		usualTimeout = 20 * time.Second
		usualPoll    = 250 * time.Millisecond
		callTimeout  = 10 * time.Second
	)
	if o.MaxBody <= 0 {
		o.MaxBody = usualBody
	}
	if o.Timeout <= 0 {
		o.Timeout = usualTimeout
	}
	if o.Poll <= 0 {
		o.Poll = usualPoll
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: callTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Service{Options: o, db: pool, keys: idempotency.NewPostgres(pool, idempotency.Options{TTL: o.TTL})}
}

// Refusal is a definite no: the effect has not happened, and will not under this key. Nothing that was done in its transaction stays; the answer does. That of a compensation does not stay
// either: whoever has mended the cause has it tried again under the same key.
type Refusal struct {
	// Status is a 4xx that the operator takes for a definite no: none of 408, 425 and 429.
	Status  int
	Message string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s (%d)", r.Message, r.Status) }

// Refuse makes a Refusal.
func Refuse(status int, format string, args ...any) error {
	return &Refusal{Status: status, Message: fmt.Sprintf(format, args...)}
}

// Delay says that nothing has happened, and that it should be tried again later. It is not kept.
type Delay struct {
	After   time.Duration
	Message string
}

func (d *Delay) Error() string { return fmt.Sprintf("%s; try again in %s", d.Message, d.After) }

// NotNow makes a Delay.
func NotNow(after time.Duration, format string, args ...any) error {
	return &Delay{After: after, Message: fmt.Sprintf(format, args...)}
}

// explain says what to do about an error of PostgreSQL's that the caller can do something about.
func explain(err error) error {
	const undefinedTable = "42P01"
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) && e.Code == undefinedTable {
		return fmt.Errorf("%w; run participant.Schema first, and mind the search path", err)
	}
	return err
}
