package throwaway

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"
)

const testTimeout = 10 * time.Minute // of preparing a database, npm's fetching included

// shared is the server of a test binary.
var shared struct {
	mu     sync.Mutex
	server *Server
	err    error
	own    bool // ignore DATABASE_URL
}

// Main runs a package's tests and closes the server that they shared, if any
// used one. It returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		return code
	}
	if err := shared.server.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "closing the throw-away PostgreSQL: %v\n", err)
		code = max(code, 1)
	}
	shared.server = nil
	return code
}

// MainAlone is Main with a server that no other package uses: for tests that wait until no older
// transaction is under way, which PostgreSQL knows of the whole server only.
func MainAlone(m *testing.M) int {
	shared.own = true
	return Main(m)
}

// Shared returns the server that the tests of this binary share, started by the
// first of them. A test that stops a server takes one of its own: NewServer.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		shared.server, shared.err = Start(ctx, Options{Own: shared.own, Progress: toStderr})
	}
	if shared.err != nil {
		t.Fatalf("starting a throw-away PostgreSQL: %v", shared.err)
	}
	return shared.server
}

// NewServer starts a server for one test, closed when that ends.
func NewServer(t testing.TB, o Options) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if o.Progress == nil {
		o.Progress = toStderr
	}
	s, err := Start(ctx, o)
	if err != nil {
		t.Fatalf("starting a throw-away PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the throw-away PostgreSQL: %v", err)
		}
	})
	return s
}

// Database returns the URL of a migrated database for one test, dropped when
// that ends. Tests that use it may run in parallel.
func Database(t testing.TB) string {
	t.Helper()
	return database(t, Shared(t).NewDatabase)
}

// EmptyDatabase is Database without tables.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	return database(t, Shared(t).NewEmptyDatabase)
}

func database(t testing.TB, create func(context.Context) (string, func(), error)) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	dsn, drop, err := create(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(drop)
	return dsn
}

func toStderr(line string) { fmt.Fprintln(os.Stderr, line) }
