package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// database is a pool or a transaction.
type database interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// reader is how far one shard of a sink has read.
type reader struct {
	sink          string
	shard, shards int
	checkpoint    eventstore.Checkpoint
	leaseEpoch    int64
	// commands is the count of people's commands that the owner has seen.
	commands int64
	// troubled is the reason for which the sink takes nothing, as it was put down last; empty where there was none.
	troubled string
}

// ensureReaders makes the readers of a new sink, which begin with what is committed from now on. Of several that make them at once, with as many shards as each likes, the one
// whose first row is there first makes all.
func ensureReaders(ctx context.Context, db database, sink, name string, shards int) error {
	_, err := db.Exec(ctx, `WITH first AS (
			INSERT INTO outbox_readers (sink, shard, shards, name, epoch, done, floor)
			SELECT $1, 0, $3, $2, (SELECT max(epoch) FROM store_clusters), pg_current_snapshot(), (SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM outbox_position)
			WHERE NOT EXISTS (SELECT FROM outbox_readers WHERE sink = $1) ON CONFLICT DO NOTHING RETURNING *)
		INSERT INTO outbox_readers (sink, shard, shards, name, epoch, done, floor)
		SELECT f.sink, i, f.shards, f.name, f.epoch, f.done, f.floor FROM first f, generate_series(1, f.shards - 1) i`, sink, name, shards)
	if err != nil {
		return fmt.Errorf("making the readers of sink %s: %w", name, err)
	}
	return nil
}

const readerColumns = `sink, shard, shards, epoch, done::text, floor, until_epoch, until::text, until_floor, position, lease_epoch, commands, coalesce(error ->> 'reason', '')`

func scanReader(row pgx.CollectableRow) (reader, error) {
	var r reader
	var epoch int32
	var done string
	var untilEpoch *int32
	var until *string
	c := &r.checkpoint
	if err := row.Scan(&r.sink, &r.shard, &r.shards, &epoch, &done, &c.Floor, &untilEpoch, &until, &c.UntilFloor, &c.Position, &r.leaseEpoch, &r.commands, &r.troubled); err != nil {
		return r, err
	}
	var err error
	if c.Done, err = eventstore.ParseView(epoch, done); err != nil {
		return r, err
	}
	if until != nil && untilEpoch != nil {
		view, err := eventstore.ParseView(*untilEpoch, *until)
		if err != nil {
			return r, err
		}
		c.Until = &view
	}
	return r, nil
}

