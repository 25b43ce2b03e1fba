package rabbitmq_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/rabbitmq"
	"github.com/vextrus/saga-operator/internal/outbox/sink/rabbitmq/rabbittest"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
)

// patience bounds what a test waits for; nothing takes that long.
const patience = 5 * time.Minute

func TestMain(m *testing.M) {
	os.Exit(sinktest.Main(func() int { return rabbittest.Main(m) }))
}

func TestAMessageIsPersistentAndHasItsIDAndItsAttributesAsHeaders(t *testing.T) {
	t.Parallel()
	r := rig(t)
	m := message("order-1", `{"total":3}`)
	mustPublish(t, r.publisher(t), m)
	d := r.get(t)
	if d.MessageId != m.ID.String() || d.DeliveryMode != amqp.Persistent || d.ContentType != "application/json" || string(d.Body) != `{"total":3}` {
		t.Errorf("the message is %+v", d)
	}
	if !d.Timestamp.Equal(m.RecordedAt.Truncate(time.Second)) {
		t.Errorf("its time is %s and not %s", d.Timestamp, m.RecordedAt)
	}
	if d.RoutingKey != "shop.OrderPlaced.shop" {
		t.Errorf("its routing key is %q", d.RoutingKey)
	}
	for name, want := range map[string]string{
		"cloudEvents:id": m.ID.String(), "cloudEvents:type": m.Type, "cloudEvents:source": m.Source, "cloudEvents:specversion": "1.0", "cloudEvents:partitionkey": "order-1",
	} {
		if d.Headers[name] != want {
			t.Errorf("header %s is %v, not %q", name, d.Headers[name], want)
		}
	}
}

func TestAMessageThatNoQueueTakesMakesTheSinkWaitAndTheOthersGoThrough(t *testing.T) {
	t.Parallel()
	r := rig(t)
	r.config.RoutingKey = "{subject}"
	if err := r.channel.QueueBind(r.name, "bound", r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	p := r.publisher(t)
	errs := p.Publish(t.Context(), []outbox.Message{message("bound", "1"), message("unbound", "2")})
	if errs[0] != nil {
		t.Errorf("the first was not taken: %v", errs[0])
	}
	wantError(t, errs[1], outbox.Unavailable, outbox.ReasonNotFound)
	if !strings.Contains(errs[1].Error(), "no queue is bound") {
		t.Errorf("the error does not say why: %v", errs[1])
	}
	if err := r.channel.QueueBind(r.name, "unbound", r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	mustPublish(t, p, message("unbound", "3"))
}

func TestAQueueThatIsFullRefusesAMessageAndTheAttemptCounts(t *testing.T) {
	t.Parallel()
	r := rig(t)
	full := r.name + "-full"
	if _, err := r.channel.QueueDeclare(full, true, false, false, false, amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"}); err != nil {
		t.Fatal(err)
	}
	r.config.Exchange, r.config.RoutingKey = "", full
	p := r.publisher(t)
	mustPublish(t, p, message("a", "1"))
	wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "2")})[0], outbox.Failed, outbox.ReasonRefused)
	if _, err := r.channel.QueuePurge(full, false); err != nil {
		t.Fatal(err)
	}
	mustPublish(t, p, message("a", "2"))
}

func TestAnExchangeThatDoesNotExistMakesTheSinkWait(t *testing.T) {
	t.Parallel()
	r := rig(t)
	r.config.Exchange = r.name + "-later"
	p := r.publisher(t)
	wantError(t, p.Check(t.Context()), outbox.Unavailable, outbox.ReasonNotFound)
	for _, err := range p.Publish(t.Context(), []outbox.Message{message("a", "1"), message("b", "2")}) {
		wantError(t, err, outbox.Unavailable, outbox.ReasonNotFound)
	}
	r.declare(t, r.config.Exchange)
	if err := p.Check(t.Context()); err != nil {
		t.Error(err)
	}
	mustPublish(t, p, message("a", "1"))
}

