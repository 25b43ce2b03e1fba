// Package postgres is what every user of the database shares: the connection
// pool, the schema and its version, and what an error means.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// What Open assumes where neither Config nor the URL says anything.
const (
	DefaultMaxConns         = 16
	DefaultConnectTimeout   = 5 * time.Second
	DefaultStatementTimeout = 30 * time.Second
	DefaultLockTimeout      = 10 * time.Second
	DefaultIdleInTxTimeout  = 30 * time.Second

	defaultApplicationName = "saga-operator"
)

// Config says how to reach the database. Only URL is required, and what it says
// itself wins over the other fields: application_name, connect_timeout,
// statement_timeout, lock_timeout, idle_in_transaction_session_timeout,
// pool_max_conns.
type Config struct {
	// URL is a connection URL or keyword/value string, as libpq takes it. What
	// it leaves out comes from the PG… variables of the environment.
	URL string
	// ApplicationName is what pg_stat_activity calls the connections. Default
	// saga-operator.
	ApplicationName string
	// MaxConns is the most connections that are open at once. Default 16.
	MaxConns int32
	// ConnectTimeout bounds one attempt to connect to one address. Default 5 s.
	ConnectTimeout time.Duration
	// StatementTimeout, LockTimeout and IdleInTxTimeout bound one statement,
	// one wait for a lock, and a pause within a transaction; the server
	// enforces them in milliseconds. Defaults 30 s, 10 s and 30 s. A negative
	// one is left to the server's own setting, which a connection pooler that
	// refuses startup parameters needs.
	StatementTimeout, LockTimeout, IdleInTxTimeout time.Duration
}

// Open makes a pool. It does not connect: a database that is down is found by
// the first query or by CheckSchema, and comes back without a restart. An error
// means that the configuration cannot work.
func Open(ctx context.Context, c Config) (*pgxpool.Pool, error) {
	config, err := c.parse()
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("making the database connection pool: %w", err)
	}
	return pool, nil
}

func (c Config) parse() (*pgxpool.Config, error) {
	if c.URL == "" {
		return nil, fmt.Errorf("the database URL is empty; set it to, for example, postgres://saga@localhost:5432/saga")
	}
	config, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err) // pgx masks the password
	}
	if !strings.Contains(c.URL, "pool_max_conns") {
		config.MaxConns = cmp.Or(c.MaxConns, DefaultMaxConns)
	}
	config.MaxConnLifetime = 30 * time.Minute
	config.MaxConnLifetimeJitter = 5 * time.Minute
	config.MaxConnIdleTime = 5 * time.Minute
	config.HealthCheckPeriod = 15 * time.Second
	config.PingTimeout = 5 * time.Second

	conn := config.ConnConfig
	if !strings.Contains(c.URL, "connect_timeout") {
		conn.ConnectTimeout = cmp.Or(c.ConnectTimeout, DefaultConnectTimeout)
	}
	// A server whose machine vanished does not close its connections: after a
	// failover these probes are what ends them, in half a minute.
	conn.DialFunc = (&net.Dialer{Timeout: conn.ConnectTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3,
	}}).DialContext

	params := conn.RuntimeParams
	if params["application_name"] == "" {
		params["application_name"] = cmp.Or(c.ApplicationName, defaultApplicationName)
	}
	bound(params, "statement_timeout", c.StatementTimeout, DefaultStatementTimeout)
	bound(params, "lock_timeout", c.LockTimeout, DefaultLockTimeout)
	bound(params, "idle_in_transaction_session_timeout", c.IdleInTxTimeout, DefaultIdleInTxTimeout)
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := enterCluster(ctx, conn)
		return err
	}
	return config, nil
}

// enterCluster tells the event store which database cluster it is in: restored from a dump into another one, it finds transaction ids that begin again, and readers
// of the order of all events have to know. False says that there was nobody to tell: the database has no schema yet, or is being restored, or is a standby, which appends nothing.
func enterCluster(ctx context.Context, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (bool, error) {
	var epoch *int32
	err := db.QueryRow(ctx, "SELECT enter_cluster()", pgx.QueryExecModeSimpleProtocol).Scan(&epoch)
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "42883", "42P01", "25006": // undefined_function, undefined_table, read_only_sql_transaction
			return false, nil
		}
	}
	return epoch != nil, err
}

func bound(params map[string]string, name string, value, standard time.Duration) {
	if _, set := params[name]; set || value < 0 {
		return
	}
	// Zero would mean no limit to the server: round up.
	milliseconds := (cmp.Or(value, standard) + time.Millisecond - 1) / time.Millisecond
	params[name] = strconv.FormatInt(int64(milliseconds), 10)
}
