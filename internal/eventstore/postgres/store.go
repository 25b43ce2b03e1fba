// Package postgres keeps streams in PostgreSQL. An append is one call of a server-side function, and so one round trip and one transaction.
package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/postgres"
)

// eventIDConstraint is violated by an event that the store has already.
const eventIDConstraint = "event_store_event_id"

// Store implements eventstore.Store on a database that package migrations has brought up to date.
type Store struct {
	pool database
	// committed is called after each commit that appended something.
	committed func()
}

var _ eventstore.Store = (*Store)(nil)

// database is a pool or a transaction.
type database interface {
	Querier
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Within returns a store whose reads and appends are a part of the caller's transaction, of READ COMMITTED: they are committed with the rest of it, or not at all. A
// wrong version leaves the transaction usable; after other errors it can only be rolled back.
func Within(tx pgx.Tx) *Store { return &Store{pool: tx, committed: func() {}} }

// Option changes how a store works.
type Option func(*Store)

// OnCommit has a function called after every commit that may have appended something: it wakes whoever follows the events. It must not block.
func OnCommit(f func()) Option { return func(s *Store) { s.committed = f } }

// New returns a store on a pool. The caller closes the pool.
func New(pool *pgxpool.Pool, options ...Option) *Store {
	s := &Store{pool: pool, committed: func() {}}
	for _, o := range options {
		o(s)
	}
	return s
}

// Append implements eventstore.Store.
func (s *Store) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if err := a.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	c, err := newCall(&a)
	if err != nil {
		return eventstore.Appended{}, err
	}
	defer c.close()
	r, err := c.runAlone(ctx, s.pool)
	if err != nil {
		return eventstore.Appended{}, appendError(a.Stream, err)
	}
	s.committed()
	return r.done, r.err
}

// AppendAll implements eventstore.Store.
func (s *Store) AppendAll(ctx context.Context, all []eventstore.Append) ([]eventstore.Appended, error) {
	done, err := AppendAll(ctx, s.pool, all)
	if err == nil {
		s.committed()
	}
	return done, err
}

// Load implements eventstore.Store.
func (s *Store) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	return Load(ctx, s.pool, stream, from, limit)
}

// LoadBackwards implements eventstore.Store.
func (s *Store) LoadBackwards(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	return load(ctx, s.pool, stream, `version <= $2 ORDER BY version DESC`, from, limit)
}

// Load reads as Store.Load does, on a pool or within a transaction.
func Load(ctx context.Context, q Querier, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	return load(ctx, q, stream, `version >= $2 ORDER BY version`, from, limit)
}

func load(ctx context.Context, q Querier, stream, which string, from int64, limit int) ([]eventstore.Recorded, error) {
	rows, err := q.Query(ctx, `SELECT `+eventColumns+` FROM event_store WHERE stream = $1 AND `+which+` LIMIT $3`, stream, from, max(limit, 0))
	if err != nil {
		return nil, Classified(fmt.Errorf("loading stream %s: %w", stream, err))
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (eventstore.Recorded, error) {
		var e eventstore.Recorded
		var metadata []byte
		if err := row.Scan(&e.Stream, &e.Version, &e.Position, &e.ID, &e.Type, &e.SchemaVersion, (*[]byte)(&e.Data), &metadata, &e.RecordedAt); err != nil {
			return e, err
		}
		e.RecordedAt = e.RecordedAt.UTC()
		return e, json.Unmarshal(metadata, &e.Metadata)
	})
	if err != nil {
		return nil, Classified(fmt.Errorf("loading stream %s: %w", stream, err))
	}
	return events, nil
}

// Version implements eventstore.Store.
func (s *Store) Version(ctx context.Context, stream string) (int64, error) {
	var version int64
	err := s.pool.QueryRow(ctx, `SELECT version FROM streams WHERE stream = $1`, stream).Scan(&version)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, Classified(fmt.Errorf("reading the version of stream %s: %w", stream, err))
	}
	return version, nil
}

