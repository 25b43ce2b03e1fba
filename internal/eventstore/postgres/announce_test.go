package postgres_test

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// announcer runs one that sends what it hears to a channel.
func announcer(t *testing.T, url string) (*storepg.Announcer, chan struct{}) {
	t.Helper()
	heard := make(chan struct{}, 1000)
	a := storepg.NewAnnouncer(open(t, url, nil), slog.New(slog.DiscardHandler), func() { heard <- struct{}{} })
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
	case <-time.After(20 * time.Second):
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

func TestManyCommitsAreAnnouncedTogether(t *testing.T) {
	t.Parallel()
	url := throwaway.Database(t)
	speaks, heard := announcer(t, url)
	var announced atomic.Int64
	began := time.Now()
	for time.Since(began) < 300*time.Millisecond {
		speaks.Announce()
		announced.Add(1)
	}
	hears(t, heard)
	<-time.After(100 * time.Millisecond)
	if n := int64(len(heard)); n > 40 || announced.Load() < 1000 {
		t.Errorf("%d commits were announced %d times", announced.Load(), n)
	}
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
