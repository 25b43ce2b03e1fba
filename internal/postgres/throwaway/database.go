package throwaway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/vextrus/saga-operator/internal/postgres"
)

const (
	// prefix begins the names of databases; the time of their making follows.
	prefix = "saga_throwaway_"
	// leftover is when a database on a named server is surely nobody's.
	leftover    = 24 * time.Hour
	dropTimeout = 5 * time.Minute
	// inUseTimeout is after what time whoever uses a database is not just ending.
	inUseTimeout = 2 * time.Minute
)

// templates is the migrated database of which others are copies: copying takes
// a fraction of the time of migrating.
type templates struct {
	mu   sync.Mutex
	name string
}

// made are the databases that are still there, as far as we know.
type made struct {
	mu    sync.Mutex
	names map[string]bool
}

func (m *made) add(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names == nil {
		m.names = map[string]bool{}
	}
	m.names[name] = true
}

func (m *made) remove(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.names, name)
}

func (m *made) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.names))
}

// NewDatabase makes a database that is migrated. drop removes it, cutting the
// connections to it; it need not be called before the server is closed, which
// removes what is left.
func (s *Server) NewDatabase(ctx context.Context) (dsn string, drop func(), err error) {
	template, err := s.template(ctx)
	if err != nil {
		return "", nil, err
	}
	return s.newDatabase(ctx, " TEMPLATE "+template)
}

// NewEmptyDatabase makes a database without tables.
func (s *Server) NewEmptyDatabase(ctx context.Context) (dsn string, drop func(), err error) {
	return s.newDatabase(ctx, "")
}

func (s *Server) newDatabase(ctx context.Context, template string) (string, func(), error) {
	name := newName()
	s.made.add(name) // before it is there: one that is interrupted may be made all the same
	if err := unlessInUse(ctx, s.URL(), "CREATE DATABASE "+name+template); err != nil {
		return "", nil, fmt.Errorf("making a database for a test: %w", err)
	}
	drop := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
		defer cancel()
		// A server that is stopped takes it away by itself, and on a named one
		// the next start sweeps.
		_ = s.drop(ctx, name)
	}
	return at(s.URL(), name), drop, nil
}

// newName is a name that tells when it was made and needs no quotes.
func newName() string {
	return prefix + strconv.FormatInt(time.Now().Unix(), 10) + "_" + strings.ToLower(rand.Text()[:12])
}

func (s *Server) drop(ctx context.Context, name string) error {
	err := whileInUse(func() error {
		err := execute(ctx, s.URL(), "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
		if code(err) == insufficientPrivilege {
			// A worker of autovacuum is in it, which only a superuser may end by
			// FORCE. Without FORCE the server ends such workers by itself.
			err = execute(ctx, s.URL(), "DROP DATABASE IF EXISTS "+name)
		}
		return err
	})
	if err != nil {
		return err
	}
	s.made.remove(name)
	return nil
}

// SQLSTATEs.
const (
	objectInUse           = "55006"
	insufficientPrivilege = "42501"
)

// code is the SQLSTATE of an error of the server; empty for others.
func code(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return refused.Code
	}
	return ""
}

// unlessInUse executes a statement that PostgreSQL refuses while a database is
// in use; see whileInUse.
func unlessInUse(ctx context.Context, url, statement string) error {
	return whileInUse(func() error { return execute(ctx, url, statement) })
}

// whileInUse does what PostgreSQL refuses while a database is in use, and again
// for a while if that is why it is refused: PostgreSQL gives the sessions that
// are ending 5 s, and on a busy machine they take longer.
func whileInUse(do func() error) error {
	for until := time.Now().Add(inUseTimeout); ; {
		if err := do(); code(err) != objectInUse || time.Now().After(until) {
			return err
		}
	}
}

// dropAll drops what is still there of what was made on a named server.
func (s *Server) dropAll(ctx context.Context) error {
	var errs []error
	for _, name := range s.made.all() {
		if err := s.drop(ctx, name); err != nil {
			errs = append(errs, fmt.Errorf("dropping database %s: %w", name, err))
		}
	}
	return errors.Join(append(errs, s.dropTemplate(ctx))...)
}

// template is the name of the migrated database, made at the first call.
func (s *Server) template(ctx context.Context) (string, error) {
	s.templates.mu.Lock()
	defer s.templates.mu.Unlock()
	if s.templates.name != "" {
		return s.templates.name, nil
	}
	name := newName()
	if err := unlessInUse(ctx, s.URL(), "CREATE DATABASE "+name); err != nil {
		return "", fmt.Errorf("making a migrated database: %w", err)
	}
	err := postgres.Migrate(ctx, at(s.URL(), name))
	if err == nil {
		// Nothing connects to it from here on, autovacuum neither: a database
		// that is in use cannot be copied.
		err = execute(ctx, s.URL(), "ALTER DATABASE "+name+" WITH ALLOW_CONNECTIONS false")
	}
	if err != nil {
		return "", errors.Join(err, s.drop(context.WithoutCancel(ctx), name))
	}
	s.templates.name = name
	return name, nil
}

func (s *Server) dropTemplate(ctx context.Context) error {
	s.templates.mu.Lock()
	defer s.templates.mu.Unlock()
	if s.templates.name == "" {
		return nil
	}
	if err := s.drop(ctx, s.templates.name); err != nil {
		return err
	}
	s.templates.name = ""
	return nil
}

// sweep drops databases that a killed process has left on a named server.
func (s *Server) sweep(ctx context.Context) (err error) {
	conn, err := pgx.Connect(ctx, s.URL())
	if err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	rows, err := conn.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1) AND pg_has_role(datdba, 'USAGE')", prefix)
	if err != nil {
		return fmt.Errorf("looking for databases left behind: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("looking for databases left behind: %w", err)
	}
	for _, name := range names {
		made, _, _ := strings.Cut(strings.TrimPrefix(name, prefix), "_")
		seconds, err := strconv.ParseInt(made, 10, 64)
		if err != nil || time.Since(time.Unix(seconds, 0)) < leftover {
			continue
		}
		// Without FORCE: what is still in use stays. Another sweep may be first.
		_, _ = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize())
	}
	return nil
}

// at is the connection string for another database of the same server.
func at(server, database string) string {
	if u, err := url.Parse(server); err == nil && u.Scheme != "" {
		u.Path = "/" + database
		return u.String()
	}
	return server + " dbname=" + database // the last one counts
}
