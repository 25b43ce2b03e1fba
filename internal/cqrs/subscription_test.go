package cqrs_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/projection"
)

// inOrder says what is wrong with the events that a handler has succeeded with: of each stream it wants the versions from 1 to n, in order, each once.
func inOrder(all []string, streams, n int) error {
	next := map[string]int{}
	for _, one := range all {
		stream, version, _ := strings.Cut(one, "/")
		if next[stream]++; version != fmt.Sprint(next[stream]) {
			return fmt.Errorf("%s comes where version %d of it is next; all: %v", one, next[stream], all)
		}
	}
	if len(next) != streams || len(all) != streams*n {
		return fmt.Errorf("%d events of %d streams instead of %d of %d each", len(all), len(next), streams, n)
	}
	return nil
}

func TestASubscriptionHandlesEachStreamInItsOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var h heard
	s := r.subscribe(r.options(), func(_ context.Context, _ placed, e cqrs.Envelope) error { h.add(e); return nil })
	for range 3 {
		for stream := range 5 {
			r.append(fmt.Sprintf("order-%d", stream), placed{}, placed{})
		}
	}
	r.append("other-1", placed{})
	run(t, s)
	for stream := range 5 {
		r.append(fmt.Sprintf("order-%d", stream), placed{}, placed{})
		s.Wake()
	}
	r.append("order-1", cancelled{}) // it has no handler, and does not stop anything
	eventually(t, "it catches up", func() error { return inOrder(h.list(), 5, 8) })
}

