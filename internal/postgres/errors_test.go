package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestErrorsAreClassifiedByTheirSQLState(t *testing.T) {
	t.Parallel()
	for state, want := range map[string]postgres.Class{
		"23505": postgres.Conflict, "23P01": postgres.Conflict, "40001": postgres.Conflict, "40P01": postgres.Conflict, "40002": postgres.Conflict,
		"08006": postgres.Unavailable, "08P01": postgres.Unavailable, "25006": postgres.Unavailable, "25P03": postgres.Unavailable,
		"53100": postgres.Unavailable, "53200": postgres.Unavailable, "53300": postgres.Unavailable, "55P03": postgres.Unavailable,
		"57014": postgres.Unavailable, "57P01": postgres.Unavailable, "57P02": postgres.Unavailable, "57P03": postgres.Unavailable,
		"57P05": postgres.Unavailable, "58030": postgres.Unavailable, "40003": postgres.Unavailable,
		"22001": postgres.Permanent, "22P02": postgres.Permanent, "23502": postgres.Permanent, "23503": postgres.Permanent, "23514": postgres.Permanent,
		"25P02": postgres.Permanent, "28P01": postgres.Permanent, "3D000": postgres.Permanent, "42501": postgres.Permanent, "42601": postgres.Permanent,
		"42P01": postgres.Permanent, "54000": postgres.Permanent, "57P04": postgres.Permanent, "P0001": postgres.Permanent, "XX000": postgres.Permanent,
		"": postgres.Permanent, "4": postgres.Permanent,
	} {
		err := fmt.Errorf("appending: %w", &pgconn.PgError{Code: state})
		if got := postgres.Classify(err); got != want {
			t.Errorf("SQLSTATE %q is %v, want %v", state, got, want)
		}
	}
}

func TestErrorsOfTheDriverAreClassified(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want postgres.Class
	}{
		{io.EOF, postgres.Unavailable},
		{io.ErrUnexpectedEOF, postgres.Unavailable},
		{net.ErrClosed, postgres.Unavailable},
		{pgconn.ErrConnClosed, postgres.Unavailable},
		{&net.OpError{Op: "read", Err: errors.New("connection reset by peer")}, postgres.Unavailable},
		{&net.DNSError{Err: "no such host", IsNotFound: true}, postgres.Unavailable},
		{context.DeadlineExceeded, postgres.Unavailable},
		{context.Canceled, postgres.Canceled},
		{pgx.ErrNoRows, postgres.Permanent},
		{postgres.ErrSchemaNewer, postgres.Permanent},
		{errors.New("cannot scan"), postgres.Permanent},
	} {
		if got := postgres.Classify(fmt.Errorf("loading: %w", tt.err)); got != tt.want {
			t.Errorf("%v is %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestErrorsOfARealServerAreClassified(t *testing.T) {
	t.Parallel()
	pool := open(t, postgres.Config{URL: throwaway.EmptyDatabase(t)})
	run := func(ctx context.Context, statement string) error {
		_, err := pool.Exec(ctx, statement)
		return err
	}
	if err := run(t.Context(), "CREATE TABLE t (id int CONSTRAINT t_pkey PRIMARY KEY); INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancelLate := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelLate()

	duplicate := run(t.Context(), "INSERT INTO t VALUES (1)")
	if got := postgres.Constraint(duplicate); got != "t_pkey" {
		t.Errorf("the violated constraint is %q, want t_pkey", got)
	}
	for name, tt := range map[string]struct {
		err  error
		want postgres.Class
	}{
		"duplicate key":     {duplicate, postgres.Conflict},
		"syntax error":      {run(t.Context(), "SELEKT"), postgres.Permanent},
		"read only":         {run(t.Context(), "BEGIN READ ONLY; DELETE FROM t; COMMIT"), postgres.Unavailable},
		"statement timeout": {run(t.Context(), "SET LOCAL statement_timeout = 1; SELECT pg_sleep(5)"), postgres.Unavailable},
		"canceled":          {run(canceled, "SELECT 1"), postgres.Canceled},
		"deadline":          {run(late, "SELECT pg_sleep(5)"), postgres.Unavailable},
		"terminated":        {run(t.Context(), "SELECT pg_terminate_backend(pg_backend_pid())"), postgres.Unavailable},
	} {
		if tt.err == nil {
			t.Errorf("%s: no error", name)
		} else if got := postgres.Classify(tt.err); got != tt.want {
			t.Errorf("%s: %v is %v, want %v", name, tt.err, got, tt.want)
		}
	}
	pool.Close()
	if err := run(t.Context(), "SELECT 1"); err == nil || postgres.Classify(err) != postgres.Canceled {
		t.Errorf("closed pool: %v, want class canceled", err)
	}
}

func TestAStoppedServerIsUnavailableAndComesBack(t *testing.T) {
	t.Parallel()
	server := throwaway.NewServer(t, throwaway.Options{Own: true})
	pool := open(t, postgres.Config{URL: server.URL(), StatementTimeout: time.Hour})
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := make(chan error, 1)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer conn.Release()
		_, err := conn.Exec(t.Context(), "SELECT pg_sleep(3600)")
		running <- err
	}()
	for runs := false; !runs; {
		if err := pool.QueryRow(t.Context(), "SELECT count(*) > 0 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(3600)'").Scan(&runs); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"a statement that was running": <-running, "a new statement": pool.Ping(t.Context())} {
		if err == nil || postgres.Classify(err) != postgres.Unavailable {
			t.Errorf("%s: %v, want class unavailable", name, err)
		}
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("the pool does not recover: %v", err)
	}
}
