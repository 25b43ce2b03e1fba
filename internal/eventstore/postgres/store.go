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
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/postgres"
)

// eventIDConstraint is violated by an event that the store has already.
const eventIDConstraint = "event_store_event_id"

// Store implements eventstore.Store on a database that package migrations has brought up to date.
type Store struct {
	pool *pgxpool.Pool
}

var _ eventstore.Store = (*Store)(nil)

// New returns a store on a pool. The caller closes the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool} }

const appendSQL = `SELECT done, at_version FROM append_events($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20)`

// Append implements eventstore.Store.
func (s *Store) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if err := a.Validate(); err != nil {
		return eventstore.Appended{}, err
	}
	args, err := arguments(&a)
	if err != nil {
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, err)
	}
	var done bool
	var version int64
	if err := s.pool.QueryRow(ctx, appendSQL, args...).Scan(&done, &version); err != nil {
		return eventstore.Appended{}, appendError(&a, err)
	}
	if !done {
		return eventstore.Appended{}, &eventstore.WrongVersionError{Stream: a.Stream, Expected: a.Expected, Actual: version}
	}
	return eventstore.Appended{Version: version}, nil
}

func appendError(a *eventstore.Append, err error) error {
	if postgres.Constraint(err) == eventIDConstraint {
		return fmt.Errorf("appending to stream %s: %w: the store has one of these event ids already", a.Stream, eventstore.ErrInvalid)
	}
	return classified(fmt.Errorf("appending to stream %s: %w", a.Stream, err))
}

// arguments lays an append out as the arrays that the server-side function takes.
func arguments(a *eventstore.Append) ([]any, error) {
	n, m := len(a.Events), len(a.Messages)
	ids, types, schemas := make([]uuid.UUID, n), make([]string, n), make([]int32, n)
	data, metadata := make([]json.RawMessage, n), make([]json.RawMessage, n)
	for i, e := range a.Events {
		meta, err := json.Marshal(e.Metadata)
		if err != nil {
			return nil, fmt.Errorf("encoding the metadata of event %d: %w", i+1, err)
		}
		ids[i], types[i], schemas[i], data[i], metadata[i] = e.ID, e.Type, int32(e.SchemaVersion), e.Data, meta
	}
	mIDs, mTypes, mKeys, mDestinations := make([]uuid.UUID, m), make([]string, m), make([]string, m), make([]string, m)
	mData, mMetadata := make([]json.RawMessage, m), make([]json.RawMessage, m)
	for i, msg := range a.Messages {
		meta, err := json.Marshal(msg.Metadata)
		if err != nil {
			return nil, fmt.Errorf("encoding the metadata of message %d: %w", i+1, err)
		}
		mIDs[i], mTypes[i], mKeys[i], mDestinations[i], mData[i], mMetadata[i] = msg.ID, msg.Type, msg.Key, msg.Destination, msg.Data, meta
	}
	args := []any{a.Stream, a.Expected, ids, types, schemas, data, metadata}
	if st := a.State; st != nil {
		args = append(args, st.UID, st.Namespace, st.Name, st.Phase, st.Finished, orNull(st.WakeAt), st.State)
	} else {
		args = append(args, nil, nil, nil, nil, nil, nil, nil)
	}
	return append(args, mIDs, mTypes, mKeys, mDestinations, mData, mMetadata), nil
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Load implements eventstore.Store.
func (s *Store) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	rows, err := s.pool.Query(ctx, `SELECT version, position, event_id, type, schema_version, data, metadata, recorded_at
		FROM event_store WHERE stream = $1 AND version >= $2 ORDER BY version LIMIT $3`, stream, from, max(limit, 0))
	if err != nil {
		return nil, classified(fmt.Errorf("loading stream %s: %w", stream, err))
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (eventstore.Recorded, error) {
		e := eventstore.Recorded{Stream: stream}
		var metadata []byte
		if err := row.Scan(&e.Version, &e.Position, &e.ID, &e.Type, &e.SchemaVersion, (*[]byte)(&e.Data), &metadata, &e.RecordedAt); err != nil {
			return e, err
		}
		e.RecordedAt = e.RecordedAt.UTC()
		return e, json.Unmarshal(metadata, &e.Metadata)
	})
	if err != nil {
		return nil, classified(fmt.Errorf("loading stream %s: %w", stream, err))
	}
	return events, nil
}

