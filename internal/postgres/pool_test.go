package postgres_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

func TestConnectionsCarryTheirNameAndTheirLimits(t *testing.T) {
	t.Parallel()
	url := throwaway.EmptyDatabase(t)
	tests := map[string]struct {
		config postgres.Config
		want   [4]string // application_name, statement_timeout, lock_timeout, idle_in_transaction_session_timeout
		conns  int32
	}{
		"by default":         {postgres.Config{URL: url}, [4]string{"saga-operator", "30s", "10s", "30s"}, 16},
		"as configured":      {postgres.Config{URL: url, ApplicationName: "bench", MaxConns: 3, StatementTimeout: 1500 * time.Millisecond, LockTimeout: time.Nanosecond, IdleInTxTimeout: -1}, [4]string{"bench", "1500ms", "1ms", "0"}, 3},
		"as the URL says it": {postgres.Config{URL: url + "&application_name=url&statement_timeout=7s&pool_max_conns=2", ApplicationName: "config", MaxConns: 3, StatementTimeout: time.Second}, [4]string{"url", "7s", "10s", "30s"}, 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := open(t, tt.config)
			var got [4]string
			err := pool.QueryRow(t.Context(), `SELECT current_setting('application_name'), current_setting('statement_timeout'),
				current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')`).Scan(&got[0], &got[1], &got[2], &got[3])
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("the server sees %q, want %q", got, tt.want)
			}
			if n := pool.Config().MaxConns; n != tt.conns {
				t.Errorf("the pool holds %d connections, want %d", n, tt.conns)
			}
		})
	}
}

func TestAPoolOpensWhileTheDatabaseIsDown(t *testing.T) {
	t.Parallel()
	pool := open(t, postgres.Config{URL: "postgres://saga@127.0.0.1:1/saga?sslmode=disable"})
	err := postgres.CheckSchema(t.Context(), pool)
	if err == nil || postgres.Classify(err) != postgres.Unavailable {
		t.Errorf("the check says %v, want an error of class unavailable", err)
	}
}

func TestABadURLIsRefusedWithoutShowingItsPassword(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "postgres://saga:s3cret@host:port/saga", "host=h password=s3cret sslmode=perhaps"} {
		_, err := postgres.Open(t.Context(), postgres.Config{URL: url})
		if err == nil {
			t.Errorf("%q was accepted", url)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func open(t *testing.T, c postgres.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}
