package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/vextrus/saga-operator/migrations"
)

const (
	// versionTable records the migrations that a database has had.
	versionTable = "saga_migrations"
	// migrationLock is the advisory lock under which migrations run.
	migrationLock = 7361676131 // "saga1" in hexadecimal digits
	// A migration of a large table may take a while; who waits for it polls
	// every second for an hour at most.
	lockPollSeconds, lockPolls = 1, 3600
)

var (
	// ErrSchemaOlder says that migrations are missing.
	ErrSchemaOlder = errors.New("the database schema is older than this binary")
	// ErrSchemaNewer says that a newer binary has migrated the database.
	ErrSchemaNewer = errors.New("the database schema is newer than this binary")
)

// Schema is how far a database is migrated.
type Schema struct {
	Current int64 // the database's version; 0: it has never been migrated
	Known   int64 // the version of the migrations in this binary
}

// Check returns nil if the versions are the same, else ErrSchemaOlder or
// ErrSchemaNewer with what to do.
func (s Schema) Check() error {
	switch {
	case s.Current < s.Known:
		return fmt.Errorf("%w (version %d, needed %d): run `manager migrate`", ErrSchemaOlder, s.Current, s.Known)
	case s.Current > s.Known:
		return fmt.Errorf("%w (version %d, known %d): a newer operator has migrated; upgrade this binary", ErrSchemaNewer, s.Current, s.Known)
	default:
		return nil
	}
}

// Migrate brings the database that the URL names to the version of this binary,
// one transaction per migration. Any number of callers may run at once: they
// take turns under a session lock, so the URL must lead to the server itself,
// not to a pooler in transaction mode. The role needs to own the schema, no
// more. A database that is newer is left alone: ErrSchemaNewer.
func Migrate(ctx context.Context, url string) error {
	return migrate(ctx, url, migrations.FS)
}

func migrate(ctx context.Context, url string, files fs.FS) (err error) {
	pool, err := openForMigration(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { err = errors.Join(err, db.Close()) }()

	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(migrationLock), lock.WithLockTimeout(lockPollSeconds, lockPolls))
	if err != nil {
		return fmt.Errorf("preparing the migration lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versionTable), goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		conn := pool.Config().ConnConfig
		what := "migrating"
		var partial *goose.PartialError
		if errors.As(err, &partial) && partial.Failed != nil {
			what = "running migration " + partial.Failed.Source.Path + " on"
		}
		return fmt.Errorf("%s database %s as role %s: %w", what, conn.Database, conn.User, err)
	}
	return checkSchema(ctx, pool, files)
}

// openForMigration makes a pool whose statements may take their time, but do
// not queue up behind a lock for long: whatever else uses the table would wait
// behind them.
func openForMigration(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := Config{URL: url, ApplicationName: "saga-operator-migrate", StatementTimeout: -1}.parse()
	if err != nil {
		return nil, err
	}
	config.ConnConfig.RuntimeParams["statement_timeout"] = "0"
	config.MinConns, config.MinIdleConns, config.MaxConns = 0, 0, 2
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting to migrate: %w", err)
	}
	return pool, nil
}

// Status says how far the pool's database is migrated. It writes nothing.
func Status(ctx context.Context, pool *pgxpool.Pool) (Schema, error) {
	return status(ctx, pool, migrations.FS)
}

// CheckSchema returns nil if the pool's database is exactly at the version that
// this binary knows, else ErrSchemaOlder or ErrSchemaNewer, or why it could not
// be asked. Two small queries: fit for a readiness check. Nothing is appended
// before it: connections may be older than a schema that was restored from a
// dump of another cluster, and the store has to know that it is in this one.
func CheckSchema(ctx context.Context, pool *pgxpool.Pool) error {
	err := checkSchema(ctx, pool, migrations.FS)
	if err != nil && !errors.Is(err, ErrSchemaNewer) {
		return err
	}
	entered, wrong := enterCluster(ctx, pool)
	switch {
	case wrong != nil:
		return fmt.Errorf("telling the event store which database cluster it is in: %w", wrong)
	case !entered && err == nil:
		return errors.New("the database is a standby, or is being restored from a dump and not complete; it is looked at again")
	}
	return err
}

func checkSchema(ctx context.Context, pool *pgxpool.Pool, files fs.FS) error {
	s, err := status(ctx, pool, files)
	if err != nil {
		return err
	}
	return s.Check()
}

func status(ctx context.Context, pool *pgxpool.Pool, files fs.FS) (s Schema, err error) {
	if s.Known, err = latest(files); err != nil {
		return s, err
	}
	err = pool.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+versionTable+" WHERE is_applied").Scan(&s.Current)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("asking the database for its schema version: %w", err)
	}
	return s, nil
}

// latest is the version of the last migration.
func latest(files fs.FS) (int64, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return 0, fmt.Errorf("listing the migrations: %w", err)
	}
	var last int64
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return 0, fmt.Errorf("migration %s: %w", name, err)
		}
		last = max(last, version)
	}
	return last, nil
}
