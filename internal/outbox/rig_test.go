package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		os.Exit(child(url))
	}
	// Parts of the log are dropped when everything older is over, in any database of the server: the tests
	// of other packages hold transactions for as long as they like.
	os.Exit(throwaway.MainAlone(m))
}

const (
	// patience bounds what a test waits for; nothing takes that long.
	patience = 5 * time.Minute
	// forGood is the lease of a relay that is to keep it, however slow the machine is: one that loses it may publish something again. A checkpoint that saves others nothing but some
	// reading is put down after a third of it, and until then a status may count a message too many: that is well within patience.
	forGood = 3 * time.Minute
)

type rig struct {
	t    *testing.T
	ctx  context.Context
	url  string
	pool *pgxpool.Pool
	// relays is the pool of relays that are to have trouble with it.
	relays *pgxpool.Pool
	store  *storepg.Gathering

	mu     sync.Mutex
	counts map[string]int64 // of the messages of each key
	wake   []func()
}

// openPool opens connections that are not given up, however slow the server is.
func openPool(ctx context.Context, url, name string) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: url, ApplicationName: name, MaxConns: 20, ConnectTimeout: patience, StatementTimeout: patience, LockTimeout: patience, IdleInTxTimeout: patience})
}

func newRig(t *testing.T) *rig {
	t.Helper()
	budget := 3 * patience
	if os.Getenv("OUTBOX") == "long" {
		budget *= 3
	}
	ctx, cancel := context.WithTimeout(t.Context(), budget)
	t.Cleanup(cancel)
	r := &rig{t: t, ctx: ctx, url: throwaway.Database(t), counts: map[string]int64{}}
	var err error
	if r.pool, err = openPool(context.WithoutCancel(ctx), r.url, "outbox-test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	r.store = storepg.NewGathering(r.pool, 2, storepg.OnCommit(r.committed))
	t.Cleanup(func() {
		closing, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.store.Close(closing); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) committed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.wake {
		f()
	}
}

// message is the next one of a key. Its data is its number.
func (r *rig) message(key string) eventstore.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[key]++
	n := r.counts[key]
	return eventstore.Message{
		ID: uuid.Must(uuid.NewV7()), Type: "test.Happened", Key: key, Source: "/tests", Subject: key, Namespace: "shop", Sequence: n, Data: json.RawMessage(strconv.FormatInt(n, 10)),
	}
}

// commit appends messages, each with an event of its own key's stream.
func (r *rig) commit(messages ...eventstore.Message) {
	r.t.Helper()
	for _, m := range messages {
		e := eventstore.Event{ID: m.ID, Type: "Happened", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
		_, err := r.store.Append(r.ctx, eventstore.Append{Stream: "k-" + m.Key, Expected: eventstore.AnyVersion, Events: []eventstore.Event{e}, Messages: []eventstore.Message{m}})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// flood puts messages into the outbox at once: so many keys, so many messages of each, the keys' first ones first.
func (r *rig) flood(keys, each int) {
	r.t.Helper()
	for { // again where a partition was made at that moment, as the store does
		_, err := r.pool.Exec(r.ctx, `INSERT INTO outbox_events (message_id, type, key, destination, data, metadata)
			SELECT gen_random_uuid(), 'test.Happened', 'key-' || k, '', n::text::json AS data, ('{"source":"/tests","namespace":"shop","sequence":' || n || '}')::json
			FROM generate_series(1, $2) nth (n), generate_series(1, $1) key (k) ORDER BY nth.n, key.k`, keys, each)
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "outbox_events_rest") {
			r.t.Fatal(err)
		}
	}
	r.committed()
}

// newRelay makes a relay that nothing hurries.
func (r *rig) newRelay(o outbox.Options) *outbox.Relay {
	r.t.Helper()
	if o.Pool == nil {
		o.Pool = r.pool
	}
	if o.Lease == 0 {
		o.Lease = forGood
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	relay, err := outbox.NewRelay(o.Unhurried(patience))
	if err != nil {
		r.t.Fatal(err)
	}
	return relay
}

// run runs a relay until the function that it returns is called.
func (r *rig) run(relay *outbox.Relay) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := relay.Run(ctx); err != nil {
			r.t.Error(err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// relay runs a relay until the test ends, or the function it returns is called.
func (r *rig) relay(o outbox.Options, sinks ...outbox.Sink) (*outbox.Relay, func()) {
	r.t.Helper()
	relay := r.newRelay(o)
	for _, s := range sinks {
		r.set(relay, s)
	}
	stop := r.run(relay)
	r.mu.Lock()
	r.wake = append(r.wake, relay.Wake)
	r.mu.Unlock()
	r.t.Cleanup(stop)
	return relay, stop
}

func (r *rig) set(relay *outbox.Relay, s outbox.Sink) {
	r.t.Helper()
	if err := relay.Set(r.ctx, s); err != nil {
		r.t.Fatal(err)
	}
}

// to is a sink of the tests.
func to(p outbox.Publisher) outbox.Sink {
	return outbox.Sink{ID: "sink-1", Name: "shop/events", Publisher: p, Timeout: patience, Retry: outbox.Retry{MaxAttempts: 3, InitialBackoff: time.Millisecond, MaxBackoff: 5 * time.Millisecond}}
}

// await returns when so many messages were published. Each tenth of them has its time, however slow the machine is.
func (r *rig) await(p *memory.Publisher, n int) {
	r.t.Helper()
	for part := 1; part <= 10; part++ {
		ctx, cancel := context.WithTimeout(r.ctx, patience)
		err := p.Await(ctx, (n*part+9)/10)
		cancel()
		if err != nil {
			r.t.Fatalf("%d messages of %d were published: %v", len(p.Taken()), n, err)
		}
	}
}

// eventually asks again and again until what is asked for is so.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !is() {
		if time.Now().After(deadline) {
			r.t.Fatalf("not in time: %s", what)
		}
		if err := pause(r.ctx, 5*time.Millisecond); err != nil {
			r.t.Fatalf("not in time: %s", what)
		}
	}
}

// begin begins a transaction, which ends with the test at the latest: while one goes on, nothing is dropped in any database of the server.
func (r *rig) begin() pgx.Tx {
	r.t.Helper()
	tx, err := r.pool.Begin(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(r.ctx)) }) // fails where it has ended
	return tx
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *rig) status() outbox.Status {
	r.t.Helper()
	s, err := outbox.StatusOf(r.ctx, r.pool, "sink-1")
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) parked(s outbox.Selection) []outbox.Parked {
	r.t.Helper()
	all, err := outbox.List(r.ctx, r.pool, s)
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// complete says what is wrong with what a sink took: each key's messages have to be there from 1 to so many, in order. A repetition of what was there before is allowed up to
// so many times, and goes on from where it began: 1 2 3 2 3 4.
func complete(taken []outbox.Message, each map[string]int64, repetitions int) error {
	last := map[string]int64{}
	highest := map[string]int64{}
	repeated := 0
	var errs []error
	for _, m := range taken {
		switch n := m.Sequence; {
		case n == last[m.Key]+1:
		case n <= last[m.Key]:
			repeated++
		default:
			errs = append(errs, fmt.Errorf("key %s: %d follows %d", m.Key, n, last[m.Key]))
		}
		last[m.Key] = m.Sequence
		highest[m.Key] = max(highest[m.Key], m.Sequence)
	}
	if repeated > repetitions {
		errs = append(errs, fmt.Errorf("%d times something was repeated", repeated))
	}
	for key, n := range each {
		if highest[key] != n || last[key] != n {
			errs = append(errs, fmt.Errorf("key %s: of %d messages came %d, the last was %d", key, n, highest[key], last[key]))
		}
	}
	if len(errs) > 10 {
		errs = append(errs[:10], fmt.Errorf("and %d more", len(errs)-10))
	}
	return errors.Join(errs...)
}

// flooded is what flood has put there.
func flooded(keys, each int) map[string]int64 {
	all := map[string]int64{}
	for k := range keys {
		all["key-"+strconv.Itoa(k+1)] = int64(each)
	}
	return all
}
