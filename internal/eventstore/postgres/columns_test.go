package postgres

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// An array that PostgreSQL reads otherwise than it was meant would be another event.
func TestAColumnIsEncodedAsTheDriverWouldEncodeIt(t *testing.T) {
	t.Parallel()
	ids := []uuid.UUID{uuid.New(), uuid.Nil}
	times := []time.Time{time.Date(2030, 1, 2, 3, 4, 5, 6789, time.UTC), time.Date(1999, 12, 31, 23, 59, 59, 999_999_999, time.UTC), time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)}
	for name, c := range map[string]struct {
		element, array uint32
		fill           func(*column)
		driver         any
	}{
		"no texts":  {pgtype.TextOID, pgtype.TextArrayOID, func(*column) {}, []string{}},
		"texts":     {pgtype.TextOID, pgtype.TextArrayOID, func(c *column) { c.text("a"); c.text(""); c.text("ä\"{},") }, []string{"a", "", "ä\"{},"}},
		"integers":  {pgtype.Int4OID, pgtype.Int4ArrayOID, func(c *column) { c.integer(1); c.integer(-2); c.integer(1<<31 - 1) }, []int32{1, -2, 1<<31 - 1}},
		"bigints":   {pgtype.Int8OID, pgtype.Int8ArrayOID, func(c *column) { c.bigint(-1); c.bigint(1 << 62) }, []int64{-1, 1 << 62}},
		"booleans":  {pgtype.BoolOID, pgtype.BoolArrayOID, func(c *column) { c.boolean(true); c.boolean(false) }, []bool{true, false}},
		"documents": {pgtype.JSONOID, pgtype.JSONArrayOID, func(c *column) { c.raw([]byte(`{"a":1}`)); c.raw([]byte(`null`)) }, pgtype.FlatArray[json.RawMessage]{json.RawMessage(`{"a":1}`), json.RawMessage(`null`)}},
		"ids":       {pgtype.UUIDOID, pgtype.UUIDArrayOID, func(c *column) { c.raw(ids[0][:]); c.raw(ids[1][:]) }, [][16]byte{ids[0], ids[1]}},
		"times": {pgtype.TimestamptzOID, pgtype.TimestamptzArrayOID, func(c *column) {
			for _, at := range times {
				c.timestamp(at)
			}
		}, times},
		"times of which one is unknown": {pgtype.TimestamptzOID, pgtype.TimestamptzArrayOID, func(c *column) { c.timestamp(times[0]); c.timestamp(time.Time{}) },
			pgtype.FlatArray[pgtype.Timestamptz]{{Time: times[0], Valid: true}, {}}},
	} {
		want, err := pgtype.NewMap().Encode(c.array, pgx.BinaryFormatCode, c.driver, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var col column
		for range 2 { // the second time in memory that was used before
			col.begin(c.element)
			c.fill(&col)
			if got := col.encoded(); !bytes.Equal(got, want) {
				t.Errorf("%s:\n%x, but the driver\n%x", name, got, want)
			}
		}
	}
}
