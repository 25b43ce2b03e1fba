package run

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// parkedRig is an outbox with a relay, whose sink refuses the keys that begin with "bad" until it is mended.
type parkedRig struct {
	t      *testing.T
	dsn    string
	pool   *pgxpool.Pool
	relay  *outbox.Relay
	sink   *memory.Publisher
	mended atomic.Bool
}

func newParkedRig(t *testing.T) *parkedRig {
	t.Helper()
	r := &parkedRig{t: t, dsn: patient(t, throwaway.Database(t))}
	var err error
	if r.pool, err = postgres.Open(t.Context(), postgres.Config{URL: r.dsn}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	r.sink = &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if strings.HasPrefix(m.Key, "bad") && m.Sequence == 1 && !r.mended.Load() {
			return outbox.Errorf(outbox.Rejected, outbox.ReasonTooLarge, "too large\n\x1b[31mby far")
		}
		return nil
	}}
	if r.relay, err = outbox.NewRelay(outbox.Options{Pool: r.pool, Shards: 2}); err != nil {
		t.Fatal(err)
	}
	if err := r.relay.Set(t.Context(), outbox.Sink{ID: "sink-1", Name: "shop/events", Publisher: r.sink}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.relay.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

// commit appends the first and the second message of each key, and returns the IDs of the first ones.
func (r *parkedRig) commit(keys ...string) (ids []uuid.UUID) {
	r.t.Helper()
	store := storepg.New(r.pool)
	for _, key := range keys {
		for sequence := range int64(2) {
			m := eventstore.Message{ID: uuid.Must(uuid.NewV7()), Type: "test.Happened", Key: key, Source: "/tests", Sequence: sequence + 1, Data: json.RawMessage(`{}`)}
			e := eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: "Happened", SchemaVersion: 1, Data: json.RawMessage(`{}`)}
			if _, err := store.Append(r.t.Context(), eventstore.Append{Stream: "k-" + key, Expected: eventstore.AnyVersion, Events: []eventstore.Event{e}, Messages: []eventstore.Message{m}}); err != nil {
				r.t.Fatal(err)
			}
			if sequence == 0 {
				ids = append(ids, m.ID)
			}
		}
	}
	r.relay.Wake()
	return ids
}

func (r *parkedRig) command(args ...string) (int, string) {
	var out bytes.Buffer
	code := Main(r.t.Context(), append([]string{"outbox"}, args...), environ("DATABASE_URL", r.dsn), &out, &out)
	return code, out.String()
}

// until repeats a command until it says so many times what is wanted.
func (r *parkedRig) until(times int, want string, args ...string) (out string) {
	r.t.Helper()
	eventually(r.t, func() error {
		var code int
		if code, out = r.command(args...); code != exitOK || strings.Count(out, want) != times {
			return fmt.Errorf("exit code %d, and %v does not say %q %d times:\n%s", code, args, want, times, out)
		}
		return nil
	})
	return out
}

// taken counts the messages of a key that were published. One may come more than once.
func (r *parkedRig) taken(key string) int {
	ids := map[uuid.UUID]bool{}
	for _, m := range r.sink.Taken() {
		if m.Key == key {
			ids[m.ID] = true
		}
	}
	return len(ids)
}

func TestAPersonSeesDeadLettersAndRetriesOrDropsThem(t *testing.T) {
	t.Parallel()
	r := newParkedRig(t)
	ids := r.commit("bad-1", "good", "bad-2", "bad-3", "bad-4")
	out := r.until(4, " dead ", "list", "--sink", "shop/events")
	for _, want := range []string{ids[0].String(), "bad-4", "test.Happened", "behind another of its key", "TooLarge: too large  [31mby far\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the list does not say %q:\n%s", want, out)
		}
	}
	if out := r.until(5, "\n", "list", "--dead"); strings.Contains(out, "behind") {
		t.Errorf("of dead letters only, the list is\n%s", out)
	}
	r.until(1, "shop/events   4 ", "sinks")
	if out := r.until(1, "2/2", "sinks"); !strings.HasPrefix(out, "NAME          BACKLOG   OLDEST") {
		t.Errorf("the sinks are\n%s", out)
	}
	r.until(1, "\n", "list", "--older-than=1h")
	r.until(1, "\n", "list", "--sink=shop/other", "--log-level", "debug")

	if code, out := r.command("drop", "nobody", "needs", "it", "--id", ids[2].String()); code != exitOK || !strings.HasPrefix(out, "1 message will not be published") {
		t.Errorf("dropping: exit code %d, %s", code, out)
	}
	var who, why string
	if err := r.pool.QueryRow(t.Context(), `SELECT actor, reason FROM outbox_dropped WHERE message_id = $1`, ids[2]).Scan(&who, &why); err != nil || who != actor() || why != "nobody needs it" {
		t.Errorf("kept is %q, %q, %v", who, why, err)
	}
	r.until(3, " dead ", "list")
	if code, out := r.command("retry", "--id", ids[0].String()); code != exitOK || !strings.Contains(out, "1 dead letter among it") {
		t.Errorf("retrying: exit code %d, %s", code, out)
	}
	r.until(3, " dead ", "list") // it is refused again
	r.mended.Store(true)
	if code, out := r.command("retry", "--id="+ids[0].String()+","+ids[3].String(), "--dead"); code != exitOK || !strings.Contains(out, "2 dead letters among it") {
		t.Errorf("retrying two: exit code %d, %s", code, out)
	}
	r.until(1, " dead ", "list")
	if code, out := r.command("retry", "--all"); code != exitOK {
		t.Errorf("retrying all: exit code %d, %s", code, out)
	}
	r.until(1, "\n", "list", "--all")
	for key, want := range map[string]int{"bad-1": 2, "good": 2, "bad-2": 1, "bad-3": 2, "bad-4": 2} {
		if n := r.taken(key); n != want {
			t.Errorf("of key %s, %d messages were published", key, n)
		}
	}
}

