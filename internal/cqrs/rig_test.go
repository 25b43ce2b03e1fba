package cqrs_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/eventtype"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		os.Exit(child(url))
	}
	os.Exit(throwaway.Main(m))
}

// What happens in these tests.
type (
	placed    struct{ N int }
	cancelled struct{ N int }
)

var registry = eventtype.MustNewRegistry(eventtype.Of[placed]("Placed", 1), eventtype.Of[cancelled]("Cancelled", 1))

// heard is what a handler keeps of the events that it succeeded with, in its order.
type heard struct {
	mu  sync.Mutex
	all []string
}

func (h *heard) add(e cqrs.Envelope) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, fmt.Sprintf("%s/%d", e.Stream, e.Version))
}

func (h *heard) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.all...)
}

type rig struct {
	t     *testing.T
	url   string
	pool  *pgxpool.Pool
	store eventstore.Store
}

// openPool opens a database with all the patience that a busy machine needs: what waits in these tests is let go by them.
func openPool(url string) (*pgxpool.Pool, error) {
	return postgres.Open(context.Background(), postgres.Config{URL: url, MaxConns: 12, StatementTimeout: time.Hour, LockTimeout: time.Hour, IdleInTxTimeout: time.Hour})
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, url: throwaway.Database(t)}
	var err error
	if r.pool, err = openPool(r.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	r.store = storepg.NewGathering(r.pool, 2)
	return r
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// hears returns a logger, and a channel that is closed once it has been told something.
func hears(what string) (*slog.Logger, <-chan struct{}) {
	told := make(chan struct{})
	once := sync.OnceFunc(func() { close(told) })
	return slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.MessageKey && a.Value.String() == what {
			once()
		}
		return a
	}})), told
}

func (r *rig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.pool.Exec(context.Background(), sql, args...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) int(sql string, args ...any) (n int) {
	r.t.Helper()
	if err := r.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// append adds facts to the end of a stream.
func (r *rig) append(stream string, facts ...any) eventstore.Appended {
	r.t.Helper()
	done, err := appendTo(r.store, stream, facts...)
	if err != nil {
		r.t.Fatal(err)
	}
	return done
}

func appendTo(s eventstore.Store, stream string, facts ...any) (eventstore.Appended, error) {
	a := eventstore.Append{Stream: stream, Expected: eventstore.AnyVersion}
	for _, f := range facts {
		e, err := registry.Encode(f, eventstore.Metadata{TraceParent: traceParent})
		if err != nil {
			return eventstore.Appended{}, err
		}
		a.Events = append(a.Events, e)
	}
	return s.Append(context.Background(), a)
}

const traceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// options are those of a subscription that loses no time.
func (r *rig) options() cqrs.SubscriptionOptions {
	return cqrs.SubscriptionOptions{
		Pool: r.pool, Store: storepg.New(r.pool), Name: "test", Categories: []string{"order"}, Logger: logger(r.t),
		Attempts: 3, Backoff: cqrs.Backoff{First: time.Millisecond, Max: 5 * time.Millisecond}, Lease: 300 * time.Millisecond,
	}
}

// subscribe makes a subscription for one handler of placed.
func (r *rig) subscribe(o cqrs.SubscriptionOptions, h func(context.Context, placed, cqrs.Envelope) error) *cqrs.Subscription {
	r.t.Helper()
	events := cqrs.NewEvents(registry)
	if err := cqrs.On(events, h); err != nil {
		r.t.Fatal(err)
	}
	s, err := cqrs.NewSubscription(events, o)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// run runs something until the function it returns has been called.
func run(t *testing.T, r interface{ Run(context.Context) error }) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// stands returns where the subscription stands.
func (r *rig) stands() (handled int, owner string) {
	r.t.Helper()
	err := r.pool.QueryRow(context.Background(), `SELECT handled, owner FROM projections WHERE name = 'subscription_test'`).Scan(&handled, &owner)
	if err != nil && err != pgx.ErrNoRows { //nolint:errorlint // the driver's own, unwrapped
		r.t.Fatal(err)
	}
	return handled, owner
}

// dead waits until there are so many dead letters, and returns them.
func (r *rig) dead(n int) (letters []cqrs.DeadLetter) {
	r.t.Helper()
	eventually(r.t, "events become dead letters", func() (err error) {
		letters, err = cqrs.DeadLetters(context.Background(), r.pool, "test", 100)
		if err == nil && len(letters) != n {
			err = fmt.Errorf("%d instead of %d", len(letters), n)
		}
		return err
	})
	return letters
}
