package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// column is an array that is an argument of a statement, written in PostgreSQL's binary format element by element into
// memory that later statements use again. The driver's own arrays are encoded anew, into memory that grows by a quarter at
// a time and is thrown away: for appends that was a third of all that the operator allocated.
type column struct {
	element uint32 // the OID of its type
	n       uint32
	nulls   uint32 // 1 where an element is NULL
	data    []byte
}

// headerBytes begin an array of one dimension: how many dimensions there are, whether there are NULLs, the type of the
// elements, how many there are, and the number of the first, in four bytes each.
const headerBytes = 20

// begin makes it an array without elements.
func (c *column) begin(element uint32) {
	*c = column{element: element, data: append(c.data[:0], make([]byte, headerBytes)...)}
}

// encoded returns the array. It is the column's own memory.
func (c *column) encoded() []byte {
	for i, word := range []uint32{1, c.nulls, c.element, c.n, 1} {
		binary.BigEndian.PutUint32(c.data[4*i:], word)
	}
	return c.data
}

// size begins an element with its size in bytes.
func (c *column) size(bytes int) {
	c.n++
	c.data = binary.BigEndian.AppendUint32(c.data, uint32(bytes))
}

func (c *column) text(s string) {
	c.size(len(s))
	c.data = append(c.data, s...)
}

// raw appends what needs no encoding: JSON, a UUID.
func (c *column) raw(b []byte) {
	c.size(len(b))
	c.data = append(c.data, b...)
}

func (c *column) integer(v int) {
	c.size(4)
	c.data = binary.BigEndian.AppendUint32(c.data, uint32(v))
}

func (c *column) bigint(v int64) {
	c.size(8)
	c.data = binary.BigEndian.AppendUint64(c.data, uint64(v))
}

func (c *column) boolean(v bool) {
	c.size(1)
	c.data = append(c.data, boolean(v))
}

// timestamp appends a time, which PostgreSQL keeps in microseconds since its own epoch. The zero time is NULL.
func (c *column) timestamp(t time.Time) {
	if !t.IsZero() {
		c.bigint(t.UnixMicro() - epoch)
		return
	}
	c.n++
	c.nulls = 1
	c.data = binary.BigEndian.AppendUint32(c.data, 1<<32-1)
}

// epoch is PostgreSQL's, in microseconds of Unix time.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// prelude is a boolean argument that stands before columns, and makes room in the driver's memory for all of them at once.
type prelude struct {
	value bool
	bytes int
}

// columns teaches the connection that a statement runs on to send arguments that are encoded already. It is the first
// argument of the statement.
type columns struct{}

// RewriteQuery implements pgx.QueryRewriter. The driver calls it with the connection, both for a pool and for a transaction
// of the caller. The statement stays as it is.
func (columns) RewriteQuery(_ context.Context, conn *pgx.Conn, sql string, args []any) (string, []any, error) {
	types := conn.TypeMap()
	if types.PlanEncode(pgtype.TextArrayOID, pgx.BinaryFormatCode, (*column)(nil)) == nil {
		types.TryWrapEncodePlanFuncs = append(slices.Clone(types.TryWrapEncodePlanFuncs), planEncoded)
	}
	return sql, args, nil
}

// planEncoded is asked how to encode a value for which the driver knows no way.
func planEncoded(value any) (plan pgtype.WrappedEncodePlanNextSetter, like any, ok bool) {
	switch value.(type) {
	case *column:
		return encodedPlan{}, pgtype.FlatArray[any](nil), true
	case prelude:
		return encodedPlan{}, false, true
	default:
		return nil, nil, false
	}
}

// encodedPlan encodes a column or a prelude.
type encodedPlan struct{}

// SetNext implements pgtype.WrappedEncodePlanNextSetter. There is nothing left for another plan to do.
func (encodedPlan) SetNext(pgtype.EncodePlan) {}

// Encode implements pgtype.EncodePlan.
func (encodedPlan) Encode(value any, buf []byte) ([]byte, error) {
	switch v := value.(type) {
	case *column:
		return append(buf, v.encoded()...), nil
	case prelude:
		return append(slices.Grow(buf, v.bytes+1), boolean(v.value)), nil
	default:
		return nil, fmt.Errorf("encoding an argument: a %T is not a column", value)
	}
}

func boolean(v bool) byte {
	if v {
		return 1
	}
	return 0
}
