package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestShutdownLetsAttemptsEndAndRecordsThem(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	called, release := make(chan struct{}), make(chan struct{})
	p := &scripted{do: func(context.Context, participant.Call) participant.Result {
		close(called)
		<-release
		return participant.Result{Kind: saga.Succeeded}
	}}
	b := newBench(t, unhurried{store}, p, Observation{})
	if _, err := b.engine.Advance(t.Context(), k, start(definition("a", "b"))); err != nil {
		t.Fatal(err)
	}
	<-called
	ended := make(chan error)
	go func() { ended <- b.engine.Shutdown(t.Context()) }()
	for b.engine.accepting() { // until the shutdown has begun
		runtime.Gosched()
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := history(t, store, k); len(got) < 3 || got[2] != "AttemptSucceeded" {
		t.Errorf("stream %v", got)
	}
	if n := len(p.seen()); n != 1 {
		t.Errorf("%d attempts were sent, one of them after the end", n)
	}
	if _, err := b.engine.Advance(t.Context(), k, Observation{}); !errors.Is(err, errClosed) {
		t.Errorf("advancing after the end: %v", err)
	}
}

// TestShutdownRecordsWhatEndsAlthoughAnotherAttemptDoesNot has two sagas: the attempt of one ends after the shutdown has begun, that of the other never.
func TestShutdownRecordsWhatEndsAlthoughAnotherAttemptDoesNot(t *testing.T) {
	t.Parallel()
	store, ends, hangs := memory.New(), newKey(t), newKey(t)
	called, release := make(chan struct{}, 2), make(chan struct{})
	p := &scripted{do: func(ctx context.Context, c participant.Call) participant.Result {
		called <- struct{}{}
		if c.Saga.UID == hangs.UID {
			<-ctx.Done()
			return participant.Result{Kind: saga.Unknown}
		}
		<-release
		return participant.Result{Kind: saga.Succeeded}
	}}
	b := newBench(t, unhurried{store}, p, Observation{})
	for _, k := range []Key{ends, hangs} {
		if _, err := b.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
			t.Fatal(err)
		}
		<-called
	}
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.engine.Shutdown(ctx) }()
	for b.engine.accepting() { // until the shutdown has begun
		runtime.Gosched()
	}
	close(release)
	for !slices.Contains(history(t, store, ends), "AttemptSucceeded") { // it is recorded while the other attempt still hangs
		if t.Context().Err() != nil {
			t.Fatal("the outcome was not recorded")
		}
		runtime.Gosched()
	}
	giveUp()
	if err := <-ended; err == nil {
		t.Error("it says that all attempts have ended")
	}
	if got := history(t, store, hangs); fmt.Sprint(got) != "[SagaStarted AttemptStarted]" {
		t.Errorf("stream %v", got)
	}
}

// TestShutdownRecordsWhatHadEndedBeforeAlthoughItsTimeIsOver has an outcome waiting that nobody has come to record.
func TestShutdownRecordsWhatHadEndedBeforeAlthoughItsTimeIsOver(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	b := newBench(t, unhurried{store}, &scripted{}, Observation{})
	if _, err := b.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
		t.Fatal(err)
	}
	if err := b.engine.pool.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	_ = b.engine.Shutdown(over)
	if got := history(t, store, k); !slices.Contains(got, "AttemptSucceeded") {
		t.Errorf("stream %v", got)
	}
}

// slowStore takes its time for appends, once it is told to.
type slowStore struct {
	eventstore.Store
	slow atomic.Bool
}

func (s *slowStore) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if s.slow.Load() {
		select {
		case <-time.After(3 * lastWrites):
		case <-ctx.Done():
			return eventstore.Appended{}, ctx.Err()
		}
	}
	return s.Store.Append(ctx, a)
}

// TestShutdownRecordsForAsLongAsAttemptsMayTake has an outcome that takes longer to record than outcomes may that come at the very end.
func TestShutdownRecordsForAsLongAsAttemptsMayTake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store, k := &slowStore{Store: memory.New()}, newKey(t)
		release := make(chan struct{})
		b := newBench(t, store, &scripted{do: func(context.Context, participant.Call) participant.Result {
			<-release
			return participant.Result{Kind: saga.Succeeded}
		}}, Observation{})
		if _, err := b.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the participant is asked
		store.slow.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 4*lastWrites)
		defer cancel()
		ended := make(chan error)
		go func() { ended <- b.engine.Shutdown(ctx) }()
		synctest.Wait() // it has begun
		close(release)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if got := history(t, store.Store, k); !slices.Contains(got, "AttemptSucceeded") {
			t.Errorf("stream %v", got)
		}
	})
}

func TestShutdownAbandonsWhatDoesNotEndAndRecordsNothingOfIt(t *testing.T) {
	t.Parallel()
	store, k := memory.New(), newKey(t)
	called, ended := make(chan struct{}), make(chan struct{})
	p := &scripted{do: func(ctx context.Context, _ participant.Call) participant.Result {
		defer close(ended)
		close(called)
		<-ctx.Done()
		return participant.Result{Kind: saga.Unknown}
	}}
	b := newBench(t, store, p, Observation{})
	if _, err := b.engine.Advance(t.Context(), k, start(definition("a"))); err != nil {
		t.Fatal(err)
	}
	<-called
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.engine.Shutdown(ctx); err == nil {
		t.Fatal("it says that all attempts have ended")
	}
	<-ended
	if got := history(t, store, k); fmt.Sprint(got) != "[SagaStarted AttemptStarted]" {
		t.Errorf("stream %v", got)
	}
}
