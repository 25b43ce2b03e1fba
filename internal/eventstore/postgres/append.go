package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/postgres"
)

// Half of the arguments are left out where no append brings a state row or a message.
const (
	appendSQL      = `SELECT outcomes, versions, at_epoch, at_txid::text::bigint FROM append_streams(`
	oneSQL         = `SELECT outcome, version, at_epoch, at_txid::text::bigint FROM append_one($1,$2,$3,$4,$5,$6,$7)`
	eventsOnlySQL  = appendSQL + `$1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)`
	withTheRestSQL = appendSQL + `$1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24,$25,$26)`
)

// What append_streams says of an append.
const (
	outcomeWrongVersion = iota
	outcomeAppended
	outcomeRepeated
	outcomeArchived
)

// refusedState is the SQLSTATE of append_streams when one of several appends that belong together does not succeed.
const refusedState = "SG001"

// Querier is a pool or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// call is one call of append_streams: some appends laid out as columns.
type call struct {
	appends []*eventstore.Append // sorted by stream, as the function locks them
	place   []int                // where each stood in what was given
	columns *[lastColumn]column
}

// The columns of a call, in the order in which append_streams takes them: of its appends, their events, state rows and messages.
const (
	aStreams = iota
	aExpected
	aCounts
	eOf
	eNth
	eIDs
	eTypes
	eSchemas
	eData
	eMetadata
	sOf
	sUIDs
	sNamespaces
	sNames
	sPhases
	sFinished
	sWakeAt
	sStates
	mOf
	mIDs
	mTypes
	mKeys
	mDestinations
	mData
	mMetadata
	lastColumn
)

// elements are the types of the columns' elements.
var elements = [lastColumn]uint32{
	pgtype.TextOID, pgtype.Int8OID, pgtype.Int4OID,
	pgtype.Int4OID, pgtype.Int4OID, pgtype.UUIDOID, pgtype.TextOID, pgtype.Int4OID, pgtype.JSONOID, pgtype.JSONOID,
	pgtype.Int4OID, pgtype.UUIDOID, pgtype.TextOID, pgtype.TextOID, pgtype.TextOID, pgtype.BoolOID, pgtype.TimestamptzOID, pgtype.JSONOID,
	pgtype.Int4OID, pgtype.UUIDOID, pgtype.TextOID, pgtype.TextOID, pgtype.TextOID, pgtype.JSONOID, pgtype.JSONOID,
}

// written keeps the memory of columns between calls.
var written = sync.Pool{New: func() any { return new([lastColumn]column) }}

// maxWritten bounds what a call leaves to the next one, in bytes. Few are larger, and they are rare.
const maxWritten = 2 << 20

// close gives the memory of the columns back. The call has to be over.
func (c *call) close() {
	kept := 0
	for i := range c.columns {
		kept += cap(c.columns[i].data)
	}
	if kept <= maxWritten {
		written.Put(c.columns)
	}
	c.columns = nil
}

// arguments returns the first n columns, as arguments of a statement.
func (c *call) arguments(together bool, n int) []any {
	args, bytes := make([]any, 2, 2+n), 0
	for i := range n {
		args = append(args, &c.columns[i])
		bytes += len(c.columns[i].data)
	}
	args[0], args[1] = columns{}, prelude{value: together, bytes: bytes}
	return args
}

// result is what one append came to.
type result struct {
	done eventstore.Appended
	err  error
}

// newCall lays appends out. Events get their positions in the order in which they are given here. The caller closes it.
func newCall(appends ...*eventstore.Append) (*call, error) {
	c := &call{appends: slices.Clone(appends), place: make([]int, len(appends)), columns: written.Get().(*[lastColumn]column)}
	for i := range c.columns {
		c.columns[i].begin(elements[i])
	}
	slices.SortFunc(c.appends, func(a, b *eventstore.Append) int { return strings.Compare(a.Stream, b.Stream) })
	for i, a := range c.appends {
		c.columns[aStreams].text(a.Stream)
		c.columns[aExpected].bigint(a.Expected)
		c.columns[aCounts].integer(len(a.Events))
		c.place[i] = slices.Index(appends, a)
	}
	for _, a := range appends {
		if err := c.add(a, slices.Index(c.appends, a)+1); err != nil {
			c.close()
			return nil, fmt.Errorf("appending to stream %s: %w", a.Stream, err)
		}
	}
	return c, nil
}

// add lays out what one append brings; of is its number in the call.
func (c *call) add(a *eventstore.Append, of int) error {
	to := c.columns
	var meta json.RawMessage
	for i := range a.Events {
		e := &a.Events[i]
		if i == 0 || e.Metadata != a.Events[i-1].Metadata {
			var err error
			if meta, err = encodeMetadata(e.Metadata); err != nil {
				return err
			}
		}
		to[eOf].integer(of)
		to[eNth].integer(i + 1)
		to[eIDs].raw(e.ID[:])
		to[eTypes].text(e.Type)
		to[eSchemas].integer(e.SchemaVersion)
		to[eData].raw(e.Data)
		to[eMetadata].raw(meta)
	}
	if s := a.State; s != nil {
		to[sOf].integer(of)
		to[sUIDs].raw(s.UID[:])
		to[sNamespaces].text(s.Namespace)
		to[sNames].text(s.Name)
		to[sPhases].text(s.Phase)
		to[sFinished].boolean(s.Finished)
		to[sWakeAt].timestamp(s.WakeAt)
		to[sStates].raw(s.State)
	}
	for i := range a.Messages {
		m := &a.Messages[i]
		meta, err := EncodeEnvelope(m)
		if err != nil {
			return err
		}
		to[mOf].integer(of)
		to[mIDs].raw(m.ID[:])
		to[mTypes].text(m.Type)
		to[mKeys].text(m.Key)
		to[mDestinations].text(m.Destination)
		to[mData].raw(m.Data)
		to[mMetadata].raw(meta)
	}
	return nil
}

