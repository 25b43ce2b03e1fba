package postgres_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestAppendsWorkHoweverTheConnectionExecutesStatements(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	open(t, url, nil) // migrates
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec"} {
		pool, err := pgxpool.New(context.Background(), url+"&default_query_exec_mode="+mode)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		uid := uuid.New()
		if _, err := storepg.New(pool).Append(t.Context(), move("saga-"+uid.String(), uid, 0)); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
}