func TestWhatIsPublishedTogetherWithAMessageTooLargeIsThereOnce(t *testing.T) {
	t.Parallel()
	r := rig(t)
	var all []outbox.Message
	for i := range 200 {
		all = append(all, message(fmt.Sprint("order-", i), "1"))
	}
	all = append(all, message("large", `"`+strings.Repeat("x", rabbittest.MaxMessageBytes)+`"`))
	errs := r.publisher(t).Publish(t.Context(), all)
	wantError(t, errs[200], outbox.Rejected, outbox.ReasonTooLarge)
	if err := errors.Join(errs[:200]...); err != nil {
		t.Fatal(err)
	}
	q, err := r.channel.QueueDeclarePassive(r.name, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.Messages != 200 {
		t.Errorf("there are %d messages, not 200", q.Messages)
	}
}

func TestWhatTheProtocolHasNoRoomForIsRejectedAndCostsNoConnection(t *testing.T) {
	t.Parallel()
	r := rig(t)
	r.config.RoutingKey = "{subject}"
	if err := r.channel.QueueBind(r.name, "#", r.name, false, nil); err != nil {
		t.Fatal(err)
	}
	p := r.publisher(t)
	key, headers := message("a", "1"), message("b", "2")
	key.Subject = strings.Repeat("x", 256)
	headers.Source = "/" + strings.Repeat("x", 130_000)
	errs := p.Publish(t.Context(), []outbox.Message{key, headers, message("c", "3")})
	wantError(t, errs[0], outbox.Rejected, outbox.ReasonRefused)
	wantError(t, errs[1], outbox.Rejected, outbox.ReasonTooLarge)
	if errs[2] != nil {
		t.Error(errs[2])
	}
}

func TestWhoeverMayNotIsUnauthorized(t *testing.T) {
	t.Parallel()
	r := rig(t)
	good := r.config
	for name, change := range map[string]func(*rabbitmq.Config){
		"a wrong password":       func(c *rabbitmq.Config) { c.Credentials.Password = "wrong" },
		"no credentials":         func(c *rabbitmq.Config) { c.Credentials = sink.Credentials{} },
		"another's virtual host": func(c *rabbitmq.Config) { c.Credentials.Username = rabbittest.Reader; c.URL += "/shop%2Feu" },
		"no right to write":      func(c *rabbitmq.Config) { c.Credentials.Username = rabbittest.Reader },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := good
			change(&c)
			p := publisher(t, c)
			wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "1")})[0], outbox.Unavailable, outbox.ReasonUnauthorized)
		})
	}
}

func TestTheVirtualHostComesFromTheURL(t *testing.T) {
	t.Parallel()
	r := rig(t)
	r.config.URL += "/shop%2Feu"
	r.config.Exchange = "amq.topic"
	if err := r.publisher(t).Check(t.Context()); err != nil {
		t.Error(err)
	}
	r.config.URL = r.server.URL() + "/nowhere"
	wantError(t, r.publisher(t).Check(t.Context()), outbox.Unavailable, outbox.ReasonNotFound)
}

func TestABatchLargerThanTheLimitGoesThrough(t *testing.T) {
	t.Parallel()
	r := rig(t)
	p := r.publisher(t)
	var all []outbox.Message
	for i := range 2*p.Limits().Batch + 1 {
		all = append(all, message(fmt.Sprint("order-", i), "1"))
	}
	mustPublish(t, p, all...)
}

func TestABrokerThatTakesNothingMakesTheSinkWait(t *testing.T) {
	t.Parallel()
	s := rabbittest.NewServer(t)
	p := rigOn(t, s).publisher(t)
	mustPublish(t, p, message("a", "1"))
	if err := s.Control(t.Context(), "set_vm_memory_high_watermark", "absolute", "1"); err != nil {
		t.Fatal(err)
	}
	busy(t, p, message("a", "2"))
	// It reads nothing either: what is written gets stuck once the buffers between us are full.
	var much []outbox.Message
	for i := range 250 {
		much = append(much, message(fmt.Sprint("order-", i), `"`+strings.Repeat("x", 100_000)+`"`))
	}
	much = append(much, message("large", `"`+strings.Repeat("x", 500_000)+`"`))
	busy(t, p, much...)
	if err := s.Control(t.Context(), "set_vm_memory_high_watermark", "0.4"); err != nil {
		t.Fatal(err)
	}
	mustPublish(t, p, message("a", "2"))
}

