package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Archive implements eventstore.Store.
func (s *Store) Archive(ctx context.Context, stream string, expected int64) error {
	tag, err := s.pool.Exec(ctx, `UPDATE streams SET archived = true WHERE stream = $1 AND version = $2`, stream, expected)
	if err != nil {
		return Classified(fmt.Errorf("archiving stream %s: %w", stream, err))
	}
	if tag.RowsAffected() > 0 {
		return nil
	}
	actual, err := s.Version(ctx, stream)
	if err != nil {
		return err
	}
	if actual == 0 {
		return fmt.Errorf("archiving stream %s: %w", stream, eventstore.ErrNotFound)
	}
	return fmt.Errorf("archiving: %w", &eventstore.WrongVersionError{Stream: stream, Expected: expected, Actual: actual})
}

// RemoveFinished implements eventstore.Store.
func (s *Store) RemoveFinished(ctx context.Context, before time.Time, limit int) (int, error) {
	var removed int
	if err := s.pool.QueryRow(ctx, `SELECT remove_finished_sagas($1, $2)`, before, max(limit, 0)).Scan(&removed); err != nil {
		return 0, Classified(fmt.Errorf("removing the history of finished sagas: %w", err))
	}
	return removed, nil
}

// SaveSnapshot implements eventstore.Store.
func (s *Store) SaveSnapshot(ctx context.Context, snap eventstore.Snapshot) error {
	if err := snap.Validate(); err != nil {
		return err
	}
	sum := sha256.Sum256(snap.Data)
	_, err := s.pool.Exec(ctx, `INSERT INTO snapshots AS s (stream, version, schema_version, checksum, data) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (stream) DO UPDATE SET version = excluded.version, schema_version = excluded.schema_version, checksum = excluded.checksum,
			data = excluded.data, taken_at = now()
		WHERE (s.schema_version, s.version) < (excluded.schema_version, excluded.version)
			OR s.version > (SELECT version FROM streams WHERE stream = s.stream) -- of a stream that was restored to an earlier day`,
		snap.Stream, snap.Version, snap.SchemaVersion, sum[:], snap.Data)
	if err != nil {
		return Classified(fmt.Errorf("saving a snapshot of stream %s: %w", snap.Stream, err))
	}
	return nil
}

// LoadSnapshot implements eventstore.Store.
func (s *Store) LoadSnapshot(ctx context.Context, stream string) (eventstore.Snapshot, error) {
	snap, sum := eventstore.Snapshot{Stream: stream}, []byte(nil)
	err := s.pool.QueryRow(ctx, `SELECT version, schema_version, checksum, data FROM snapshots WHERE stream = $1`, stream).
		Scan(&snap.Version, &snap.SchemaVersion, &sum, (*[]byte)(&snap.Data))
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return eventstore.Snapshot{}, Classified(fmt.Errorf("loading the snapshot of stream %s: %w", stream, err))
	}
	if want := sha256.Sum256(snap.Data); err != nil || !bytes.Equal(sum, want[:]) || !json.Valid(snap.Data) {
		return eventstore.Snapshot{}, fmt.Errorf("loading the snapshot of stream %s: %w", stream, eventstore.ErrNotFound)
	}
	return snap, nil
}
