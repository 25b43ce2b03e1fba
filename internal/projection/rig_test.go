package projection_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/projection"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		os.Exit(child(url))
	}
	os.Exit(throwaway.Main(m))
}

// The read model of most tests: each event once, and their sum by stream. A second insert of an event fails, so an event that is handled twice is heard of.
const tables = `
CREATE TABLE seen_rows (generation integer, event_id uuid, stream text NOT NULL, version bigint NOT NULL, PRIMARY KEY (generation, event_id));
CREATE TABLE sums_rows (generation integer, stream text, version bigint NOT NULL CHECK (version > 0), sum bigint NOT NULL, PRIMARY KEY (generation, stream));
CREATE VIEW sums AS SELECT stream, version, sum FROM sums_rows WHERE generation = (SELECT generation FROM projections WHERE name = 'sums' AND status = 'live');
`

// fact is what the events of these tests carry.
type fact struct {
	N int `json:"n"`
}

func decode(e eventstore.Recorded) (any, error) {
	var f fact
	err := json.Unmarshal(e.Data, &f)
	return f, err
}

// add is the handler of most tests. It refuses a stream whose events come out of order.
func add(ctx context.Context, tx *projection.Tx, e projection.Event[fact]) error {
	if err := tx.Queue(ctx, `INSERT INTO seen_rows (generation, event_id, stream, version) VALUES ($1, $2, $3, $4)`, tx.Generation(), e.ID, e.Stream, e.Version); err != nil {
		return err
	}
	return tx.Queue(ctx, `INSERT INTO sums_rows AS s (generation, stream, version, sum) VALUES ($1, $2, $3, $4)
		ON CONFLICT (generation, stream) DO UPDATE SET sum = s.sum + $4, version = CASE WHEN s.version = $3 - 1 THEN $3 ELSE -1 END`,
		tx.Generation(), e.Stream, e.Version, e.Fact.N)
}

func sums(version int) *projection.Definition {
	return projection.Define("sums", version, "account").Tables("seen_rows", "sums_rows").On("Added", projection.For(decode, add))
}

type rig struct {
	t     *testing.T
	url   string
	pool  *pgxpool.Pool
	store *storepg.Gathering
}

// openPool opens a database with all the patience that a busy machine needs: what waits in these tests is let go by them.
func openPool(ctx context.Context, url string) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: url, MaxConns: 12, StatementTimeout: time.Hour, LockTimeout: time.Hour, IdleInTxTimeout: time.Hour})
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, url: throwaway.Database(t)}
	var err error
	if r.pool, err = openPool(context.Background(), r.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	r.exec(tables)
	r.store = storepg.NewGathering(r.pool, 2)
	return r
}

func (r *rig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.pool.Exec(context.Background(), sql, args...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) int(sql string, args ...any) (n int64) {
	r.t.Helper()
	if err := r.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// run starts a runner; it has ended when the returned function has.
func (r *rig) run(o projection.Options, defs ...*projection.Definition) (*projection.Runner, func()) {
	r.t.Helper()
	if o.Pool == nil {
		o.Pool = r.pool
	}
	if o.Store == nil {
		o.Store = storepg.New(o.Pool)
	}
	if o.Patience == 0 {
		o.Patience = time.Hour
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	runner, err := projection.NewRunner(o, defs...)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = runner.Run(ctx) })
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.t.Cleanup(stop)
	return runner, stop
}

func event(typ string, n int) eventstore.Event {
	return eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: typ, SchemaVersion: 1, Data: json.RawMessage(fmt.Sprintf(`{"n":%d}`, n))}
}

// append adds one event of each number to a stream.
func (r *rig) append(stream string, numbers ...int) eventstore.Appended {
	r.t.Helper()
	a := eventstore.Append{Stream: stream, Expected: eventstore.AnyVersion}
	for _, n := range numbers {
		a.Events = append(a.Events, event("Added", n))
	}
	return r.do(a)
}

func (r *rig) do(a eventstore.Append) eventstore.Appended {
	r.t.Helper()
	done, err := r.store.Append(context.Background(), a)
	if err != nil {
		r.t.Fatal(err)
	}
	return done
}

// fill appends so many events, spread over some streams.
func (r *rig) fill(streams, each int) {
	r.t.Helper()
	for s := range streams {
		numbers := make([]int, each)
		for i := range numbers {
			numbers[i] = i + s
		}
		r.append(fmt.Sprintf("account-%d", s), numbers...)
	}
}

// eventually waits until something is so.
func (r *rig) eventually(what string, is func() error) {
	r.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: %v", what, err)
		}
		pause(5 * time.Millisecond)
	}
}

func pause(d time.Duration) { <-time.After(d) }

// statements are those that a pool has sent.
type statements struct {
	mu  sync.Mutex
	all []string
}

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, q.SQL)
	return ctx
}
func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// count is how many began so.
func (s *statements) count(beginning string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sql := range s.all {
		if strings.HasPrefix(sql, beginning) {
			n++
		}
	}
	return n
}

// traced is another pool like the rig's own.
func (r *rig) traced(s *statements) *pgxpool.Pool {
	r.t.Helper()
	config := r.pool.Config()
	config.ConnConfig.Tracer = s
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(pool.Close)
	return pool
}

// hears returns a logger, and a channel that is closed once it has been told something.
func hears(what string) (*slog.Logger, <-chan struct{}) {
	told := make(chan struct{})
	once := sync.OnceFunc(func() { close(told) })
	return slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.MessageKey && a.Value.String() == what {
			once()
		}
		return a
	}})), told
}

// same compares the read model with a fold of all events from scratch.
func (r *rig) same() error {
	want := map[string]int64{}
	rows, err := r.pool.Query(context.Background(), `SELECT stream, sum((data->>'n')::bigint)::bigint FROM event_store WHERE type = 'Added' AND stream LIKE 'account-%' GROUP BY stream`)
	if err != nil {
		return err
	}
	var stream string
	var sum int64
	if _, err := pgx.ForEachRow(rows, []any{&stream, &sum}, func() error { want[stream] = sum; return nil }); err != nil {
		return err
	}
	rows, err = r.pool.Query(context.Background(), `SELECT stream, sum FROM sums`)
	if err != nil {
		return err
	}
	got := 0
	_, err = pgx.ForEachRow(rows, []any{&stream, &sum}, func() error {
		got++
		if want[stream] != sum {
			return fmt.Errorf("the sum of %s is %d, want %d", stream, sum, want[stream])
		}
		return nil
	})
	if err == nil && got != len(want) {
		err = fmt.Errorf("%d of %d streams are in the read model", got, len(want))
	}
	return err
}

// states returns the generations of a projection by status.
func (r *rig) states(name string) map[string]projection.State {
	r.t.Helper()
	all, err := projection.List(context.Background(), r.pool)
	if err != nil {
		r.t.Fatal(err)
	}
	found := map[string]projection.State{}
	for _, s := range all {
		if s.Name == name {
			found[s.Status] = s
		}
	}
	return found
}

// stopped waits until a projection has stopped at an event, and returns it.
func (r *rig) stopped(name string) *projection.Failure {
	r.t.Helper()
	var failure *projection.Failure
	r.eventually(name+" stops", func() error {
		if failure = r.states(name)["live"].Failure; failure == nil {
			return fmt.Errorf("it has not stopped: %+v", r.states(name))
		}
		return nil
	})
	return failure
}