// busy publishes to a broker that takes nothing until that is known to be why. The broker says so in its own time; until then a call is one that got no answer.
func busy(t *testing.T, p outbox.Publisher, all ...outbox.Message) {
	t.Helper()
	var e *outbox.Error
	unanswered := func(err error) bool {
		return errors.As(err, &e) && e.Kind == outbox.Failed && e.Reason == outbox.ReasonTimeout
	}
	for within := time.Second; within < patience; within *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		errs := p.Publish(ctx, all)
		cancel()
		if slices.ContainsFunc(errs, unanswered) {
			continue
		}
		for _, err := range errs {
			wantError(t, err, outbox.Unavailable, outbox.ReasonBusy)
		}
		return
	}
	t.Fatal("the broker has never said that it takes nothing")
}

func TestAfterARestartOfTheBrokerItGoesOn(t *testing.T) {
	t.Parallel()
	s := rabbittest.NewServer(t)
	r := rigOn(t, s)
	p := r.publisher(t)
	mustPublish(t, p, message("a", "1"))
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := p.Publish(t.Context(), []outbox.Message{message("a", "2")})[0]
	if e, ok := errors.AsType[*outbox.Error](err); ok && e.Kind == outbox.Failed { // the first who notices that the connection has ended
		wantError(t, err, outbox.Failed, outbox.ReasonConnectionFailed)
		err = p.Publish(t.Context(), []outbox.Message{message("a", "2")})[0]
	}
	wantError(t, err, outbox.Unavailable, outbox.ReasonConnectionFailed)
	wantError(t, p.Check(t.Context()), outbox.Unavailable, outbox.ReasonConnectionFailed)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustPublish(t, p, message("a", "2"))
	q, err := s.Channel(t).QueueDeclarePassive(r.name, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.Messages != 2 {
		t.Errorf("%d messages of 2 have survived the restart", q.Messages)
	}
}

func TestAPeerThatSaysNothingCostsNoMoreThanTheTimeout(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := rabbitmq.Config{Connection: connection(), URL: "amqp://" + l.Addr().String(), Exchange: "orders"}
	c.Timeout = 200 * time.Millisecond
	wantError(t, publisher(t, c).Check(t.Context()), outbox.Unavailable, outbox.ReasonTimeout)
}

func TestACallThatIsOverBeforeItBeginsSendsNothingAndEndsNoSession(t *testing.T) {
	t.Parallel()
	var dialled atomic.Int32
	c := rig(t).config
	dial := c.Dial
	c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return dial(ctx, network, address)
	}
	p := publisher(t, c)
	mustPublish(t, p, message("a", "1"))
	before := dialled.Load()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, p.Publish(ctx, []outbox.Message{message("a", "2")})[0], outbox.Failed, outbox.ReasonTimeout)
	mustPublish(t, p, message("a", "3"))
	if after := dialled.Load(); after != before {
		t.Errorf("%d connections were made, and then %d more", before, after-before)
	}
}

func TestAClosedPublisherTakesNothing(t *testing.T) {
	t.Parallel()
	p := publisher(t, rig(t).config)
	mustPublish(t, p, message("a", "1"))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "2")})[0], outbox.Unavailable, outbox.ReasonConnectionFailed)
	wantError(t, p.Check(t.Context()), outbox.Unavailable, outbox.ReasonConnectionFailed)
}