// Version implements eventstore.Store.
func (s *Store) Version(ctx context.Context, stream string) (int64, error) {
	var version int64
	err := s.pool.QueryRow(ctx, `SELECT version FROM streams WHERE stream = $1`, stream).Scan(&version)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, classified(fmt.Errorf("reading the version of stream %s: %w", stream, err))
	}
	return version, nil
}

const stateColumns = `uid, namespace, name, phase, finished, version, wake_at, state`

// UnfinishedSagas implements eventstore.Store.
func (s *Store) UnfinishedSagas(ctx context.Context, after uuid.UUID, limit int) ([]eventstore.SagaState, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+stateColumns+` FROM saga_state WHERE NOT finished AND uid > $1 ORDER BY uid LIMIT $2`, after, max(limit, 0))
	if err != nil {
		return nil, classified(fmt.Errorf("listing unfinished sagas: %w", err))
	}
	states, err := pgx.CollectRows(rows, scanState)
	if err != nil {
		return nil, classified(fmt.Errorf("listing unfinished sagas: %w", err))
	}
	return states, nil
}

// SagaState implements eventstore.Store.
func (s *Store) SagaState(ctx context.Context, uid uuid.UUID) (eventstore.SagaState, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+stateColumns+` FROM saga_state WHERE uid = $1`, uid)
	if err != nil {
		return eventstore.SagaState{}, classified(fmt.Errorf("reading the state of saga %s: %w", uid, err))
	}
	state, err := pgx.CollectExactlyOneRow(rows, scanState)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return eventstore.SagaState{}, fmt.Errorf("reading the state of saga %s: %w", uid, eventstore.ErrNotFound)
	case err != nil:
		return eventstore.SagaState{}, classified(fmt.Errorf("reading the state of saga %s: %w", uid, err))
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
	rows, err := s.pool.Query(ctx, `SELECT position, message_id, type, key, destination, data, metadata
		FROM outbox_events WHERE position > $1 ORDER BY position LIMIT $2`, after, max(limit, 0))
	if err != nil {
		return nil, classified(fmt.Errorf("reading the outbox: %w", err))
	}
	messages, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (eventstore.RecordedMessage, error) {
		var m eventstore.RecordedMessage
		var metadata []byte
		if err := row.Scan(&m.Position, &m.ID, &m.Type, &m.Key, &m.Destination, (*[]byte)(&m.Data), &metadata); err != nil {
			return m, err
		}
		return m, json.Unmarshal(metadata, &m.Metadata)
	})
	if err != nil {
		return nil, classified(fmt.Errorf("reading the outbox: %w", err))
	}
	return messages, nil
}

// Ping implements eventstore.Store. A server that has become a read-only standby answers, but is of no use.
func (s *Store) Ping(ctx context.Context) error {
	var standby bool
	if err := s.pool.QueryRow(ctx, `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean`).Scan(&standby); err != nil {
		return classified(fmt.Errorf("asking the event store: %w", err))
	}
	if standby {
		return fmt.Errorf("asking the event store: %w: the server is read-only, after a failover perhaps", eventstore.ErrUnavailable)
	}
	return nil
}

// classified makes errors that pass by themselves an ErrUnavailable. A deadlock or a serialization failure is one: nothing was written, and trying again
// helps. A violated constraint is not: the row that is in the way stays, for instance that of an event whose stream has lost its row.
func classified(err error) error {
	class := postgres.Classify(err)
	if class == postgres.Unavailable || class == postgres.Conflict && postgres.Constraint(err) == "" {
		return fmt.Errorf("%w: %w", eventstore.ErrUnavailable, err)
	}
	return err
}
