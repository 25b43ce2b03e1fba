package nats_test

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/nats"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
	"github.com/vextrus/saga-operator/internal/ports"
)

func TestMain(m *testing.M) { os.Exit(sinktest.Main(m.Run)) }

const (
	user       = "relay"
	maxPayload = 100_000
	// patience bounds what a test waits for; nothing takes that long.
	patience = 5 * time.Minute
)

// broker is a NATS server with a stream for events.> and answers.>.
type broker struct {
	options *server.Options
	server  *server.Server
}

func newBroker(t *testing.T, more ...func(*server.Options)) *broker {
	t.Helper()
	_, text, err := net.SplitHostPort(ports.ForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{options: &server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: maxPayload, Username: user, Password: sinktest.Secret,
		// Clients may take their time.
		AuthTimeout: patience.Seconds(), TLSTimeout: patience.Seconds(), WriteDeadline: patience,
	}}
	for _, change := range more {
		change(b.options)
	}
	b.start(t)
	t.Cleanup(func() { b.stop(t) })
	stream := jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>", "answers.>"}, Duplicates: time.Hour}
	if _, err := b.client(t).CreateStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *broker) start(t *testing.T) {
	t.Helper()
	s, err := server.NewServer(b.options)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server does not start")
	}
	b.server = s
}

