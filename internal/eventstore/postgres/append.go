package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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

	streams         []string
	expected        []int64
	counts          []int32
	of, nth         []int32
	ids             [][16]byte
	types           []string
	schemas         []int32
	data, metadata  documents
	sOf             []int32
	sUIDs           [][16]byte
	sNamespaces     []string
	sNames, sPhases []string
	sFinished       []bool
	sWakeAt         pgtype.FlatArray[pgtype.Timestamptz]
	sStates         documents
	mOf             []int32
	mIDs            [][16]byte
	mTypes, mKeys   []string
	mDestinations   []string
	mData           documents
	mMetadata       documents
}

// documents is an array of JSON. Of this type, and UUIDs as [16]byte, pgx makes an array without
// reflection and without a detour over text, which otherwise is half of the cost of a call.
type documents = pgtype.FlatArray[json.RawMessage]

// result is what one append came to.
type result struct {
	done eventstore.Appended
	err  error
}

// newCall lays appends out. Events get their positions in the order in which they are given here.
func newCall(appends ...*eventstore.Append) (*call, error) {
	c := &call{appends: slices.Clone(appends), place: make([]int, len(appends))}
	slices.SortFunc(c.appends, func(a, b *eventstore.Append) int { return strings.Compare(a.Stream, b.Stream) })
	for i, a := range c.appends {
		c.streams, c.expected, c.counts = append(c.streams, a.Stream), append(c.expected, a.Expected), append(c.counts, int32(len(a.Events)))
		c.place[i] = slices.Index(appends, a)
	}
	for _, a := range appends {
		if err := c.add(a, int32(slices.Index(c.appends, a))+1); err != nil {
			return nil, fmt.Errorf("appending to stream %s: %w", a.Stream, err)
		}
	}
	return c, nil
}

// add lays out what one append brings; of is its number in the call.
func (c *call) add(a *eventstore.Append, of int32) error {
	for i := range a.Events {
		e := &a.Events[i]
		meta, err := encodeMetadata(e.Metadata)
		if err != nil {
			return err
		}
		c.of, c.nth, c.ids, c.types = append(c.of, of), append(c.nth, int32(i)+1), append(c.ids, e.ID), append(c.types, e.Type)
		c.schemas, c.data, c.metadata = append(c.schemas, int32(e.SchemaVersion)), append(c.data, e.Data), append(c.metadata, meta)
	}
	if s := a.State; s != nil {
		c.sOf, c.sUIDs, c.sNamespaces, c.sNames = append(c.sOf, of), append(c.sUIDs, s.UID), append(c.sNamespaces, s.Namespace), append(c.sNames, s.Name)
		c.sPhases, c.sFinished = append(c.sPhases, s.Phase), append(c.sFinished, s.Finished)
		c.sWakeAt, c.sStates = append(c.sWakeAt, orNull(s.WakeAt)), append(c.sStates, s.State)
	}
	for i := range a.Messages {
		m := &a.Messages[i]
		meta, err := EncodeEnvelope(m)
		if err != nil {
			return err
		}
		c.mOf, c.mIDs, c.mTypes, c.mKeys = append(c.mOf, of), append(c.mIDs, m.ID), append(c.mTypes, m.Type), append(c.mKeys, m.Key)
		c.mDestinations, c.mData, c.mMetadata = append(c.mDestinations, m.Destination), append(c.mData, m.Data), append(c.mMetadata, meta)
	}
	return nil
}

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

func orNull(t time.Time) pgtype.Timestamptz { return pgtype.Timestamptz{Time: t, Valid: !t.IsZero()} }

// run does the call and returns the results in the order of what was given. With together, one append that does not succeed is the error of the whole.
func (c *call) run(ctx context.Context, q Querier, together bool) ([]result, error) {
	var outcomes []int32
	var versions []int64
	var token eventstore.Token
	var txid int64
	sql, args := eventsOnlySQL, []any{together, c.streams, c.expected, c.counts, c.of, c.nth, c.ids, c.types, c.schemas, c.data, c.metadata}
	if len(c.sOf)+len(c.mOf) > 0 {
		sql, args = withTheRestSQL, append(args, c.sOf, c.sUIDs, c.sNamespaces, c.sNames, c.sPhases, c.sFinished, c.sWakeAt, c.sStates,
			c.mOf, c.mIDs, c.mTypes, c.mKeys, c.mDestinations, c.mData, c.mMetadata)
	}
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
	if len(c.sOf)+len(c.mOf) > 0 {
		results, err := c.run(ctx, q, false)
		if err != nil {
			return result{}, err
		}
		return results[0], nil
	}
	var outcome int
	var version, txid int64
	var token eventstore.Token
	err := q.QueryRow(ctx, oneSQL, c.streams[0], c.expected[0], c.ids, c.types, c.schemas, c.data, c.metadata).Scan(&outcome, &version, &token.Epoch, &txid)
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
	results, err := c.run(ctx, q, true)
	if err != nil {
		return nil, appendError(strings.Join(c.streams, ", "), err)
	}
	done := make([]eventstore.Appended, len(results))
	for i := range results {
		done[i] = results[i].done
	}
	return done, nil
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
