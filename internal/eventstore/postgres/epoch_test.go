package postgres_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// TestAConnectionOlderThanTheRestoredSchemaAppendsInThisCluster has an operator wait, connected, while somebody restores a dump of another cluster.
func TestAConnectionOlderThanTheRestoredSchemaAppendsInThisCluster(t *testing.T) {
	t.Parallel()
	url := throwaway.EmptyDatabase(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 1, StatementTimeout: time.Hour, LockTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := postgres.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	somebody, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = somebody.Close(t.Context()) }()
	exec := func(sql string) {
		t.Helper()
		if _, err := somebody.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`TRUNCATE store_clusters`) // as far as the dump has been restored
	if err := postgres.CheckSchema(t.Context(), pool); err == nil {
		t.Error("a database that is being restored was found ready")
	}
	exec(`INSERT INTO store_clusters (epoch, system_identifier) VALUES (1, 4711)`) // its rest
	if err := postgres.CheckSchema(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	done, err := storepg.New(pool).Append(t.Context(), eventstore.Append{Stream: "s-1", Events: []eventstore.Event{event()}})
	if err != nil {
		t.Fatal(err)
	}
	if done.Token.Epoch != 2 {
		t.Errorf("the append is of epoch %d, that of the cluster of the dump; want 2", done.Token.Epoch)
	}
}