func TestANewSubscriptionCanBeginWithWhatComesNow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.append("order-1", placed{}, placed{})
	o := r.options()
	o.FromNow = true
	var h heard
	s := r.subscribe(o, func(_ context.Context, _ placed, e cqrs.Envelope) error { h.add(e); return nil })
	stop := run(t, s)
	eventually(t, "it begins", func() error {
		if n := r.int(`SELECT count(*) FROM projections`); n != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	stop()
	r.append("order-1", placed{}) // while nobody runs it
	stop = run(t, s)
	eventually(t, "it goes on where it began", func() error {
		if got := fmt.Sprint(h.list()); got != "[order-1/3]" {
			return errors.New(got)
		}
		return nil
	})
	stop()
}

func TestAFailedEventIsTriedAgainAndOnlyItsStreamWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var h heard
	var mended atomic.Bool
	attempts := make(chan int, 100)
	o := r.options()
	o.Attempts, o.Metrics = math.MaxInt32, prometheus.NewRegistry()
	s := r.subscribe(o, func(_ context.Context, fact placed, e cqrs.Envelope) error {
		if fact.N == 13 {
			select {
			case attempts <- e.Attempt:
			default:
			}
			if !mended.Load() {
				return errors.New("13 brings bad luck")
			}
		}
		h.add(e)
		return nil
	})
	r.append("order-1", placed{1}, placed{13}, placed{3})
	run(t, s)
	for want := 1; want < 5; want++ {
		if got := <-attempts; got != want {
			t.Fatalf("attempt %d says it is number %d", want, got)
		}
	}
	r.append("order-1", placed{4})
	r.append("order-2", placed{}, placed{}, placed{}, placed{})
	s.Wake()
	eventually(t, "the other stream goes on", func() error {
		if got := len(h.list()); got != 5 {
			return fmt.Errorf("%v", h.list())
		}
		return nil
	})
	mended.Store(true)
	eventually(t, "the stream follows in order", func() error { return inOrder(h.list(), 2, 4) })
	eventually(t, "nothing is left parked", func() error {
		if n := r.int(`SELECT count(*) FROM event_handlers_parked`); n != 0 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

func TestDeadLettersKeepTheOrderAndAreReleasedByRetryAndDrop(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var h heard
	var mended atomic.Bool
	s := r.subscribe(r.options(), func(_ context.Context, fact placed, e cqrs.Envelope) error {
		if fact.N == 13 && !mended.Load() {
			panic("13 brings bad luck")
		}
		h.add(e)
		return nil
	})
	r.append("order-1", placed{1}, placed{13}, placed{3})
	r.append("order-2", placed{13}, placed{2})
	run(t, s)
	letters := r.dead(2)
	r.append("order-1", placed{4})
	r.append("order-3", placed{})
	s.Wake()
	eventually(t, "other streams go on", func() error {
		if got := fmt.Sprint(h.list()); got != "[order-1/1 order-3/1]" {
			return errors.New(got)
		}
		return nil
	})
	for _, l := range letters {
		if l.Attempts != 3 || !strings.Contains(l.Error, "bad luck") || l.Type != "Placed" || l.Followers < 1 || l.Subscription != "test" {
			t.Errorf("a dead letter says %+v", l)
		}
	}
	mended.Store(true)
	retried, dropped := letters[0], letters[1]
	if retried.Stream != "order-1" {
		retried, dropped = dropped, retried
	}
	if err := cqrs.RetryDead(t.Context(), r.pool, "test", retried.EventID); err != nil {
		t.Fatal(err)
	}
	if err := cqrs.DropDead(t.Context(), r.pool, "test", dropped.EventID, "ada", ""); err == nil {
		t.Error("it was dropped without a reason")
	}
	if err := cqrs.DropDead(t.Context(), r.pool, "test", dropped.EventID, "ada", "it was a test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the streams go on in order", func() error {
		got := map[string]string{}
		for _, one := range h.list() {
			stream, version, _ := strings.Cut(one, "/")
			got[stream] += version
		}
		if got["order-1"] != "1234" || got["order-2"] != "2" {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if n := r.int(`SELECT count(*) FROM event_handlers_dropped WHERE event_id = $1 AND actor = 'ada' AND reason = 'it was a test' AND error LIKE '%bad luck%'`, dropped.EventID); n != 1 {
		t.Error("nobody knows who dropped it")
	}
	for _, err := range []error{cqrs.RetryDead(t.Context(), r.pool, "test", uuid.New()), cqrs.DropDead(t.Context(), r.pool, "test", dropped.EventID, "ada", "twice")} {
		if !errors.Is(err, cqrs.ErrNoDeadLetter) {
			t.Errorf("error %v", err)
		}
	}
}

func TestTwoRunnersNeverBothAdvance(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var h heard
	var stops []func()
	var subscriptions []*cqrs.Subscription
	for range 3 {
		o := r.options()
		o.Page, o.Lease = 3, time.Hour // a machine that stalls costs no lease
		s := r.subscribe(o, func(_ context.Context, fact placed, e cqrs.Envelope) error {
			if fact.N == 13 && e.Attempt < 2 {
				return errors.New("not the first time") // so that there is something to retry at which they could meet
			}
			h.add(e)
			return nil
		})
		subscriptions, stops = append(subscriptions, s), append(stops, run(t, s))
	}
	for i := range 40 {
		r.append(fmt.Sprintf("order-%d", i%4), placed{i % 14})
		subscriptions[i%3].Wake()
	}
	eventually(t, "they handle each event once", func() error { return inOrder(h.list(), 4, 10) })
	eventually(t, "the checkpoint has passed them", func() error { // it is put down after its last event was handled
		if n, _ := r.stands(); n < 40 {
			return fmt.Errorf("it has passed %d", n)
		}
		return nil
	})
	for _, stop := range stops {
		stop()
	}
	if err := inOrder(h.list(), 4, 10); err != nil {
		t.Error(err)
	}
	if n, _ := r.stands(); n != 40 {
		t.Errorf("the checkpoint has passed %d events", n)
	}
}

func TestACheckpointOfARunnerThatHasLostItsLeaseIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	var calls atomic.Int32
	o := r.options()
	logger, lost := hears("a projection is somebody else's now")
	o.Logger = logger
	s := r.subscribe(o, func(context.Context, placed, cqrs.Envelope) error {
		if calls.Add(1) == 1 {
			entered <- struct{}{}
			<-leave
			return errors.New("it fails besides") // what it parks is not kept either
		}
		return nil
	})
	r.append("order-1", placed{})
	stop := run(t, s)
	<-entered
	r.exec(`UPDATE projections SET lease_epoch = lease_epoch + 1, owner = 'another', lease_until = now() + interval '1 hour'`)
	close(leave)
	eventually(t, "the old owner notices, or moves on", func() error {
		select {
		case <-lost:
			return nil
		default:
		}
		if handled, _ := r.stands(); handled == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	stop()
	if handled, owner := r.stands(); handled != 0 || owner != "another" || r.int(`SELECT count(*) FROM event_handlers_parked`) != 0 {
		t.Errorf("the old owner moved the checkpoint to %d, owner %s", handled, owner)
	}
	r.exec(`UPDATE projections SET lease_until = '-infinity'`)
	run(t, s)
	eventually(t, "the next owner handles it", func() error {
		if handled, _ := r.stands(); handled != 1 || calls.Load() != 2 {
			return fmt.Errorf("handled %d, calls %d", handled, calls.Load())
		}
		return nil
	})
}

func TestTooManyWaitingStreamsHoldTheReaderUntilSomeGoThrough(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	o := r.options()
	o.MaxWaiting, o.Attempts, o.Page = 5, math.MaxInt32, 1
	var mended atomic.Bool
	var h heard
	s := r.subscribe(o, func(_ context.Context, fact placed, e cqrs.Envelope) error {
		if !mended.Load() {
			return errors.New("the mail server is away")
		}
		h.add(e)
		return nil
	})
	for i := range 10 {
		r.append(fmt.Sprintf("order-%d", i), placed{})
	}
	run(t, s)
	eventually(t, "it notices", func() error {
		if !s.Full() {
			return fmt.Errorf("%d are parked", r.int(`SELECT count(*) FROM event_handlers_parked`))
		}
		return nil
	})
	if n, err := s.Sees(t.Context()); n != 0 || err != nil {
		t.Errorf("it reads %d events, %v", n, err)
	}
	r.append("order-11", placed{})
	mended.Store(true)
	eventually(t, "it goes on", func() error { return inOrder(h.list(), 11, 1) })
}

func TestASubscriptionIsNotRebuilt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var h heard
	s := r.subscribe(r.options(), func(_ context.Context, _ placed, e cqrs.Envelope) error { h.add(e); return nil })
	r.append("order-1", placed{})
	stop := run(t, s)
	eventually(t, "it catches up", func() error { return inOrder(h.list(), 1, 1) })
	if err := projection.Rebuild(t.Context(), r.pool, "subscription_test"); err == nil || !strings.Contains(err.Error(), "subscriptions_are_not_rebuilt") {
		t.Errorf("it is built anew: %v", err)
	}
	stop()
	if err := cqrs.RemoveSubscription(t.Context(), r.pool, "test"); err != nil {
		t.Error(err)
	}
	if err := cqrs.RemoveSubscription(t.Context(), r.pool, "test"); !errors.Is(err, cqrs.ErrNoSubscription) {
		t.Errorf("removing it twice: %v", err)
	}
}

func TestASubscriptionThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	handle := func(context.Context, placed, cqrs.Envelope) error { return nil }
	for want, change := range map[string]func(*cqrs.SubscriptionOptions, *cqrs.Events) error{
		"needs a name":       func(o *cqrs.SubscriptionOptions, _ *cqrs.Events) error { o.Name = "Mail"; return nil },
		"the categories":     func(o *cqrs.SubscriptionOptions, _ *cqrs.Events) error { o.Categories = nil; return nil },
		"20s is the most":    func(o *cqrs.SubscriptionOptions, _ *cqrs.Events) error { o.Timeout = time.Minute; return nil },
		"both handle Placed": func(_ *cqrs.SubscriptionOptions, e *cqrs.Events) error { return cqrs.On(e, handle) },
	} {
		o, events := r.options(), cqrs.NewEvents(registry)
		if err := errors.Join(cqrs.On(events, handle), change(&o, events)); err != nil {
			t.Fatal(err)
		}
		if _, err := cqrs.NewSubscription(events, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
	if _, err := cqrs.NewSubscription(cqrs.NewEvents(registry), r.options()); err == nil || !strings.Contains(err.Error(), "no handler") {
		t.Errorf("error %v", err)
	}
}

// childURL names the database of a child process that runs a subscription until it is killed.
const childURL = "CQRS_TEST_DATABASE"

// calls is where the handler of a killed process writes down what it was called for, in transactions of its own.
const calls = `CREATE TABLE calls (n bigint GENERATED ALWAYS AS IDENTITY, stream text NOT NULL, version bigint NOT NULL, pid integer NOT NULL)`

func child(url string) int {
	pool, err := openPool(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	events := cqrs.NewEvents(registry)
	err = cqrs.On(events, func(ctx context.Context, fact placed, e cqrs.Envelope) error {
		if fact.N%7 == 0 && e.Attempt < 3 {
			return errors.New("not yet")
		}
		_, err := pool.Exec(ctx, `INSERT INTO calls (stream, version, pid) VALUES ($1, $2, $3)`, e.Stream, e.Version, os.Getpid())
		return err
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s, err := cqrs.NewSubscription(events, cqrs.SubscriptionOptions{
		Pool: pool, Store: storepg.New(pool), Name: "test", Categories: []string{"order"}, Page: childPage, Lease: 300 * time.Millisecond, Attempts: math.MaxInt32, Timeout: cqrs.MaxHandlerTimeout,
		Backoff: cqrs.Backoff{First: time.Millisecond, Max: 5 * time.Millisecond},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = s.Run(context.Background())
	return 0
}

const childPage = 10

func TestAKilledHandlerResumesAfterItsCheckpointWithNothingLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(calls)
	const streams, each, kills = 20, 20, 4
	for i := range each {
		for s := range streams {
			r.append(fmt.Sprintf("order-%d", s), placed{i*streams + s})
		}
	}
	for k := 1; ; k++ {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childURL+"="+r.url)
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		want := min(k*streams*each/(kills+1), streams*each)
		eventually(t, "the process comes far enough", func() error {
			if n := r.int(`SELECT count(DISTINCT (stream, version)) FROM calls`); n < want {
				return fmt.Errorf("%d of %d", n, want)
			}
			return nil
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		if want == streams*each {
			break
		}
	}
	// The first calls for the events of a stream come in their order, and only what a process had in hand comes again.
	if n := r.int(`SELECT count(*) FROM (SELECT stream, version, lag(version) OVER (PARTITION BY stream ORDER BY min(n)) AS before FROM calls GROUP BY stream, version) c
		WHERE version <> coalesce(before, 0) + 1`); n != 0 {
		t.Errorf("%d events came out of order", n)
	}
	if n := r.int(`SELECT count(*) FROM calls`) - streams*each; n > kills*(childPage+2) {
		t.Errorf("%d events came again after %d kills with pages of %d", n, kills, childPage)
	}
}

func TestAQueryWithATokenSeesItsOwnWrite(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(`CREATE TABLE orders_rows (generation integer, stream text, n bigint, PRIMARY KEY (generation, stream))`)
	hold := make(chan struct{})
	def := projection.Define("orders", 1, "order").Tables("orders_rows").On("Placed", func(ctx context.Context, tx *projection.Tx, e eventstore.Recorded) error {
		<-hold // the read model is late
		_, err := tx.Exec(ctx, `INSERT INTO orders_rows VALUES ($1, $2, 1)`, tx.Generation(), e.Stream)
		return err
	})
	runner := must(projection.NewRunner(projection.Options{Pool: r.pool, Store: storepg.New(r.pool), Patience: time.Hour}, def))
	if err := runner.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, runner)
	b := cqrs.NewQueries()
	show := func(ctx context.Context, model string, token eventstore.Token) error {
		return projection.Wait(ctx, r.pool, model, token)
	}
	err := cqrs.HandleQuery(b, func(ctx context.Context, q lookUp) (string, error) {
		var n int
		err := r.pool.QueryRow(ctx, `SELECT count(*) FROM orders_rows WHERE stream = $1`, q.Name).Scan(&n)
		return fmt.Sprint(n), err
	}, cqrs.WaitFor("orders", 5*time.Minute, show))
	if err != nil {
		t.Fatal(err)
	}
	done := r.append("order-1", placed{})
	runner.Wake()
	if got, err := cqrs.Ask(t.Context(), b, lookUp{Name: "order-1"}); err != nil || got != "0" {
		t.Errorf("without a token: %s, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(cqrs.WithToken(t.Context(), done.Token), 50*time.Millisecond)
	defer cancel()
	var stale *cqrs.StaleError
	if _, err := cqrs.Ask(ctx, b, lookUp{Name: "order-1"}); !errors.As(err, &stale) {
		t.Errorf("before the read model has come so far: %v", err)
	}
	close(hold)
	if got, err := cqrs.Ask(cqrs.WithToken(t.Context(), done.Token), b, lookUp{Name: "order-1"}); err != nil || got != "1" {
		t.Errorf("with a token: %s, %v", got, err)
	}
}