func TestURLsThatCannotWorkAreRefusedWithoutBeingShown(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "rabbit:5672", "http://rabbit", "amqp://user:hush@rabbit", "amqp://", "amqp://rabbit/a/b", "amqp://rabbit/?cacertfile=/etc/passwd", "amqp://user:hush@rabbit:port",
	} {
		_, err := rabbitmq.New(rabbitmq.Config{Connection: connection(), URL: url})
		if err == nil {
			t.Errorf("%q was taken", url)
		} else if strings.Contains(err.Error(), "hush") {
			t.Errorf("the password is in %q", err)
		}
	}
}

// testRig is an exchange with a queue that has the same name.
type testRig struct {
	server  *rabbittest.Server
	name    string
	config  rabbitmq.Config
	channel *amqp.Channel
}

func rig(t *testing.T) *testRig {
	t.Helper()
	return rigOn(t, rabbittest.Shared(t))
}

func rigOn(t *testing.T, s *rabbittest.Server) *testRig {
	t.Helper()
	r := &testRig{server: s, name: "test-" + uuid.NewString(), channel: s.Channel(t)}
	r.config = rabbitmq.Config{Connection: connection(), URL: s.URL(), Exchange: r.name, RoutingKey: "{type}.{namespace}"}
	r.declare(t, r.name)
	return r
}

func (r *testRig) declare(t *testing.T, exchange string) {
	t.Helper()
	if err := r.channel.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.channel.QueueDeclare(r.name, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.channel.QueueBind(r.name, "shop.#", exchange, false, nil); err != nil {
		t.Fatal(err)
	}
}

func (r *testRig) publisher(t *testing.T) *rabbitmq.Publisher {
	t.Helper()
	return publisher(t, r.config)
}

// get takes the next message from the queue.
func (r *testRig) get(t *testing.T) amqp.Delivery {
	t.Helper()
	d, ok, err := r.channel.Get(r.name, true)
	if err != nil || !ok {
		t.Fatalf("there is no message in the queue (%v)", err)
	}
	return d
}

func publisher(t *testing.T, c rabbitmq.Config) *rabbitmq.Publisher {
	t.Helper()
	p, err := rabbitmq.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func connection() sink.Connection {
	return sink.Connection{
		Dial: new(net.Dialer).DialContext, Timeout: patience, Mode: outbox.Binary,
		Credentials: sink.Credentials{Username: rabbittest.Username, Password: rabbittest.Password},
	}
}

func message(key, data string) outbox.Message {
	return outbox.Message{RecordedMessage: eventstore.RecordedMessage{
		Message: eventstore.Message{
			ID: uuid.Must(uuid.NewV7()), Type: "shop.OrderPlaced", Key: key, Source: "/shop", Subject: key, Namespace: "shop", Data: []byte(data),
		},
		RecordedAt: time.Now(),
	}}
}

func mustPublish(t *testing.T, p outbox.Publisher, all ...outbox.Message) {
	t.Helper()
	for i, err := range p.Publish(t.Context(), all) {
		if err != nil {
			t.Fatalf("message %d was not taken: %v", i, err)
		}
	}
}

func wantError(t *testing.T, err error, kind outbox.Kind, reason string) {
	t.Helper()
	var e *outbox.Error
	if !errors.As(err, &e) {
		t.Fatalf("the error is %v", err)
	}
	if e.Kind != kind || e.Reason != reason {
		t.Fatalf("the error is of kind %d with reason %s, and was to be of kind %d with reason %s: %v", e.Kind, e.Reason, kind, reason, err)
	}
}

func receive(t *testing.T, got <-chan outbox.Incoming) outbox.Incoming {
	t.Helper()
	select {
	case in := <-got:
		return in
	case <-time.After(patience):
		t.Fatal("nothing came")
		return outbox.Incoming{}
	}
}

// listen listens until it is stopped. What is handled also arrives in the channel.
func listen(t *testing.T, p *rabbitmq.Publisher, queue string, handle func(outbox.Incoming) error) (<-chan outbox.Incoming, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan outbox.Incoming, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- p.Listen(ctx, queue, "group", func(_ context.Context, in outbox.Incoming) error {
			err := handle(in)
			got <- in
			return err
		})
	}()
	return got, func() {
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("listening ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("listening does not end")
		}
	}
}
