package postgres_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// dumper finds a directory with pg_dump and psql that can read a server of a major version.
func dumper(t *testing.T, major int) string {
	t.Helper()
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	more, _ := filepath.Glob("/usr/pgsql-*/bin")
	brew, _ := filepath.Glob("/opt/homebrew/opt/postgresql@*/bin")
	dirs = slices.Concat([]string{os.Getenv("POSTGRES_BIN")}, dirs, more, brew)
	if path, err := exec.LookPath("pg_dump"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	number := regexp.MustCompile(`\(PostgreSQL\) (\d+)`)
	for _, dir := range dirs {
		out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "pg_dump"), "--version").Output()
		match := number.FindSubmatch(out)
		if _, noPSQL := os.Stat(filepath.Join(dir, "psql")); err != nil || match == nil || noPSQL != nil {
			continue
		}
		if has, err := strconv.Atoi(string(match[1])); err == nil && has >= major {
			return dir
		}
	}
	t.Skipf("no pg_dump and psql of PostgreSQL %d or later here, to dump the server with", major)
	return ""
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(name), err, out)
	}
}

// entered opens a database as the operator does, with more patience.
func entered(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, StatementTimeout: time.Hour, LockTimeout: time.Hour, IdleInTxTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// transactionID draws the next one.
func transactionID(t *testing.T, pool *pgxpool.Pool) (id int64) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// before is a database of which a dump was made, and its readers.
type before struct {
	done, middle, running eventstore.Checkpoint // at an end; in the middle of a window; at an end while a transaction ran
	read                  map[string][]uuid.UUID
	all                   []uuid.UUID // every event that the dump has
	token                 eventstore.Token
	transaction           int64
}

func ids(events []eventstore.Recorded) []uuid.UUID {
	var all []uuid.UUID
	for i := range events {
		all = append(all, events[i].ID)
	}
	return all
}

// live fills a database in which much has happened before.
func live(t *testing.T, pool *pgxpool.Pool) *before {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$`); err != nil {
		t.Fatal(err)
	}
	store, b := storepg.New(pool), &before{read: map[string][]uuid.UUID{}}
	add := func(stream string, n int) {
		t.Helper()
		for range n {
			done, err := store.Append(t.Context(), eventstore.Append{Stream: stream, Expected: eventstore.AnyVersion, Events: []eventstore.Event{event(), event()}})
			if err != nil {
				t.Fatal(err)
			}
			b.token = done.Token
		}
	}
	read := func(from eventstore.Checkpoint, limit int) eventstore.Page {
		t.Helper()
		page, err := store.ReadAll(t.Context(), from, eventstore.Filter{}, limit)
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	add("s-1", 5)
	late, never := beginDrawn(t, pool), beginDrawn(t, pool)
	for _, tx := range []storepg.Querier{late, never} {
		if _, err := storepg.AppendAll(t.Context(), tx, []eventstore.Append{{Stream: "late-" + uuid.NewString(), Events: []eventstore.Event{event()}}}); err != nil {
			t.Fatal(err)
		}
	}
	add("s-1", 2)
	running := read(eventstore.Checkpoint{}, 100)
	b.running, b.read["running"] = running.Next, ids(running.Events)
	if len(running.Next.Done.Running) < 2 { // the server's own housekeeping may be about too
		t.Fatalf("the view knows of %v running transactions, want 2", running.Next.Done.Running)
	}
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	add("s-2", 3)
	middle := read(running.Next, 4)
	b.middle, b.read["middle"] = middle.Next, slices.Concat(ids(running.Events), ids(middle.Events))
	if middle.Next.Until == nil {
		t.Fatal("the reader is not in the middle of a window")
	}
	add("s-1", 2)
	done := read(eventstore.Checkpoint{}, 100)
	b.done, b.read["done"] = done.Next, ids(done.Events)
	add("s-2", 2)
	b.all = ids(read(eventstore.Checkpoint{}, 100).Events)
	b.transaction = transactionID(t, pool)
	return b
}

// follow reads from a checkpoint to the end.
func follow(t *testing.T, store eventstore.Store, from eventstore.Checkpoint) (got []uuid.UUID) {
	t.Helper()
	versions := map[string]int64{}
	for more := true; more; {
		page, err := store.ReadAll(t.Context(), from, eventstore.Filter{}, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			if last, ok := versions[e.Stream]; ok && e.Version != last+1 {
				t.Errorf("version %d of %s follows %d", e.Version, e.Stream, last)
			}
			versions[e.Stream] = e.Version
		}
		got, from, more = append(got, ids(page.Events)...), page.Next, page.More
	}
	return got
}

// same compares events, whatever their order.
func same(t *testing.T, want, got []uuid.UUID) {
	t.Helper()
	byID := func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }
	want, got = slices.SortedFunc(slices.Values(want), byID), slices.SortedFunc(slices.Values(got), byID)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("of %d events %d came:\n%s", len(want), len(got), diff)
	}
}

func TestReadersGoOnWhereADumpIsRestoredIntoAClusterWhoseTransactionsBeginAgain(t *testing.T) {
	t.Parallel()
	old := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, _, err := old.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := entered(t, url)
	bin := dumper(t, count(t, pool, `SELECT current_setting('server_version_num')::int / 10000`))
	b := live(t, pool)
	dump := filepath.Join(t.TempDir(), "dump.sql")
	command(t, filepath.Join(bin, "pg_dump"), "--no-owner", "--file", dump, "--dbname", url)
	fresh := throwaway.NewServer(t, throwaway.Options{Own: true})
	restored := func(t *testing.T) string {
		t.Helper()
		url, _, err := fresh.NewEmptyDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		command(t, filepath.Join(bin, "psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--single-transaction", "--file", dump, "--dbname", url)
		return url
	}
	appendOn := func(t *testing.T, store eventstore.Store) (made []uuid.UUID, last eventstore.Token) {
		t.Helper()
		for i := range 8 {
			e := event()
			done, err := store.Append(t.Context(), eventstore.Append{Stream: fmt.Sprintf("s-%d", 1+i%3), Expected: eventstore.AnyVersion, Events: []eventstore.Event{e}})
			if err != nil {
				t.Fatal(err)
			}
			made, last = append(made, e.ID), done.Token
		}
		return made, last
	}
	t.Run("entered", func(t *testing.T) {
		pool := entered(t, restored(t))
		store := storepg.New(pool)
		if id := transactionID(t, pool); id >= b.transaction {
			t.Fatalf("transaction %d of the fresh cluster is not below the old one's %d", id, b.transaction)
		}
		made, last := appendOn(t, store)
		if n := count(t, pool, `SELECT count(*) FROM store_clusters`); n != 2 || last.Epoch != 2 {
			t.Errorf("%d clusters; the appends are of epoch %d, want 2", n, last.Epoch)
		}
		if b.done.Sees(last) || b.done.Sees(b.token) {
			t.Error("the old checkpoint sees what came after it")
		}
		want := slices.Concat(b.all, made)
		for name, from := range map[string]eventstore.Checkpoint{"done": b.done, "middle": b.middle, "running": b.running, "none": {}} {
			t.Run("a reader at "+name, func(t *testing.T) { same(t, want, append(follow(t, store, from), b.read[name]...)) })
		}
	})
	t.Run("entered by many connections at once", func(t *testing.T) {
		url := restored(t)
		failed := make(chan error, 8)
		for range cap(failed) {
			pool := entered(t, url)
			go func() { failed <- pool.Ping(t.Context()) }()
		}
		for range cap(failed) {
			if err := <-failed; err != nil {
				t.Error(err)
			}
		}
		if n := count(t, entered(t, url), `SELECT count(*) FROM store_clusters`); n != 2 {
			t.Errorf("%d clusters, want 2", n)
		}
	})
	t.Run("not entered, a reader loses what is appended", func(t *testing.T) {
		store := storepg.New(open(t, restored(t), nil))
		made, _ := appendOn(t, store)
		for _, id := range follow(t, store, b.done) {
			if slices.Contains(made, id) {
				t.Error("it did not: this test does not show what enter_cluster is for")
			}
		}
	})
}
