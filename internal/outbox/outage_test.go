package outbox_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/nats"
	"github.com/vextrus/saga-operator/internal/ports"
)

// broker is a NATS server that can be stopped, and started again where it was.
type broker struct {
	t       *testing.T
	options server.Options
	running *server.Server
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	_, text, err := net.SplitHostPort(ports.ForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, options: server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, WriteDeadline: patience}}
	b.start()
	t.Cleanup(b.stop)
	return b
}

func (b *broker) start() {
	b.t.Helper()
	o := b.options
	s, err := server.NewServer(&o)
	if err != nil {
		b.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		b.t.Fatal("the NATS server does not start")
	}
	b.running = s
}

func (b *broker) stop() {
	if b.running != nil {
		b.running.Shutdown()
		b.running.WaitForShutdown()
		b.running = nil
	}
}

// stream is the stream of the messages, made where there is none.
func (b *broker) stream(ctx context.Context) jetstream.Stream {
	b.t.Helper()
	conn, err := natsgo.Connect(b.running.ClientURL(), natsgo.Timeout(patience))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(conn.Close)
	js, err := jetstream.New(conn, jetstream.WithDefaultTimeout(patience))
	if err != nil {
		b.t.Fatal(err)
	}
	s, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "SAGAS", Subjects: []string{"sagas.>"}, Duplicates: time.Hour, MaxAge: 2 * time.Hour})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// large appends so many messages to each of some keys, at once, from a number on. Each is a good kilobyte.
func (r *rig) large(keys, from, each int) {
	r.t.Helper()
	_, err := r.pool.Exec(r.ctx, `INSERT INTO outbox_events (message_id, type, key, destination, data, metadata)
		SELECT gen_random_uuid(), 'test.Happened', 'key-' || k, '', to_json(repeat('x', 2000)), ('{"source":"/tests","namespace":"shop","sequence":' || n || '}')::json
		FROM generate_series($2::int, $2::int + $3::int - 1) nth (n), generate_series(1, $1::int) key (k) ORDER BY nth.n, key.k`, keys, from, each)
	if err != nil {
		r.t.Fatal(err)
	}
	r.committed()
}

// heap is what is in use of it: the least of some looks, because what comes and goes meanwhile is not meant.
func heap() int64 {
	least := int64(math.MaxInt64)
	for range 3 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		least = min(least, int64(m.HeapAlloc))
	}
	return least
}

// TestABrokerThatIsAwayForAWhileIsWaitedForWithoutHoldingAnythingUp runs by itself, because it measures the process' memory.
func TestABrokerThatIsAwayForAWhileIsWaitedForWithoutHoldingAnythingUp(t *testing.T) {
	keys, rounds := 1_000, 10 // of messages of two kilobytes
	if os.Getenv("OUTBOX") == "long" {
		keys, rounds = 5_000, 20
	}
	const most = 12 << 20 // of memory, which is less than all that waits
	r := newRig(t)
	b := newBroker(t)
	before := b.stream(r.ctx)
	p, err := nats.New(nats.Config{
		Connection: sink.Connection{Dial: (&net.Dialer{}).DialContext, Mode: outbox.Binary, Timeout: patience}, Servers: []string{b.running.ClientURL()}, Subject: "sagas.{type}",
	})
	if err != nil {
		t.Fatal(err)
	}
	r.relay(outbox.Options{Page: 500}.PageBytes(256<<10), to(p))
	r.large(keys, 1, 1)
	r.eventually("the first have arrived", func() bool { return messages(r, before) >= keys })

	b.stop()
	low := heap()
	high := low
	appended := map[string]int64{}
	for round := 2; round <= rounds; round++ {
		r.large(keys, round, 1)
		for k := range 20 { // sagas go on
			m := r.message("saga-" + strconv.Itoa(k))
			r.commit(m)
			appended[m.Key] = m.Sequence
		}
		now := heap()
		low, high = min(low, now), max(high, now)
	}
	r.eventually("the status says so", func() bool { return r.status().Reason == outbox.ReasonConnectionFailed })
	grown := max(high, heap()) - low
	total := keys*rounds + 20*(rounds-1)
	if s := r.status(); s.Backlog < int64(total-keys) || s.DeadLetters != 0 || len(r.parked(outbox.Selection{})) > 4*256 {
		t.Errorf("the status is %+v", s)
	}

	b.start()
	after := b.stream(r.ctx)
	for part := 1; part <= 10; part++ { // each in its time, however slow the machine is
		r.eventually(fmt.Sprintf("part %d of 10 has arrived", part), func() bool { return messages(r, after) >= total*part/10 })
	}
	r.eventually("nothing waits any more", func() bool { s := r.status(); return s.Backlog == 0 && s.Reason == "" })
	t.Logf("%d messages, the heap grew by %d KiB while the broker was away", total, grown>>10)
	if grown > most {
		t.Errorf("the heap grew by %d bytes while the broker was away", grown)
	}
	want := flooded(keys, rounds)
	for key, n := range appended {
		want[key] = n
	}
	if err := complete(r.stored(after), want, 1000); err != nil { // what was under way when the broker stopped
		t.Error(err)
	}
}

// messages is how many a stream has.
func messages(r *rig, s jetstream.Stream) int {
	info, err := s.Info(r.ctx)
	if err != nil {
		return 0
	}
	return int(info.State.Msgs)
}

// stored is what a stream has, in its order.
func (r *rig) stored(s jetstream.Stream) (all []outbox.Message) {
	r.t.Helper()
	n := messages(r, s)
	consumer, err := s.OrderedConsumer(r.ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		r.t.Fatal(err)
	}
	for len(all) < n {
		batch, err := consumer.Fetch(min(500, n-len(all)))
		if err != nil {
			r.t.Fatal(err)
		}
		for m := range batch.Messages() {
			sequence, err := strconv.ParseInt(strings.TrimLeft(m.Headers().Get("ce-sequence"), "0"), 10, 64)
			if err != nil {
				r.t.Fatal(err)
			}
			got := outbox.Message{RecordedMessage: eventstore.RecordedMessage{Message: eventstore.Message{Key: m.Headers().Get("ce-partitionkey"), Sequence: sequence}}}
			all = append(all, got)
		}
		if err := batch.Error(); err != nil { // the next one goes on where this one ended
			r.t.Log(err)
		}
		if err := r.ctx.Err(); err != nil {
			r.t.Fatalf("of %d messages %d are read: %v", n, len(all), err)
		}
	}
	return all
}