func TestWhoSelectsNoParkedMessageIsTold(t *testing.T) {
	t.Parallel()
	r := newParkedRig(t)
	r.commit("bad-1")
	r.until(1, " dead ", "list")
	for _, none := range [][]string{
		{"retry", "--sink", "nobody"}, {"drop", "why", "--sink", "nobody"}, {"retry", "--older-than", "1h"}, {"drop", "why", "--id", uuid.NewString(), "--dead"},
	} {
		if code, out := r.command(none...); code != exitFailed || !strings.Contains(out, outbox.ErrNoneSelected.Error()) || !strings.Contains(out, "manager outbox list") {
			t.Errorf("%v: exit code %d, %s", none, code, out)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{}, "usage: manager outbox"}, {[]string{"dance"}, "usage: manager outbox"}, {[]string{"drop", "--all"}, "usage: manager outbox"}, {[]string{"drop", " ", "--all"}, "usage: manager outbox"},
		{[]string{"drop", "--all", "why"}, "usage: manager outbox"}, {[]string{"list", "bad-1"}, "usage: manager outbox"}, {[]string{"retry", "all"}, "usage: manager outbox"},
		{[]string{"retry"}, outbox.ErrNoneSelected.Error()}, {[]string{"drop", "why"}, "--all for every one"}, {[]string{"drop", "why", "--dead=false"}, "--all for every one"},
		{[]string{"drop", "why", "--all", "--dead"}, "either"}, {[]string{"sinks", "--sink", "shop/events"}, "all sinks"}, {[]string{"retry", "--id", "7"}, `"7" is not the ID`},
		{[]string{"retry", "--id", ""}, "the ID of a message"}, {[]string{"retry", "--sink", ""}, "name of one sink"}, {[]string{"retry", "--sink", "a", "--sink", "b"}, "name of one sink"},
		{[]string{"retry", "--older-than", "0s"}, "longer than nothing"}, {[]string{"retry", "--older-than", "soon"}, "older-than"}, {[]string{"retry", "--id"}, "id"},
		{[]string{"retry", "--all", "--dance"}, "dance"}, {[]string{"retry", "--all", "now"}, `"now"`}, {[]string{"drop", "--database-url", "--help"}, "usage: manager outbox"},
	} {
		if code, out := r.command(c.args...); code == exitOK || !strings.Contains(out, c.want) {
			t.Errorf("%v: exit code %d, want %q: %s", c.args, code, c.want, out)
		}
	}
	if code, out := r.command("drop", "--help"); code != exitOK || !strings.Contains(out, "manager outbox drop REASON SELECTION") || strings.Contains(out, "SAGA_DEAD") {
		t.Errorf("help: exit code %d, %s", code, out)
	}
	r.until(2, "bad-1", "list") // all of this has changed nothing
}

func TestALongListSaysThatThereIsMore(t *testing.T) {
	t.Parallel()
	all := make([]outbox.Parked, listed+1)
	for _, n := range []int{listed, listed + 1} {
		var out bytes.Buffer
		if err := printParked(&out, all[:n]); err != nil {
			t.Fatal(err)
		}
		if rows := strings.Count(out.String(), uuid.Nil.String()); rows != listed || strings.Contains(out.String(), "there are more") != (n > listed) {
			t.Errorf("of %d, %d rows are listed, and the end is %q", n, rows, fmt.Sprint(out.String()[out.Len()-60:]))
		}
	}
}
