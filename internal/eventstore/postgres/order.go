package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

const (
	eventColumns = `stream, version, position, event_id, type, schema_version, data, metadata, recorded_at`

	// minSpan is the least number of positions that one page looks through. It bounds the time of a page for a reader whose filter lets little through.
	minSpan = 20_000
	// spanPerEvent is how many positions a page looks through for each event that it may return.
	spanPerEvent = 20
)

// readSQL reads a page of what the statement's own snapshot sees. It returns at least one row, for that snapshot and the newest position.
const readSQL = `SELECT now.view, now.epoch, now.top, w.*
FROM (SELECT pg_current_snapshot()::text AS view, (SELECT max(epoch) FROM store_clusters) AS epoch,
	coalesce((SELECT max(position) FROM event_store), 0) AS top) now
LEFT JOIN (SELECT ` + eventColumns + ` FROM read_events($1, $2::text[]::xid8[], $3::text::xid8, $4, $5, $6, $7, $8, $9, $10, $11::text::pg_snapshot)
	ORDER BY position LIMIT $7) w ON true ORDER BY w.position`

// ReadAll implements eventstore.Store.
func (s *Store) ReadAll(ctx context.Context, from eventstore.Checkpoint, filter eventstore.Filter, limit int) (eventstore.Page, error) {
	return ReadAll(ctx, s.pool, from, filter, limit)
}

// ReadAll reads as Store.ReadAll does, on a pool or within a transaction of READ COMMITTED, of which it sees what is not committed yet.
func ReadAll(ctx context.Context, q Querier, from eventstore.Checkpoint, filter eventstore.Filter, limit int) (eventstore.Page, error) {
	if limit < 1 {
		return eventstore.NewPage(nil, from, from, false, 0), nil
	}
	w := newWindow(from, limit)
	untilEpoch, until := w.until()
	rows, err := q.Query(ctx, readSQL, from.Done.Epoch, running(from.Done), strconv.FormatUint(max(from.Done.Max, 1), 10), from.Floor, from.Position, w.bound, w.limit,
		orNone(filter.Categories), orNone(filter.Types), untilEpoch, until)
	if err != nil {
		return eventstore.Page{}, Classified(fmt.Errorf("reading all events: %w", err))
	}
	defer rows.Close()
	for rows.Next() {
		if err := w.scan(rows); err != nil {
			return eventstore.Page{}, Classified(fmt.Errorf("reading all events: %w", err))
		}
	}
	if err := rows.Err(); err != nil {
		return eventstore.Page{}, Classified(fmt.Errorf("reading all events: %w", err))
	}
	c, next, more, last, err := w.settle(len(w.events), func(i int) int64 { return w.events[i].Position })
	if err != nil {
		return eventstore.Page{}, err
	}
	return eventstore.NewPage(w.events, c, next, more, max(w.top-last, 0)), nil
}

// window is one page being read.
type window struct {
	from     eventstore.Checkpoint
	limit    int
	bound    int64 // the last position that is looked at
	view     string
	epoch    int32
	top      int64
	events   []eventstore.Recorded
	messages []eventstore.RecordedMessage
	// seen and scratch are columns that are used while their row is read.
	seen, scratch reused
}

func newWindow(from eventstore.Checkpoint, limit int) window {
	limit = min(limit, math.MaxInt32) // what the functions take, and few enough for the bound not to overflow
	return window{from: from, limit: limit, bound: max(from.Floor, from.Position) + max(minSpan, int64(limit)*spanPerEvent)}
}

// until is the view up to which a backlog is read, as the functions take it.
func (w *window) until() (epoch *int32, snapshot *string) {
	if w.from.Until == nil {
		return nil, nil
	}
	text := w.from.Until.Snapshot()
	return &w.from.Until.Epoch, &text
}

func (w *window) scan(rows pgx.Rows) error {
	var stream, typ *string
	var version, position *int64
	var schema *int
	var e eventstore.Recorded
	var id *uuid.UUID
	var metadata []byte
	var at *time.Time
	if err := rows.Scan(&w.view, &w.epoch, &w.top, &stream, &version, &position, &id, &typ, &schema, (*[]byte)(&e.Data), &metadata, &at); err != nil {
		return err
	}
	if stream == nil {
		return nil // the row that only brings the view
	}
	e.Stream, e.Version, e.Position, e.ID, e.Type, e.SchemaVersion, e.RecordedAt = *stream, *version, *position, *id, *typ, *schema, at.UTC()
	w.events = append(w.events, e)
	return json.Unmarshal(metadata, &w.events[len(w.events)-1].Metadata)
}

// settle returns the checkpoint of the window, the one behind what was found in it, n entries at some positions, and whether there is more. last is the last position looked at.
func (w *window) settle(n int, position func(i int) int64) (c, next eventstore.Checkpoint, more bool, last int64, err error) {
	c = w.from
	if c.Until == nil {
		view, err := eventstore.ParseView(w.epoch, w.view)
		if err != nil {
			return c, c, false, 0, err
		}
		c.Until, c.UntilFloor = &view, w.top
	}
	next, last = c, w.bound
	switch {
	case n == w.limit:
		last = position(n - 1)
		next.Position = last
	case w.bound >= c.UntilFloor: // everything up to the newest entry of the window has been looked at
		next = eventstore.Checkpoint{Done: *c.Until, Floor: c.UntilFloor}
		last = max(c.UntilFloor, c.Position)
	default:
		next.Position = w.bound
	}
	return c, next, next.Until != nil || w.top > c.UntilFloor, last, nil
}

// running is the transactions of a view as PostgreSQL reads them.
func running(v eventstore.View) []string {
	all := make([]string, len(v.Running))
	for i, x := range v.Running {
		all[i] = strconv.FormatUint(x, 10)
	}
	return all
}

func orNone(all []string) []string {
	if len(all) == 0 {
		return nil
	}
	return all
}
