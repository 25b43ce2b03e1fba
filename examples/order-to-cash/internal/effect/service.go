// Package effect is what the services of the example have besides pkg/participant, which keeps the promises of a participant: tables in a schema of their own, a log of calls, faults that are committed on purpose,
// and pages to look at.
package effect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/pkg/participant"
)

const (
	// DefaultTimeout bounds the work for one request, unless SetTimeout says otherwise. It is shorter than the attemptTimeout of the saga.
	DefaultTimeout = 10 * time.Second

	maxBody = 64 << 10
)

// Service is one participant: its effects, and what there is to look at. It is an http.Handler.
type Service struct {
	// Participant is the service's way into pkg/participant, for work that is done later.
	Participant *participant.Service

	schema string
	pool   *pgxpool.Pool
	log    *slog.Logger
	mux    *http.ServeMux
	// timeout bounds the work for one request.
	timeout time.Duration
	faults  faults
	gate    func(order string) time.Duration
	sql     statements
}

// Connect opens a pool on which the tables of a service are found first. timeout is that of the service: what the database itself gives up is given up a little sooner, for a better message.
func Connect(ctx context.Context, url, schema string, connections int32, timeout time.Duration) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("the database URL of %s: %w", schema, err)
	}
	config.MaxConns = connections
	config.ConnConfig.RuntimeParams["search_path"] = schema + ", public"
	tenths := func(n int64) string { return strconv.FormatInt(timeout.Milliseconds()*n/10, 10) }
	for name, value := range map[string]string{
		"application_name": "order-to-cash " + schema, "statement_timeout": tenths(8), "lock_timeout": tenths(5), "idle_in_transaction_session_timeout": tenths(8),
	} {
		if _, set := config.ConnConfig.RuntimeParams[name]; !set {
			config.ConnConfig.RuntimeParams[name] = value
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting %s to the database: %w", schema, err)
	}
	return pool, nil
}

// New makes a service whose tables are in the schema, on a pool of Connect. client is what calls back; nil is participant's own. The service answers GET /healthz, GET /calls, and GET and POST
// /admin/faults; the rest is added by Action, Compensation, Look and Page.
func New(pool *pgxpool.Pool, schema string, client *http.Client, log *slog.Logger) *Service {
	const poll = 50 * time.Millisecond // it is a demonstration, and has a table of a few hundred rows
	log = log.With("service", schema)
	s := &Service{
		Participant: participant.New(pool, participant.Options{MaxBody: maxBody, Timeout: DefaultTimeout, Client: client, Poll: poll, Logger: log}),
		schema:      schema, pool: pool, log: log, mux: http.NewServeMux(), timeout: DefaultTimeout, sql: statementsFor(schema),
	}
	s.Page("GET /healthz", s.healthz)
	s.Page("GET /admin/faults", func(w http.ResponseWriter, _ *http.Request) { Write(w, http.StatusOK, s.faults.get()) })
	s.Page("POST /admin/faults", s.postFaults)
	s.Look("GET /calls", s.sql.shown)
	return s
}

// ServeHTTP makes a Service an http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Pool is the database of the service.
func (s *Service) Pool() *pgxpool.Pool { return s.pool }

// Log is the service's.
func (s *Service) Log() *slog.Logger { return s.log }

// Gate has every effect ask before it begins: a pause other than zero means that the service is not available, and that the caller
// should try again after it. To be set before the first request.
func (s *Service) Gate(gate func(order string) time.Duration) { s.gate = gate }

// SetTimeout has the work for one request take so long at most. To be called before the first request.
func (s *Service) SetTimeout(d time.Duration) { s.timeout, s.Participant.Timeout = d, d }

// SetFaults replaces the faults that the service commits.
func (s *Service) SetFaults(f Faults) error { return s.faults.set(f) }

// Setup creates the schema, the tables of pkg/participant, the log of calls and the tables of the service, where they are missing. ddl is any number of
// statements that may run again. Several processes may call it at once.
func (s *Service) Setup(ctx context.Context, ddl string) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		for _, sql := range []string{
			// A start takes as long as it takes, and waits for those of others: CREATE … IF NOT EXISTS fails when two of them meet.
			"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0",
			"SELECT pg_advisory_xact_lock(hashtextextended('order-to-cash', 0))",
			"CREATE SCHEMA IF NOT EXISTS " + pgx.Identifier{s.schema}.Sanitize(), participant.Schema, s.sql.setup, ddl,
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("creating the schema %s: %w", s.schema, err)
	}
	return nil
}

// Run removes what no saga asks for any more, until ctx is done. Any number of processes may.
func (s *Service) Run(ctx context.Context) error {
	const every, atOnce = time.Hour, 1000
	const old = 90 * 24 * time.Hour // no order takes as long, not even one that waits for a person
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n, err := s.Participant.Sweep(ctx, old, atOnce)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("what is old stays for now", "error", err)
		}
		if n > 0 && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Page adds a handler for something else than an effect.
func (s *Service) Page(pattern string, h http.HandlerFunc) { s.mux.HandleFunc(pattern, h) }

// Look adds a page that shows what a query returns: one value, JSON as text. A wildcard {order} in the pattern is the query's $1. No row
// is 404.
func (s *Service) Look(pattern, query string) {
	byOrder := strings.Contains(pattern, "{order}")
	s.Page(pattern, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), s.timeout)
		defer cancel()
		var args []any
		if byOrder {
			args = append(args, r.PathValue("order"))
		}
		var found string
		err := s.pool.QueryRow(ctx, query, args...).Scan(&found)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			WriteMessage(w, http.StatusNotFound, "there is none")
		case err != nil:
			s.log.Error("looking something up failed", "path", r.URL.Path, "error", err)
			WriteMessage(w, http.StatusInternalServerError, "the database did not answer")
		default:
			Write(w, http.StatusOK, json.RawMessage(found))
		}
	})
}

func (s *Service) healthz(w http.ResponseWriter, r *http.Request) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	if err := s.pool.Ping(ctx); err != nil {
		WriteMessage(w, http.StatusServiceUnavailable, "the database does not answer")
		return
	}
	Write(w, http.StatusOK, map[string]string{"status": "ok"})
}
