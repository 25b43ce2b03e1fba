package postgres_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// announcer runs one that sends what it hears to a channel.
func announcer(t *testing.T, url string) (*storepg.Announcer, chan struct{}) {
	t.Helper()
	return run(t, open(t, url, nil))
}

func run(t *testing.T, pool *pgxpool.Pool) (*storepg.Announcer, chan struct{}) {
	t.Helper()
	heard := make(chan struct{}, 1000)
	a := storepg.NewAnnouncer(pool, slog.New(slog.DiscardHandler), func() { heard <- struct{}{} })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	<-heard // it listens
	return a, heard
}

func hears(t *testing.T, heard chan struct{}) {
	t.Helper()
	select {
	case <-heard:
	case <-time.After(5 * time.Minute):
		t.Fatal("nothing was heard")
	}
}

func TestACommitIsHeardInOtherProcesses(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	speaks, _ := announcer(t, url)
	_, heard := announcer(t, url)
	pool := open(t, url, nil)
	for i, store := range []eventstore.Store{storepg.New(pool, storepg.OnCommit(speaks.Announce)), storepg.NewGathering(pool, 1, storepg.OnCommit(speaks.Announce))} {
		if _, err := store.Append(t.Context(), eventstore.Append{Stream: "s-1", Expected: 2 * int64(i), Events: []eventstore.Event{event()}}); err != nil {
			t.Fatal(err)
		}
		hears(t, heard)
		if _, err := store.AppendAll(t.Context(), []eventstore.Append{{Stream: "s-1", Expected: 2*int64(i) + 1, Events: []eventstore.Event{event()}}}); err != nil {
			t.Fatal(err)
		}
		hears(t, heard)
	}
}

func TestALostConnectionIsMadeAgainAndWhatWasMissedIsLookedFor(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	speaks, heard := announcer(t, url)
	if _, err := open(t, url, nil).Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`); err != nil {
		t.Fatal(err)
	}
	hears(t, heard) // on listening again, since what came in between is not announced again
	speaks.Announce()
	hears(t, heard)
}

// gate holds every announcement up until the test lets it go on.
type gate struct{ arrived, leave chan struct{} }

func (g *gate) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if strings.Contains(q.SQL, "pg_notify") {
		select {
		case g.arrived <- struct{}{}:
			<-g.leave
		case <-ctx.Done():
		}
	}
	return ctx
}
func (*gate) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestManyCommitsAreAnnouncedTogether(t *testing.T) {
	t.Parallel()
	g := &gate{arrived: make(chan struct{}), leave: make(chan struct{})}
	a, heard := run(t, open(t, throwaway.Database(t), g))
	a.Announce()
	<-g.arrived
	for range 1000 { // while the first is on its way
		a.Announce()
	}
	let := time.Now()
	g.leave <- struct{}{}
	<-g.arrived
	if pause := time.Since(let); pause < storepg.AnnounceEvery {
		t.Errorf("the next announcement follows after %v, want %v at least", pause, storepg.AnnounceEvery)
	}
	if a.Pending() {
		t.Error("of 1000 commits some are announced by themselves")
	}
	g.leave <- struct{}{}
	hears(t, heard)
	hears(t, heard)
}

func TestAPanicOfWhoeverHearsIsNoEndOfTheProcess(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	var calls atomic.Int32
	heard := make(chan struct{}, 1000)
	a := storepg.NewAnnouncer(open(t, url, nil), slog.New(slog.DiscardHandler), func() {
		if calls.Add(1) == 1 {
			panic("a bug")
		}
		heard <- struct{}{}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	hears(t, heard) // it listens again
	a.Announce()
	hears(t, heard)
}
