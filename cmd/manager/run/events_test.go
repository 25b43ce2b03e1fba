package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/eventtype"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// subscribedRig is a durable subscription called mail, whose handler fails at the first event of streams called bad until it is mended.
type subscribedRig struct {
	t      *testing.T
	dsn    string
	pool   *pgxpool.Pool
	mended atomic.Bool

	mu    sync.Mutex
	heard map[string]map[int]bool // by stream; an event may come more than once
}

type mailed struct{ N int }

func newSubscribedRig(t *testing.T) *subscribedRig {
	t.Helper()
	r := &subscribedRig{t: t, dsn: patient(t, throwaway.Database(t)), heard: map[string]map[int]bool{}}
	var err error
	if r.pool, err = postgres.Open(t.Context(), postgres.Config{URL: r.dsn}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	events := cqrs.NewEvents(eventtype.MustNewRegistry(eventtype.Of[mailed]("Mailed", 1)))
	err = cqrs.On(events, func(_ context.Context, m mailed, e cqrs.Envelope) error {
		if strings.HasPrefix(e.Stream, "order-bad") && m.N == 1 && !r.mended.Load() {
			return errors.New("no such mailbox\n\x1b[31mat all")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.heard[e.Stream] == nil {
			r.heard[e.Stream] = map[int]bool{}
		}
		r.heard[e.Stream][m.N] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := cqrs.NewSubscription(events, cqrs.SubscriptionOptions{Pool: r.pool, Store: storepg.New(r.pool), Name: "mail", Categories: []string{"order"}, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

// commit appends two events to each stream, and returns the IDs of the first ones.
func (r *subscribedRig) commit(streams ...string) (ids []uuid.UUID) {
	r.t.Helper()
	store := storepg.New(r.pool)
	for _, stream := range streams {
		a := eventstore.Append{Stream: stream}
		for n := range 2 {
			a.Events = append(a.Events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Mailed", SchemaVersion: 1, Data: fmt.Appendf(nil, `{"N":%d}`, n+1)})
		}
		if _, err := store.Append(r.t.Context(), a); err != nil {
			r.t.Fatal(err)
		}
		ids = append(ids, a.Events[0].ID)
	}
	return ids
}

func (r *subscribedRig) command(args ...string) (int, string) {
	var out bytes.Buffer
	code := Main(r.t.Context(), append([]string{"events"}, args...), environ("DATABASE_URL", r.dsn), &out, &out)
	return code, out.String()
}

// behindIt is the end of a line that says of a dead letter that it was tried once, and that one event waits behind it.
var behindIt = regexp.MustCompile(` 1 +1 +no such mailbox`)

// listed waits until the list has so many dead letters, each with its follower.
func (r *subscribedRig) listed(letters int, args ...string) (out string) {
	r.t.Helper()
	eventually(r.t, func() error {
		var code int
		code, out = r.command(append([]string{"list"}, args...)...)
		if code != exitOK || strings.Count(out, "\n") != letters+1 || len(behindIt.FindAllString(out, -1)) != letters {
			return fmt.Errorf("exit code %d, and these are not %d dead letters, each with its follower:\n%s", code, letters, out)
		}
		return nil
	})
	return out
}

func TestAPersonSeesDeadEventsAndRetriesOrDropsThem(t *testing.T) {
	t.Parallel()
	r := newSubscribedRig(t)
	ids := r.commit("order-bad-1", "order-good", "order-bad-2")
	out := r.listed(2)
	for _, want := range []string{ids[0].String(), "mail", "order-bad-2", "Mailed", "no such mailbox  [31mat all\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the list does not say %q:\n%s", want, out)
		}
	}
	r.listed(2, "mail")
	r.listed(0, "bills")

	if code, out := r.command("drop", "mail", ids[2].String(), "the", "customer", "is", "gone"); code != exitOK || !strings.Contains(out, "for good") {
		t.Errorf("dropping: exit code %d, %s", code, out)
	}
	var who, why string
	if err := r.pool.QueryRow(t.Context(), `SELECT actor, reason FROM event_handlers_dropped WHERE event_id = $1`, ids[2]).Scan(&who, &why); err != nil || who != actor() || why != "the customer is gone" {
		t.Errorf("kept is %q, %q, %v", who, why, err)
	}
	r.listed(1)
	r.mended.Store(true)
	if code, out := r.command("retry", "mail", ids[0].String()); code != exitOK || !strings.Contains(out, "tried again") {
		t.Errorf("retrying: exit code %d, %s", code, out)
	}
	r.listed(0)
	eventually(t, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.heard["order-bad-1"]) != 2 || len(r.heard["order-good"]) != 2 || len(r.heard["order-bad-2"]) != 1 {
			return fmt.Errorf("handled were %v", r.heard)
		}
		return nil
	})
}

func TestWhoNamesNoDeadEventIsTold(t *testing.T) {
	t.Parallel()
	r := newSubscribedRig(t)
	id := r.commit("order-bad-1")[0].String()
	r.listed(1)
	for _, none := range [][]string{{"retry", "mail", uuid.NewString()}, {"retry", "bills", id}, {"drop", "bills", id, "why"}} {
		if code, out := r.command(none...); code != exitFailed || !strings.Contains(out, cqrs.ErrNoDeadLetter.Error()) || !strings.Contains(out, "manager events list") {
			t.Errorf("%v: exit code %d, %s", none, code, out)
		}
	}
	for _, wrong := range [][]string{{}, {"dance"}, {"list", "mail", "bills"}, {"retry"}, {"retry", "mail"}, {"retry", "mail", id, "now"}, {"drop", "mail", id}, {"drop", "mail", id, " "}} {
		if code, out := r.command(wrong...); code != exitUsage || !strings.Contains(out, "usage: manager events") {
			t.Errorf("%v: exit code %d, %s", wrong, code, out)
		}
	}
	if code, out := r.command("retry", "mail", "7"); code != exitUsage || !strings.Contains(out, `"7" is not the ID`) {
		t.Errorf("what is no ID: exit code %d, %s", code, out)
	}
	if code, out := r.command("drop", "--help"); code != exitOK || !strings.Contains(out, "manager events drop SUBSCRIPTION ID REASON") {
		t.Errorf("help: exit code %d, %s", code, out)
	}
	r.listed(1) // all of this has changed nothing
}
