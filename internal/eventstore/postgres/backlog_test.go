package postgres_test

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// blocks is how many blocks of the database a statement touches.
func blocks(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) int {
	t.Helper()
	var plan []byte
	if err := pool.QueryRow(context.Background(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+sql, args...).Scan(&plan); err != nil {
		t.Fatal(err)
	}
	var explained []struct {
		Plan struct {
			Hit  int     `json:"Shared Hit Blocks"`
			Read int     `json:"Shared Read Blocks"`
			Rows float64 `json:"Actual Rows"` // whole before PostgreSQL 18
		}
	}
	if err := json.Unmarshal(plan, &explained); err != nil || len(explained) != 1 {
		t.Fatalf("%v: %s", err, plan)
	}
	if explained[0].Plan.Rows == 0 {
		t.Errorf("nothing was read: %s", plan)
	}
	return explained[0].Plan.Hit + explained[0].Plan.Read
}

// TestTheFirstPageOfALongBacklogDoesNotReadTheBacklog has readers that have seen a little, and then nothing for long.
func TestTheFirstPageOfALongBacklogDoesNotReadTheBacklog(t *testing.T) {
	t.Parallel()
	pool := open(t, throwaway.Database(t), nil)
	store := storepg.New(pool)
	text := make([]byte, 1500) // about five rows to a block
	some := func() json.RawMessage {
		for i := range text {
			text[i] = byte('a' + rand.IntN(26))
		}
		return json.RawMessage(`"` + string(text) + `"`)
	}
	fill := func(appends int) {
		t.Helper()
		for range appends {
			a := eventstore.Append{Stream: "order-" + uuid.NewString()}
			for range 100 {
				e := event()
				e.Data = some()
				a.Events = append(a.Events, e)
				a.Messages = append(a.Messages, eventstore.Message{ID: e.ID, Type: "Happened", Key: "k", Data: e.Data})
			}
			if _, err := store.Append(t.Context(), a); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill(1)
	page, err := store.ReadAll(t.Context(), eventstore.Checkpoint{}, eventstore.Filter{}, 1000)
	if err != nil || page.More {
		t.Fatalf("more %v, %v", page.More, err)
	}
	fill(50)
	if _, err := pool.Exec(t.Context(), `VACUUM ANALYZE`); err != nil {
		t.Fatal(err)
	}
	c := page.Next
	for table, read := range map[string]string{
		"event_store":   `SELECT * FROM read_events($1, '{}', $2::text::xid8, $3, 0, $4, 100, NULL, NULL, NULL, NULL)`,
		"outbox_events": `SELECT * FROM read_outbox($1, '{}', $2::text::xid8, $3, 0, $4, 100, 0, 1, NULL, NULL)`,
	} {
		var all int // of the table, or of its partitions
		if err := pool.QueryRow(t.Context(), `SELECT (pg_relation_size($1::text::regclass) + coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree($1::text::regclass)), 0))::integer / 8192`, table).Scan(&all); err != nil {
			t.Fatal(err)
		}
		blocks(t, pool, read, c.Done.Epoch, strconv.FormatUint(c.Done.Max, 10), c.Floor, c.Floor+20000) // which reads the catalogs too
		touched := blocks(t, pool, read, c.Done.Epoch, strconv.FormatUint(c.Done.Max, 10), c.Floor, c.Floor+20000)
		t.Logf("a page of %s touches %d blocks; the backlog has %d", table, touched, all)
		if touched > all/3 {
			t.Errorf("a page of 100 of %s touches %d blocks; the whole backlog has %d", table, touched, all)
		}
	}
}