const stateColumns = `uid, namespace, name, phase, finished, version, wake_at, state`

// UnfinishedSagas implements eventstore.Store.
func (s *Store) UnfinishedSagas(ctx context.Context, after uuid.UUID, limit int) ([]eventstore.SagaState, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+stateColumns+` FROM saga_state WHERE NOT finished AND uid > $1 ORDER BY uid LIMIT $2`, after, max(limit, 0))
	if err != nil {
		return nil, Classified(fmt.Errorf("listing unfinished sagas: %w", err))
	}
	states, err := pgx.CollectRows(rows, scanState)
	if err != nil {
		return nil, Classified(fmt.Errorf("listing unfinished sagas: %w", err))
	}
	return states, nil
}

// SagaState implements eventstore.Store.
func (s *Store) SagaState(ctx context.Context, uid uuid.UUID) (eventstore.SagaState, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+stateColumns+` FROM saga_state WHERE uid = $1`, uid)
	if err != nil {
		return eventstore.SagaState{}, Classified(fmt.Errorf("reading the state of saga %s: %w", uid, err))
	}
	state, err := pgx.CollectExactlyOneRow(rows, scanState)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return eventstore.SagaState{}, fmt.Errorf("reading the state of saga %s: %w", uid, eventstore.ErrNotFound)
	case err != nil:
		return eventstore.SagaState{}, Classified(fmt.Errorf("reading the state of saga %s: %w", uid, err))
	}
	return state, nil
}

func scanState(row pgx.CollectableRow) (eventstore.SagaState, error) {
	var st eventstore.SagaState
	var wake *time.Time
	err := row.Scan(&st.UID, &st.Namespace, &st.Name, &st.Phase, &st.Finished, &st.Version, &wake, (*[]byte)(&st.State))
	if wake != nil {
		st.WakeAt = wake.UTC()
	}
	return st, err
}

// Messages implements eventstore.Store.
func (s *Store) Messages(ctx context.Context, after int64, limit int) ([]eventstore.RecordedMessage, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+messageColumns+`
		FROM outbox_events WHERE position > $1 ORDER BY position LIMIT $2`, after, max(limit, 0))
	if err != nil {
		return nil, Classified(fmt.Errorf("reading the outbox: %w", err))
	}
	messages, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (eventstore.RecordedMessage, error) {
		var m eventstore.RecordedMessage
		var metadata []byte
		if err := row.Scan(&m.Position, &m.ID, &m.Type, &m.Key, &m.Destination, (*[]byte)(&m.Data), &metadata, &m.RecordedAt); err != nil {
			return m, err
		}
		m.RecordedAt = m.RecordedAt.UTC()
		return m, DecodeEnvelope(metadata, &m.Message)
	})
	if err != nil {
		return nil, Classified(fmt.Errorf("reading the outbox: %w", err))
	}
	return messages, nil
}

// Ping implements eventstore.Store. A server that has become a read-only standby answers, but is of no use.
func (s *Store) Ping(ctx context.Context) error {
	var standby bool
	if err := s.pool.QueryRow(ctx, `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean`).Scan(&standby); err != nil {
		return Classified(fmt.Errorf("asking the event store: %w", err))
	}
	if standby {
		return fmt.Errorf("asking the event store: %w: the server is read-only, after a failover perhaps", eventstore.ErrUnavailable)
	}
	return nil
}

// Classified makes errors that pass by themselves an ErrUnavailable. A deadlock or a serialization failure is one: nothing was written, and trying again
// helps. A violated constraint is not: the row that is in the way stays, for instance that of an event whose stream has lost its row.
func Classified(err error) error {
	class := postgres.Classify(err)
	if class == postgres.Unavailable || class == postgres.Conflict && postgres.Constraint(err) == "" {
		return fmt.Errorf("%w: %w", eventstore.ErrUnavailable, err)
	}
	return err
}
