package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Status is where a sink stands, all its shards together, whoever publishes them.
type Status struct {
	ID, Name string
	// Backlog is how many messages wait, at most: those that have not been read may be for others. DeadLetters are those that wait for a person, and are not in it.
	Backlog, DeadLetters int64
	// OldestAge is the age of the oldest message in Backlog or DeadLetters. It is 0 only if both are.
	OldestAge time.Duration
	Published int64
	// Relays is how many shards somebody publishes at the moment.
	Relays, Shards int
	// Trouble is why the sink takes nothing, and its Reason; empty while it does.
	Trouble, Reason string
}

// statusSQL counts the log as positions above the checkpoint's floor plus rows at or below the floor that were committed after the sink last looked (late). Their
// transactions were running at that time, so their ids are in the checkpoint's snapshot or follow it closely: 1000 ids are looked at, and a limited number of rows. A row of
// a later epoch is rare.
//
// Positions are drawn before their transactions commit, and some never do: positions without any visible row are not counted. The age is computed with the clock after the
// snapshot, because a message may be committed between the statement's start and its snapshot.
const statusSQL = `SELECT sink, name, published, shards, relays, CASE WHEN logged IS NULL THEN 0 ELSE behind END, waiting, dead,
	extract(epoch FROM clock_timestamp() - least(parked, logged))::float8, failure
FROM (SELECT r.sink, max(r.name) AS name, sum(r.published) AS published, count(*) AS shards, count(*) FILTER (WHERE r.lease_until > now()) AS relays,
		max(greatest(top.last - greatest(r.floor, r.position), 0) + late.rows)::bigint AS behind, coalesce(max(p.waiting), 0) AS waiting, coalesce(max(p.dead), 0) AS dead,
		max(p.oldest) AS parked, least(min(late.oldest), (
			SELECT o.recorded_at FROM outbox_events o WHERE o.position > min(greatest(r.floor, r.position)) ORDER BY o.position LIMIT 1)) AS logged,
		(array_agg(r.error ORDER BY r.updated_at DESC) FILTER (WHERE r.error IS NOT NULL))[1] AS failure
	FROM outbox_readers r CROSS JOIN (SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END AS last FROM outbox_position) top
	LEFT JOIN LATERAL (SELECT count(*) FILTER (WHERE NOT dead) AS waiting, count(*) FILTER (WHERE dead) AS dead, min(recorded_at) AS oldest
		FROM (SELECT dead, recorded_at FROM outbox_parked WHERE sink = r.sink AND r.shard = 0 LIMIT 100000) kept) p ON true
	LEFT JOIN LATERAL (SELECT count(*) AS rows, min(few.recorded_at) AS oldest FROM (
		(SELECT o.recorded_at FROM outbox_events o WHERE o.epoch = r.epoch AND o.txid = ANY (ARRAY(SELECT pg_snapshot_xip(r.done)))
			AND o.position + 0 > r.position AND o.position + 0 <= r.floor LIMIT 200000) UNION ALL
		(SELECT o.recorded_at FROM outbox_events o WHERE o.epoch = r.epoch AND o.txid >= pg_snapshot_xmax(r.done)
			AND o.txid < (pg_snapshot_xmax(r.done)::text::bigint + 1000)::text::xid8 AND o.position + 0 > r.position AND o.position + 0 <= r.floor LIMIT 200000) UNION ALL
		(SELECT o.recorded_at FROM (SELECT e.position, e.recorded_at FROM outbox_events e WHERE e.epoch > r.epoch ORDER BY e.epoch, e.txid LIMIT 50000) o
			WHERE o.position > r.position AND o.position <= r.floor)) few) late ON true
	WHERE $1::text IS NULL OR r.sink = $1 GROUP BY r.sink) s ORDER BY name`

// Statuses returns where all sinks stand that were ever set and are not forgotten.
func Statuses(ctx context.Context, pool *pgxpool.Pool) ([]Status, error) {
	return statuses(ctx, pool, nil)
}

// StatusOf returns where a sink stands; one that is not known has a zero status.
func StatusOf(ctx context.Context, pool *pgxpool.Pool, id string) (Status, error) {
	all, err := statuses(ctx, pool, &id)
	if err != nil || len(all) == 0 {
		return Status{ID: id}, err
	}
	return all[0], nil
}

func statuses(ctx context.Context, pool *pgxpool.Pool, id *string) ([]Status, error) {
	rows, err := pool.Query(ctx, statusSQL, id)
	if err != nil {
		return nil, fmt.Errorf("looking how far the sinks are: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Status, error) {
		var s Status
		var behind, waiting int64
		var age *float64
		var failure []byte
		if err := row.Scan(&s.ID, &s.Name, &s.Published, &s.Shards, &s.Relays, &behind, &waiting, &s.DeadLetters, &age, &failure); err != nil {
			return s, err
		}
		s.Backlog = behind + waiting
		if age != nil {
			s.OldestAge = max(time.Duration(*age*float64(time.Second)), time.Microsecond) // the server's clock may have been set back
		}
		if len(failure) > 0 {
			var t trouble
			if err := json.Unmarshal(failure, &t); err != nil {
				return s, err
			}
			s.Trouble, s.Reason = t.Message, t.Reason
		}
		return s, nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking how far the sinks are: %w", err)
	}
	return all, nil
}

// Forget drops what is kept of a sink that is gone for good: how far it has read, and what is parked for it. A sink that somebody publishes to is not forgotten, which it reports.
func Forget(ctx context.Context, pool *pgxpool.Pool, id string) (forgotten bool, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM outbox_readers WHERE sink = $1 AND NOT EXISTS (SELECT FROM outbox_readers WHERE sink = $1 AND lease_until > now())`, id); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM outbox_readers WHERE sink = $1)`, id).Scan(&forgotten); err != nil || !forgotten {
			return err
		}
		_, err := tx.Exec(ctx, `DELETE FROM outbox_parked WHERE sink = $1`, id)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("forgetting sink %s: %w", id, err)
	}
	return forgotten, nil
}
