package projection

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// What a generation is.
const (
	statusBuilding = "building"
	statusLive     = "live"
	statusRetired  = "retired"
)

// Failure is the event at which a projection has stopped, and why.
type Failure struct {
	EventID  uuid.UUID `json:"eventId"`
	Stream   string    `json:"stream"`
	Version  int64     `json:"version"`
	Position int64     `json:"position"`
	Type     string    `json:"type"`
	// RecordedAt is when the event was appended.
	RecordedAt time.Time `json:"recordedAt,omitzero"`
	Error      string    `json:"error"`
	At         time.Time `json:"at"`
}

func (f *Failure) String() string {
	return fmt.Sprintf("event %s (%s, version %d of stream %s): %s", f.EventID, f.Type, f.Version, f.Stream, f.Error)
}

// State is where one generation of a projection stands.
type State struct {
	Name       string
	Generation int
	Version    int
	Status     string
	// Inline generations move with the appends themselves; they have no checkpoint.
	Inline     bool
	Checkpoint eventstore.Checkpoint
	// Handled counts events; Behind is how many positions there were left to read at the last commit, or, of one that has stopped, when its owner last looked.
	Handled, Behind int64
	// ReadUntil is when the last event that was handled had been recorded.
	ReadUntil  time.Time
	Owner      string
	LeaseEpoch int64
	LeaseUntil time.Time
	// Failure is nil while the projection can go on.
	Failure *Failure
}

const stateColumns = `name, generation, version, status, inline, epoch, done::text, floor, until_epoch, until::text, until_floor, position,
	handled, behind, read_until, owner, lease_epoch,
	CASE WHEN isfinite(lease_until) THEN lease_until END, failure`

// database is a pool or a transaction.
type database interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func scanState(row pgx.CollectableRow) (State, error) {
	var s State
	var done string
	var epoch int32
	var untilEpoch *int32
	var until *string
	var readUntil *time.Time
	var leaseUntil *time.Time // null where infinite
	var failure []byte
	c := &s.Checkpoint
	err := row.Scan(&s.Name, &s.Generation, &s.Version, &s.Status, &s.Inline, &epoch, &done, &c.Floor, &untilEpoch, &until, &c.UntilFloor, &c.Position,
		&s.Handled, &s.Behind, &readUntil, &s.Owner, &s.LeaseEpoch, &leaseUntil, &failure)
	if err != nil {
		return s, err
	}
	if readUntil != nil {
		s.ReadUntil = readUntil.UTC()
	}
	if leaseUntil != nil {
		s.LeaseUntil = leaseUntil.UTC()
	}
	if c.Done, err = eventstore.ParseView(epoch, done); err != nil {
		return s, err
	}
	if until != nil && untilEpoch != nil {
		view, err := eventstore.ParseView(*untilEpoch, *until)
		if err != nil {
			return s, err
		}
		c.Until = &view
	}
	if len(failure) > 0 {
		s.Failure = &Failure{}
		err = json.Unmarshal(failure, s.Failure)
	}
	return s, err
}

// generations returns those of a projection that are in use.
func generations(ctx context.Context, db database, name string) ([]State, error) {
	rows, err := db.Query(ctx, `SELECT `+stateColumns+` FROM projections WHERE name = $1 AND status <> 'retired' ORDER BY generation`, name)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanState)
}

// acquire takes the lease of a generation, when it is free or has run out. False says that somebody else has it.
func acquire(ctx context.Context, db database, name string, generation int, owner string, ttl time.Duration) (State, bool, error) {
	rows, err := db.Query(ctx, `UPDATE projections SET owner = $3, lease_epoch = lease_epoch + 1, lease_until = now() + $4::interval
		WHERE name = $1 AND generation = $2 AND status <> 'retired' AND lease_until < now() RETURNING `+stateColumns, name, generation, owner, ttl)
	if err != nil {
		return State{}, false, err
	}
	s, err := pgx.CollectExactlyOneRow(rows, scanState)
	if errors.Is(err, pgx.ErrNoRows) {
		return State{}, false, nil
	}
	return s, err == nil, err
}

// errStale says that the lease is somebody else's now, or that the generation has been retired. Whatever the old owner had begun is rolled back.
var errStale = errors.New("the lease of the projection is lost")

// owned is the condition under which the holder of a lease may write: nobody has taken it since.
const owned = `name = $1 AND generation = $2 AND lease_epoch = $3 AND status <> 'retired'`

// save puts a checkpoint down and renews the lease, if it is still held. Within a transaction it makes the rest of it conditional on that too.
func save(ctx context.Context, db database, s *State, ttl time.Duration) error {
	c := s.Checkpoint
	var untilEpoch *int32
	var until *string
	if c.Until != nil {
		text := c.Until.Snapshot()
		untilEpoch, until = &c.Until.Epoch, &text
	}
	var readUntil *time.Time
	if !s.ReadUntil.IsZero() {
		readUntil = &s.ReadUntil
	}
	tag, err := db.Exec(ctx, `UPDATE projections SET epoch = $4, done = $5::text::pg_snapshot, floor = $6, until_epoch = $7, until = $8::text::pg_snapshot, until_floor = $9,
		position = $10, handled = $11, behind = $12, read_until = $13, lease_until = now() + $14::interval, updated_at = now() WHERE `+owned,
		s.Name, s.Generation, s.LeaseEpoch, c.Done.Epoch, c.Done.Snapshot(), c.Floor, untilEpoch, until, c.UntilFloor, c.Position,
		s.Handled, s.Behind, readUntil, ttl)
	return oneRow(tag, err)
}

// renew keeps a lease while a handler takes its time.
func renew(ctx context.Context, db database, s *State, ttl time.Duration) error {
	return oneRow(db.Exec(ctx, `UPDATE projections SET lease_until = now() + $4::interval WHERE `+owned, s.Name, s.Generation, s.LeaseEpoch, ttl))
}

// renewStopped does so while a generation has stopped, and puts down how many positions it is behind by now.
func renewStopped(ctx context.Context, db database, s *State, ttl time.Duration) (behind int64, err error) {
	err = db.QueryRow(ctx, `UPDATE projections SET lease_until = now() + $4::interval, behind = greatest((SELECT max(position) FROM event_store) - $5 + 1, 1) WHERE `+owned+` RETURNING behind`,
		s.Name, s.Generation, s.LeaseEpoch, ttl, s.Failure.Position).Scan(&behind)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errStale
	}
	return behind, err
}

// release gives a lease back, so that another replica need not wait for its end.
func release(ctx context.Context, db database, s *State) error {
	return oneRow(db.Exec(ctx, `UPDATE projections SET lease_until = '-infinity', owner = '' WHERE `+owned, s.Name, s.Generation, s.LeaseEpoch))
}

// stop records the event at which a generation stops.
func stop(ctx context.Context, db database, s *State, f *Failure) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return oneRow(db.Exec(ctx, `UPDATE projections SET failure = $4, updated_at = now() WHERE `+owned, s.Name, s.Generation, s.LeaseEpoch, data))
}

func oneRow(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() != 1 {
		return errStale
	}
	return err
}

// skips returns the events that somebody has decided the projection does without.
func skips(ctx context.Context, db database, name string) (map[uuid.UUID]bool, error) {
	rows, err := db.Query(ctx, `SELECT event_id FROM projection_skips WHERE name = $1`, name)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	set := make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set, err
}
