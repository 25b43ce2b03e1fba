// Package effect is what a participant of a saga needs besides its own business: every effect happens at most once per idempotency
// key, and an effect that was undone before it arrived does not happen at all.
//
// The effect, its key and the stored answer commit in one transaction. There is no moment at which one of them is there without the
// others, so there is nothing to repair after a crash.
package effect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// timeout bounds the work for one request. It is longer than the database's own timeouts, which give better messages.
const timeout = 10 * time.Second

// Service is one participant: its effects, and what there is to look at. It is an http.Handler.
type Service struct {
	schema string
	pool   *pgxpool.Pool
	log    *slog.Logger
	mux    *http.ServeMux
	faults faults
	gate   func(Effect) time.Duration
	sql    statements
}

// New makes a service whose tables are in the schema. It answers GET /healthz, GET /calls, and GET and POST /admin/faults; the rest is
// added by Handle and Look.
func New(pool *pgxpool.Pool, schema string, log *slog.Logger) *Service {
	s := &Service{schema: schema, pool: pool, log: log.With("service", schema), mux: http.NewServeMux(), sql: statementsFor(schema)}
	s.mux.HandleFunc("GET /healthz", s.healthz)
	s.mux.HandleFunc("GET /admin/faults", func(w http.ResponseWriter, _ *http.Request) { write(w, http.StatusOK, s.faults.get()) })
	s.mux.HandleFunc("POST /admin/faults", s.postFaults)
	s.Look("GET /calls", s.sql.calls)
	return s
}

// ServeHTTP makes a Service an http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Pool is the database of the service.
func (s *Service) Pool() *pgxpool.Pool { return s.pool }

// Gate has every effect ask before it begins: a pause other than zero means that the service is not available, and that the caller
// should try again after it. To be set before the first request.
func (s *Service) Gate(gate func(Effect) time.Duration) { s.gate = gate }

// Admin adds a handler for operating the service.
func (s *Service) Admin(pattern string, h http.HandlerFunc) { s.mux.HandleFunc(pattern, h) }

// SetFaults replaces the faults that the service commits.
func (s *Service) SetFaults(f Faults) error { return s.faults.set(f) }

// Setup creates the schema, the tables of this package and those of the service, where they are missing. ddl is any number of
// statements that may run again. Several processes may call it at once.
func (s *Service) Setup(ctx context.Context, ddl string) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// CREATE … IF NOT EXISTS fails when two of them meet.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('order-to-cash', 0))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, s.sql.setup+ddl)
		return err
	})
	if err != nil {
		return fmt.Errorf("creating the schema %s: %w", s.schema, err)
	}
	return nil
}

// Look adds a page that shows what a query returns: one value, JSON as text. A wildcard {order} in the pattern is the query's $1. No row
// is 404.
func (s *Service) Look(pattern, query string) {
	byOrder := strings.Contains(pattern, "{order}")
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		var args []any
		if byOrder {
			args = append(args, r.PathValue("order"))
		}
		var found string
		err := s.pool.QueryRow(ctx, query, args...).Scan(&found)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			writeMessage(w, http.StatusNotFound, "there is none")
		case err != nil:
			s.log.Error("looking something up failed", "path", r.URL.Path, "error", err)
			writeMessage(w, http.StatusInternalServerError, "the database did not answer")
		default:
			write(w, http.StatusOK, json.RawMessage(found))
		}
	})
}

func (s *Service) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.pool.Ping(ctx); err != nil {
		writeMessage(w, http.StatusServiceUnavailable, "the database does not answer")
		return
	}
	write(w, http.StatusOK, map[string]string{"status": "ok"})
}