// eventsOnly says whether no append brings a state row or a message.
func (c *call) eventsOnly() bool { return c.columns[sOf].n+c.columns[mOf].n == 0 }

var noMetadata = json.RawMessage(`{}`)

func encodeMetadata(m eventstore.Metadata) (json.RawMessage, error) {
	if m == (eventstore.Metadata{}) {
		return noMetadata, nil
	}
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding metadata: %w", err)
	}
	return data, nil
}

// run does the call and returns the results in the order of what was given. With together, one append that does not succeed is the error of the whole.
func (c *call) run(ctx context.Context, q Querier, together bool) ([]result, error) {
	var outcomes []int32
	var versions []int64
	var token eventstore.Token
	var txid int64
	sql, n := withTheRestSQL, int(lastColumn)
	if c.eventsOnly() {
		sql, n = eventsOnlySQL, eMetadata+1
	}
	args := c.arguments(together, n)
	err := untilPartitioned(q, func() error { return q.QueryRow(ctx, sql, args...).Scan(&outcomes, &versions, &token.Epoch, &txid) })
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == refusedState {
		var nth, outcome int
		var version int64
		if _, scan := fmt.Sscan(refused.Detail, &nth, &outcome, &version); scan == nil && nth >= 1 && nth <= len(c.appends) {
			_, err = c.result(nth-1, outcome, version, token)
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	if len(outcomes) != len(c.appends) || len(versions) != len(c.appends) {
		return nil, fmt.Errorf("append_streams answered %d outcomes to %d appends", len(outcomes), len(c.appends))
	}
	token.Transaction = uint64(txid)
	results := make([]result, len(c.appends))
	for i := range c.appends {
		r := &results[c.place[i]]
		r.done, r.err = c.result(i, int(outcomes[i]), versions[i], token)
	}
	return results, nil
}

// untilPartitioned appends again where a message found no partition of its own and one was made at that very moment: PostgreSQL refuses it then (SQLSTATE 23514), because what takes all others
// is for less by now. Nothing has been committed. Within the caller's own transaction that is over, and the error is the caller's.
func untilPartitioned(q Querier, appends func() error) error {
	const (
		tries          = 5
		checkViolation = "23514"
	)
	for n := 1; ; n++ {
		err := appends()
		var refused *pgconn.PgError
		if _, theirs := q.(pgx.Tx); theirs || n == tries || !errors.As(err, &refused) || refused.Code != checkViolation || refused.TableName != "outbox_events_rest" {
			return err
		}
	}
}

// runAlone does the call of a single append.
func (c *call) runAlone(ctx context.Context, q Querier) (result, error) {
	if !c.eventsOnly() {
		results, err := c.run(ctx, q, false)
		if err != nil {
			return result{}, err
		}
		return results[0], nil
	}
	var outcome int
	var version, txid int64
	var token eventstore.Token
	to := c.columns
	err := q.QueryRow(ctx, oneSQL, columns{}, c.appends[0].Stream, c.appends[0].Expected, &to[eIDs], &to[eTypes], &to[eSchemas], &to[eData], &to[eMetadata]).Scan(&outcome, &version, &token.Epoch, &txid)
	if err != nil {
		return result{}, err
	}
	token.Transaction = uint64(txid)
	done, err := c.result(0, outcome, version, token)
	return result{done, err}, nil
}

// result says what the outcome of the i-th append of the call means.
func (c *call) result(i, outcome int, version int64, token eventstore.Token) (eventstore.Appended, error) {
	a := c.appends[i]
	switch outcome {
	case outcomeAppended:
		return eventstore.Appended{Version: version + int64(len(a.Events)), Token: token}, nil
	case outcomeRepeated:
		return eventstore.Appended{Version: version, Token: token, Repeated: true}, nil
	case outcomeArchived:
		return eventstore.Appended{}, fmt.Errorf("appending to stream %s: %w", a.Stream, eventstore.ErrArchived)
	default:
		return eventstore.Appended{}, &eventstore.WrongVersionError{Stream: a.Stream, Expected: a.Expected, Actual: version}
	}
}

// AppendAll appends as Store.AppendAll does, on a pool or as a part of the caller's transaction, which has to be rolled back after an error.
func AppendAll(ctx context.Context, q Querier, all []eventstore.Append) ([]eventstore.Appended, error) {
	if err := eventstore.ValidateAll(all); err != nil {
		return nil, err
	}
	pointers := make([]*eventstore.Append, len(all))
	for i := range all {
		pointers[i] = &all[i]
	}
	c, err := newCall(pointers...)
	if err != nil {
		return nil, err
	}
	defer c.close()
	results, err := c.run(ctx, q, true)
	if err != nil {
		return nil, appendError(c.streams(), err)
	}
	done := make([]eventstore.Appended, len(results))
	for i := range results {
		done[i] = results[i].done
	}
	return done, nil
}

// streams names the streams of a call.
func (c *call) streams() string {
	names := make([]string, len(c.appends))
	for i, a := range c.appends {
		names[i] = a.Stream
	}
	return strings.Join(names, ", ")
}

func appendError(stream string, err error) error {
	switch {
	case errors.Is(err, eventstore.ErrWrongVersion), errors.Is(err, eventstore.ErrArchived):
		return err
	case postgres.Constraint(err) == eventIDConstraint:
		return fmt.Errorf("appending to stream %s: %w: the store has one of these event ids already", stream, eventstore.ErrInvalid)
	default:
		return Classified(fmt.Errorf("appending to stream %s: %w", stream, err))
	}
}
