package rabbittest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const testTimeout = 15 * time.Minute // of starting a server on a busy machine, where need be again on other ports

// shared is the server of a test binary.
var shared struct {
	mu     sync.Mutex
	server *Server
	err    error
}

// Main runs a package's tests and closes the server that they shared, if any used one. It returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(rabbittest.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		return code
	}
	if err := shared.server.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "closing the RabbitMQ server: %v\n", err)
		code = max(code, 1)
	}
	shared.server = nil
	return code
}

// Shared returns the server that the tests of this binary share, started by the first of them. A test that stops a server takes one of its own: NewServer.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		shared.server, shared.err = Start(ctx)
	}
	need(t, shared.err)
	return shared.server
}

// NewServer starts a server for one test, closed when that ends.
func NewServer(t testing.TB) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	s, err := Start(ctx)
	need(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the RabbitMQ server: %v", err)
		}
	})
	return s
}

// need skips or fails a test that has no server.
func need(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, errMissing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("starting a RabbitMQ server: %v", err)
	}
}

// Channel opens a channel as Username, closed when the test ends.
func (s *Server) Channel(t testing.TB) *amqp.Channel {
	t.Helper()
	conn, err := s.Connect()
	if err != nil {
		t.Fatalf("connecting to the RabbitMQ server: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the server may have been stopped
	channel, err := conn.Channel()
	if err != nil {
		t.Fatalf("opening a channel: %v", err)
	}
	return channel
}