func (b *broker) stop(*testing.T) {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

func (b *broker) address() string { return "127.0.0.1:" + strconv.Itoa(b.options.Port) }

// client is one of the test's own.
func (b *broker) client(t *testing.T) jetstream.JetStream {
	t.Helper()
	conn, err := natsgo.Connect("nats://"+b.address(), natsgo.UserInfo(user, sinktest.Secret), natsgo.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn, jetstream.WithDefaultTimeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func (b *broker) config() nats.Config {
	return nats.Config{
		Connection: sink.Connection{Dial: (&net.Dialer{}).DialContext, Timeout: patience, Credentials: sink.Credentials{Username: user, Password: sinktest.Secret}},
		Servers:    []string{"nats://" + b.address()}, Subject: "events.{namespace}",
	}
}

func connection() sink.Connection {
	return sink.Connection{Dial: (&net.Dialer{}).DialContext, Timeout: patience}
}

func publisher(t *testing.T, c nats.Config) *nats.Publisher {
	t.Helper()
	p, err := nats.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// received reads the stream from its beginning.
func (b *broker) received(t *testing.T) (all []sinktest.Got) {
	t.Helper()
	js := b.client(t)
	defer js.Conn().Close()
	stream, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= stream.CachedInfo().State.LastSeq; n++ {
		m, err := stream.GetMsg(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		g := sinktest.Got{ID: m.Header.Get(jetstream.MsgIDHeader), Incoming: outbox.Incoming{Headers: map[string]string{}, Body: m.Data}}
		for name, values := range m.Header {
			g.Headers[strings.ToLower(name)] = sink.UnescapeHeader(values[0])
		}
		all = append(all, g)
	}
	return all
}

func TestTheNATSSinkConforms(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) *sinktest.Harness { return newBroker(t).harness() })
}

func TestTheNATSSinkConformsWhereNobodyIsAskedWhoTheyAre(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) *sinktest.Harness {
		h := newBroker(t, func(o *server.Options) { o.Username, o.Password = "", "" }).harness()
		h.Credentials = false
		return h
	})
}

func (b *broker) harness() *sinktest.Harness {
	return &sinktest.Harness{
		Unordered: true, Credentials: true, Missing: true, Deduplicates: true, TooLarge: 2 * maxPayload,
		New: func(t *testing.T, w sinktest.With) outbox.Publisher {
			c := b.config()
			c.Mode, c.Timeout = w.Mode, w.Timeout
			if w.Dial != nil {
				c.Dial = w.Dial
			}
			if w.Address != "" {
				c.Servers = []string{"nats://" + w.Address}
			}
			if w.Missing {
				c.Subject = "nowhere.at.all"
			}
			if w.WrongCredentials {
				c.Credentials.Password = sinktest.Secret + "!"
			}
			return publisher(t, c)
		},
		Received: b.received, Stop: b.stop, Start: b.start,
	}
}

func message(subject string) outbox.Message {
	var m outbox.Message
	m.ID, m.Type, m.Source, m.Key, m.Subject, m.Namespace, m.Data = uuid.New(), "t", "/s", "k", subject, "shop", []byte(`{"a":1}`)
	return m
}

func TestASubjectIsMadeOfTheMessageAndWhatMakesNoneIsRejected(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	c := b.config()
	c.Subject = "events.{namespace}.{subject}"
	p := publisher(t, c)
	errs := p.Publish(t.Context(), []outbox.Message{message("order-1"), message("a b"), message("x.*"), message("order-2"), message("")})
	for i, want := range []bool{true, false, false, true, false} {
		e, failed := errors.AsType[*outbox.Error](errs[i])
		if failed == want || failed && (e.Kind != outbox.Rejected || e.Reason != outbox.ReasonRefused) {
			t.Errorf("message %d: %v", i, errs[i])
		}
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	good := nats.Config{Connection: sink.Connection{Dial: (&net.Dialer{}).DialContext}, Servers: []string{"h:4222"}, Subject: "a.b"}
	for name, spoil := range map[string]func(*nats.Config){
		"no way to connect": func(c *nats.Config) { c.Dial = nil }, "no servers": func(c *nats.Config) { c.Servers = nil },
		"no subject": func(c *nats.Config) { c.Subject = "" }, "a wildcard": func(c *nats.Config) { c.Subject = "a.>" }, "an empty token": func(c *nats.Config) { c.Subject = "a..b" },
	} {
		c := good
		spoil(&c)
		if _, err := nats.New(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := nats.New(good); err != nil {
		t.Error(err)
	}
}

// TestACallThatIsGivenUpEndsBeforeTheConnectionIsTakenForDead has a server that says nothing any more, which the client finds out by itself, in a minute.
func TestACallThatIsGivenUpEndsBeforeTheConnectionIsTakenForDead(t *testing.T) {
	t.Parallel()
	c := newBroker(t).config()
	var deaf atomic.Bool
	heard := make(chan struct{}, 1)
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		return &deafConn{conn, &deaf, heard}, err
	}
	p := publisher(t, c)
	if err := p.Publish(t.Context(), []outbox.Message{message("order-1")})[0]; err != nil {
		t.Fatal(err)
	}
	deaf.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-heard // the acknowledgement
		cancel()
	}()
	wantError(t, p.Publish(ctx, []outbox.Message{message("order-2")})[0], outbox.Failed, outbox.ReasonTimeout)
}

// deafConn drops what it hears once it is deaf, and says that there was something.
type deafConn struct {
	net.Conn
	deaf  *atomic.Bool
	heard chan struct{}
}

func (c *deafConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.deaf.Load() {
			return n, err
		}
		select {
		case c.heard <- struct{}{}:
		default:
		}
	}
}

func TestAListenerGetsWhatArrivesUntilItIsHandledAndAGroupGetsItOnce(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	js := b.client(t)
	for i := range 20 {
		if _, err := js.PublishMsg(t.Context(), &natsgo.Msg{Subject: "answers.shop", Data: []byte(strconv.Itoa(i)), Header: natsgo.Header{"Ce-Id": {strconv.Itoa(i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	handled := make(chan string, 100)
	var refusals atomic.Int32
	ended := make(chan error, 2)
	for range 2 {
		p := publisher(t, b.config())
		go func() {
			ended <- p.Listen(ctx, "answers.shop", "operators", func(_ context.Context, in outbox.Incoming) error {
				if string(in.Body) == "7" && refusals.Add(1) == 1 {
					return errors.New("not now")
				}
				if in.Headers["ce-id"] != string(in.Body) {
					t.Errorf("the headers are %v", in.Headers)
				}
				handled <- string(in.Body)
				return nil
			})
		}()
	}
	var got []string
	for range 20 {
		select {
		case one := <-handled:
			got = append(got, one)
		case <-time.After(patience):
			t.Fatalf("only %v were handled", got)
		}
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != 20 {
		t.Errorf("handled were %v", got)
	}
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("listening ended with %v", err)
		}
	}
}

func TestListenEndsWhenTheConnectionDoesOrNothingIsThere(t *testing.T) {
	t.Parallel()
	b := newBroker(t)
	p := publisher(t, b.config())
	if err := p.Listen(t.Context(), "nothing.here", "g", nil); err == nil {
		t.Error("listening to a subject of no stream goes on")
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Listen(t.Context(), "answers.shop", "g", nil) }()
	// Until it listens; the server tells nobody.
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(patience); b.server.NumSubscriptions() == 0; {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("it does not listen")
		}
	}
	b.stop(t)
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it ended without an error")
		}
	case <-time.After(patience):
		t.Error("it goes on")
	}
}