// acquire takes the leases of up to limit shards of some sinks that nobody holds, the longest abandoned first.
func acquire(ctx context.Context, db database, sinks []string, owner string, limit int, ttl time.Duration) ([]reader, error) {
	rows, err := db.Query(ctx, `UPDATE outbox_readers SET owner = $2, lease_epoch = lease_epoch + 1, lease_until = now() + $4::interval
		WHERE (sink, shard) IN (SELECT sink, shard FROM outbox_readers WHERE sink = ANY ($1) AND lease_until < now()
			ORDER BY lease_until, shard LIMIT $3 FOR UPDATE SKIP LOCKED)
		RETURNING `+readerColumns, sinks, owner, limit, ttl)
	if err != nil {
		return nil, fmt.Errorf("taking shards of the outbox: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanReader)
	if err != nil {
		return nil, fmt.Errorf("taking shards of the outbox: %w", err)
	}
	return all, nil
}

// errStale says that the lease of a shard is somebody else's now. Whatever the old owner had begun is rolled back.
var errStale = errors.New("the lease of the shard is lost")

// owned is the condition under which the holder of a lease may write: nobody has taken it since.
const owned = `sink = $1 AND shard = $2 AND lease_epoch = $3`

// save puts the checkpoint down, counts what was published, and renews the lease, if it is still held. Within a transaction it makes the rest of it conditional on that.
func (r *reader) save(ctx context.Context, db database, published int, ttl time.Duration) error {
	c := r.checkpoint
	var untilEpoch *int32
	var until *string
	if c.Until != nil {
		text := c.Until.Snapshot()
		untilEpoch, until = &c.Until.Epoch, &text
	}
	return oneRow(db.Exec(ctx, `UPDATE outbox_readers SET epoch = $4, done = $5::text::pg_snapshot, floor = $6, until_epoch = $7, until = $8::text::pg_snapshot, until_floor = $9,
		position = $10, published = published + $11, lease_until = now() + $12::interval, updated_at = now() WHERE `+owned,
		r.sink, r.shard, r.leaseEpoch, c.Done.Epoch, c.Done.Snapshot(), c.Floor, untilEpoch, until, c.UntilFloor, c.Position, published, ttl))
}

// count adds to what was published, if the lease is still held, and so makes the rest of a transaction conditional on that.
func (r *reader) count(ctx context.Context, db database, published int) error {
	return oneRow(db.Exec(ctx, `UPDATE outbox_readers SET published = published + $4, updated_at = now() WHERE `+owned, r.sink, r.shard, r.leaseEpoch, published))
}

// renew keeps the lease and returns the count of people's commands.
func (r *reader) renew(ctx context.Context, db database, ttl time.Duration) (commands int64, err error) {
	err = db.QueryRow(ctx, `UPDATE outbox_readers SET lease_until = now() + $4::interval WHERE `+owned+` RETURNING commands`,
		r.sink, r.shard, r.leaseEpoch, ttl).Scan(&commands)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, errStale
	}
	return commands, err
}

// verify reports whether the lease is still held, without renewing it, and returns the count of people's commands.
func (r *reader) verify(ctx context.Context, db database) (commands int64, err error) {
	err = db.QueryRow(ctx, `SELECT commands FROM outbox_readers WHERE `+owned, r.sink, r.shard, r.leaseEpoch).Scan(&commands)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, errStale
	}
	return commands, err
}

// release gives the lease back, so that nobody has to wait for its end.
func (r *reader) release(ctx context.Context, db database) error {
	return oneRow(db.Exec(ctx, `UPDATE outbox_readers SET lease_until = '-infinity', owner = '' WHERE `+owned, r.sink, r.shard, r.leaseEpoch))
}

// trouble is why a sink takes nothing, as it is kept for people.
type trouble struct {
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	At      time.Time `json:"at"`
}

// report records why the sink takes nothing at the moment; nil that it does.
func (r *reader) report(ctx context.Context, db database, t *trouble) error {
	var data []byte
	if t != nil {
		var err error
		if data, err = json.Marshal(t); err != nil {
			return err
		}
	}
	return oneRow(db.Exec(ctx, `UPDATE outbox_readers SET error = $4, updated_at = now() WHERE `+owned, r.sink, r.shard, r.leaseEpoch, data))
}

func oneRow(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() != 1 {
		return errStale
	}
	return err
}

// attend says that a relay is there, and returns how many there are.
func attend(ctx context.Context, db database, owner string, ttl time.Duration) (relays int, err error) {
	err = db.QueryRow(ctx, `WITH me AS (INSERT INTO outbox_relays (owner) VALUES ($1) ON CONFLICT (owner) DO UPDATE SET seen_at = now()),
			gone AS (DELETE FROM outbox_relays WHERE seen_at < now() - 10 * $2::interval)
		SELECT count(*) + 1 FROM outbox_relays WHERE seen_at > now() - $2::interval AND owner <> $1`, owner, ttl).Scan(&relays)
	if err != nil {
		return 0, fmt.Errorf("saying that this relay is there: %w", err)
	}
	return relays, nil
}

// leave says that a relay is there no more.
func leave(ctx context.Context, db database, owner string) error {
	_, err := db.Exec(ctx, `DELETE FROM outbox_relays WHERE owner = $1`, owner)
	return err
}
