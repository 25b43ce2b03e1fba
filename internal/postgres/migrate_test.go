package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// release is a binary's migrations up to a version: a table each.
func release(version int) fstest.MapFS {
	files := fstest.MapFS{"embed.go": {Data: []byte("package migrations")}}
	for v := 1; v <= version; v++ {
		files[fmt.Sprintf("%04d_t%d.sql", v, v)] = &fstest.MapFile{Data: fmt.Appendf(nil, "-- +goose Up\nCREATE TABLE t%d ();\n", v)}
	}
	return files
}

func TestTheBinarysOwnMigrationsRunAsAnOrdinaryRole(t *testing.T) {
	t.Parallel()
	url := throwaway.EmptyDatabase(t)
	pool := open(t, postgres.Config{URL: url})
	if err := postgres.CheckSchema(t.Context(), pool); !errors.Is(err, postgres.ErrSchemaOlder) {
		t.Errorf("before: %v, want %v", err, postgres.ErrSchemaOlder)
	}
	for range 2 { // the second changes nothing
		if err := postgres.Migrate(t.Context(), url); err != nil {
			t.Fatal(err)
		}
	}
	if err := postgres.CheckSchema(t.Context(), pool); err != nil {
		t.Errorf("after: %v", err)
	}
	s, err := postgres.Status(t.Context(), pool)
	if err != nil || s.Current != s.Known || s.Known == 0 {
		t.Errorf("the status is %+v, %v", s, err)
	}
}

func TestOperatorsThatStartAtOnceMigrateOnce(t *testing.T) {
	t.Parallel()
	url := throwaway.EmptyDatabase(t)
	files := release(3)
	files["0004_slow.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nSELECT pg_sleep(0.2);\nCREATE TABLE slow ();\n")}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = postgres.MigrateFS(t.Context(), url, files) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	pool := open(t, postgres.Config{URL: url})
	var rows int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM saga_migrations WHERE version_id > 0").Scan(&rows); err != nil {
		t.Fatal(err)
	}
	if rows != 4 {
		t.Errorf("%d migrations are recorded, want 4", rows)
	}
}

func TestASchemaOfAnotherReleaseIsRefusedWithWhatToDo(t *testing.T) {
	t.Parallel()
	url := throwaway.EmptyDatabase(t)
	if err := postgres.MigrateFS(t.Context(), url, release(2)); err != nil {
		t.Fatal(err)
	}
	pool := open(t, postgres.Config{URL: url})
	check := func(version int) error { return postgres.CheckFS(t.Context(), pool, release(version)) }

	if err := check(2); err != nil {
		t.Errorf("the same release: %v", err)
	}
	if err := check(3); !errors.Is(err, postgres.ErrSchemaOlder) || !strings.Contains(err.Error(), "manager migrate") {
		t.Errorf("a newer binary: %v", err)
	}
	if err := check(1); !errors.Is(err, postgres.ErrSchemaNewer) || !strings.Contains(err.Error(), "upgrade this binary") {
		t.Errorf("an older binary: %v", err)
	}
	if err := postgres.MigrateFS(t.Context(), url, release(1)); !errors.Is(err, postgres.ErrSchemaNewer) {
		t.Errorf("an older binary migrates: %v", err)
	}
	if err := postgres.MigrateFS(t.Context(), url, release(3)); err != nil {
		t.Errorf("a newer binary migrates: %v", err)
	}
	if s, err := postgres.StatusFS(t.Context(), pool, release(3)); err != nil || s != (postgres.Schema{Current: 3, Known: 3}) {
		t.Errorf("the status is %+v, %v", s, err)
	}
}

func TestAMigrationThatFailsLeavesTheVersionBeforeIt(t *testing.T) {
	t.Parallel()
	url := throwaway.EmptyDatabase(t)
	files := release(1)
	files["0002_broken.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE half ();\nSELECT 1/0;\n")}
	err := postgres.MigrateFS(t.Context(), url, files)
	if err == nil || postgres.Classify(err) != postgres.Permanent || !strings.Contains(err.Error(), "0002_broken.sql") {
		t.Errorf("the error is %v, want a permanent one that names the file", err)
	}
	pool := open(t, postgres.Config{URL: url})
	var tables int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_tables WHERE tablename = 'half'").Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables of the failed migration are there, %v", tables, err)
	}
	if s, err := postgres.StatusFS(t.Context(), pool, files); err != nil || s.Current != 1 {
		t.Errorf("the status is %+v, %v", s, err)
	}
}
