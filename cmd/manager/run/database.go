package run

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/postgres"
)

// openDatabase opens the database for a command that runs beside the operator. It fails if the schema is not
// the one that this binary knows.
func openDatabase(ctx context.Context, c Config) (*pgxpool.Pool, error) {
	pool, err := postgres.Open(ctx, postgres.Config{URL: string(c.DatabaseURL), MaxConns: 2})
	if err != nil {
		return nil, err
	}
	if err := postgres.CheckSchema(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}
