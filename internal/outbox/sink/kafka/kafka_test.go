package kafka_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/kafka"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
)

func TestMain(m *testing.M) { os.Exit(sinktest.Main(m.Run)) }

const (
	topic = "orders"
	// patience bounds what a test waits for; nothing takes that long.
	patience = 5 * time.Minute
)

func TestARecordHasTheMessagesKeyAndItsAttributesAsHeaders(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	m := message("order-1", `{"total":3}`)
	mustPublish(t, publisher(t, config(c)), m)

	r := read(t, c, 1)[0]
	if string(r.Key) != "order-1" || string(r.Value) != `{"total":3}` {
		t.Errorf("the record is %q: %q", r.Key, r.Value)
	}
	headers := map[string]string{}
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	for name, want := range map[string]string{
		"ce_id": m.ID.String(), "ce_type": m.Type, "ce_source": m.Source, "ce_specversion": "1.0", "ce_partitionkey": "order-1", "content-type": "application/json",
	} {
		if headers[name] != want {
			t.Errorf("header %s is %q, not %q", name, headers[name], want)
		}
	}
}

func TestMessagesOfOneKeyAreInOnePartitionInTheirOrder(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.SeedTopics(5, topic))
	p := publisher(t, config(c))
	for i := range 20 {
		mustPublish(t, p, message("order-1", fmt.Sprint(i)), message("order-2", fmt.Sprint(i)), message("order-3", fmt.Sprint(i)))
	}
	next, partition := map[string]int{}, map[string]int32{}
	for _, r := range read(t, c, 60) {
		key := string(r.Key)
		if p, seen := partition[key]; seen && p != r.Partition {
			t.Errorf("%s is in partitions %d and %d", key, p, r.Partition)
		}
		partition[key] = r.Partition
		if string(r.Value) != fmt.Sprint(next[key]) {
			t.Errorf("%s has %s where %d was to be", key, r.Value, next[key])
		}
		next[key]++
	}
}

func TestTheProducerIsIdempotentAndWaitsForAllReplicas(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	var produced atomic.Int32
	c.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		r := request.(*kmsg.ProduceRequest)
		if r.Acks != -1 {
			t.Errorf("acks is %d", r.Acks)
		}
		for _, topic := range r.Topics {
			for _, p := range topic.Partitions {
				batch := kmsg.RecordBatch{}
				if err := batch.ReadFrom(p.Records); err != nil {
					t.Error(err)
				}
				if batch.ProducerID < 0 || batch.FirstSequence < 0 {
					t.Errorf("a batch has producer %d and sequence %d", batch.ProducerID, batch.FirstSequence)
				}
				produced.Add(1)
			}
		}
		return nil, nil, false
	})
	mustPublish(t, publisher(t, config(c)), message("order-1", "1"))
	if produced.Load() == 0 {
		t.Error("nothing was seen")
	}
}

func TestAnUnknownTopicIsNotCreatedAndMakesTheSinkWait(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.AllowAutoTopicCreation())
	config := config(c)
	config.Topic = "unheard-of"
	p := publisher(t, config)
	wantError(t, p.Check(t.Context()), outbox.Unavailable, outbox.ReasonNotFound)
	wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "1")})[0], outbox.Unavailable, outbox.ReasonNotFound)
	if c.TopicInfo("unheard-of") != nil {
		t.Error("the topic was created")
	}
	if err := c.CreateTopic("unheard-of", 1, nil); err != nil {
		t.Fatal(err)
	}
	mustPublish(t, p, message("a", "1"))
}

func TestATopicThatIsDeletedMeanwhileMakesTheSinkWait(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	p := publisher(t, config(c))
	mustPublish(t, p, message("a", "1"))
	if err := c.DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "1")})[0], outbox.Unavailable, outbox.ReasonNotFound)
}

func TestABatchLargerThanTheTopicTakesAtOnceGoesThroughInParts(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	c.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		const usual = 1_000_012 // a topic's limit unless it is told otherwise
		for _, topic := range request.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				if len(p.Records) > usual {
					t.Errorf("a batch of %d bytes was tried", len(p.Records))
				}
			}
		}
		return nil, nil, false
	})
	var all []outbox.Message
	for i := range 5 {
		all = append(all, message(fmt.Sprint("order-", i), `"`+incompressible(400_000)+`"`))
	}
	mustPublish(t, publisher(t, config(c)), all...)
	read(t, c, 5)
}

func TestOneMessageLargerThanTheClientsUsualLimitGoesThroughWhereTheTopicTakesIt(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "10000000"}))
	mustPublish(t, publisher(t, config(c)), message("a", `"`+incompressible(3_000_000)+`"`))
}

func TestWrongCredentialsAreUnauthorized(t *testing.T) {
	t.Parallel()
	for _, mechanism := range []string{kafka.Plain, kafka.ScramSHA256, kafka.ScramSHA512} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			c := cluster(t, kfake.EnableSASL(), kfake.Superuser(mechanism, "saga", "right"))
			config := config(c)
			config.Mechanism = mechanism
			config.Credentials = sink.Credentials{Username: "saga", Password: "wrong"}
			p := publisher(t, config)
			// This cluster ends the connection without a word.
			wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "1")})[0], outbox.Unavailable, outbox.ReasonUnauthorized)

			config.Credentials.Password = "right"
			mustPublish(t, publisher(t, config), message("a", "1"))
		})
	}
}

func TestABrokerThatSaysThatTheCredentialsAreWrongIsBelieved(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.EnableSASL(), kfake.Superuser(kafka.Plain, "saga", "right"))
	c.ControlKey(int16(kmsg.SASLAuthenticate), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		answer := request.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		answer.ErrorCode = kerr.SaslAuthenticationFailed.Code
		return answer, nil, true
	})
	config := config(c)
	config.Mechanism, config.Credentials = kafka.Plain, sink.Credentials{Username: "saga", Password: "right"}
	wantError(t, publisher(t, config).Check(t.Context()), outbox.Unavailable, outbox.ReasonUnauthorized)
}

func TestCheckNoticesThatTheTopicMayNotBeWrittenTo(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser(kafka.Plain, "admin", "admin"), kfake.User(kafka.Plain, "saga", "right", kfake.ACL{
		Resource: kmsg.ACLResourceTypeTopic, Name: topic, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: kmsg.ACLOperationRead, Allow: true,
	}))
	config := config(c)
	config.Mechanism = kafka.Plain
	config.Credentials = sink.Credentials{Username: "saga", Password: "right"}
	wantError(t, publisher(t, config).Check(t.Context()), outbox.Unavailable, outbox.ReasonUnauthorized)
}

func TestARefusalOfThePartitionIsNotTheMessagesFault(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	config := config(c)
	p := publisher(t, config)
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "1")})[0], outbox.Unavailable, outbox.ReasonUnauthorized)
	fault.Remove()
	mustPublish(t, p, message("a", "1"))
}

func TestACallDoesNotQueueUpBehindOneThatHangs(t *testing.T) {
	t.Parallel()
	config := config(cluster(t))
	dial := config.Dial
	var deaf atomic.Bool
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil || deaf.Load() {
			return conn, err
		}
		return &deafConn{Conn: conn, deaf: &deaf}, nil
	}
	p := publisher(t, config)
	mustPublish(t, p, message("a", "1"))

	deaf.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for _, err := range p.Publish(ctx, []outbox.Message{message("a", "2"), message("b", "3")}) {
		wantError(t, err, outbox.Failed, outbox.ReasonTimeout)
	}
	mustPublish(t, p, message("a", "2"), message("b", "3"))
}

// deafConn hears nothing once it is deaf.
type deafConn struct {
	net.Conn
	deaf *atomic.Bool
}

func (c *deafConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.deaf.Load() {
			return n, err
		}
	}
}

func TestTheEgressPolicyIsAskedForEveryBroker(t *testing.T) {
	t.Parallel()
	c := cluster(t, kfake.NumBrokers(3), kfake.SeedTopics(6, topic))
	config := config(c)
	var asked atomic.Int32
	config.Brokers = config.Brokers[:1]
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		asked.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	var all []outbox.Message
	for i := range 30 {
		all = append(all, message(fmt.Sprint("order-", i), "1"))
	}
	mustPublish(t, publisher(t, config), all...)
	if asked.Load() < 3 {
		t.Errorf("three brokers were connected to, the dialer was asked for %d", asked.Load())
	}
}

func TestAnEncryptedConnectionIsMadeOverTheConnectionsDialer(t *testing.T) {
	t.Parallel()
	certificate, pool := selfSigned(t)
	c := cluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{certificate}}))
	config := config(c)
	config.TLS = &tls.Config{RootCAs: pool}
	mustPublish(t, publisher(t, config), message("a", "1"))

	config.TLS = &tls.Config{}
	wantError(t, publisher(t, config).Check(t.Context()), outbox.Unavailable, outbox.ReasonTLSFailed)
}

func TestACallThatIsOverBeforeItBeginsSendsNothingAndEndsNoSession(t *testing.T) {
	t.Parallel()
	var dialled atomic.Int32
	c := config(cluster(t))
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
	p := publisher(t, config(cluster(t)))
	mustPublish(t, p, message("a", "1"))
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, p.Publish(t.Context(), []outbox.Message{message("a", "2")})[0], outbox.Unavailable, outbox.ReasonConnectionFailed)
	wantError(t, p.Check(t.Context()), outbox.Unavailable, outbox.ReasonConnectionFailed)
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	good := kafka.Config{Connection: connection(), Brokers: []string{"kafka"}, Topic: topic}
	for name, spoil := range map[string]func(*kafka.Config){
		"no brokers": func(c *kafka.Config) { c.Brokers = nil },
		"no topic":   func(c *kafka.Config) { c.Topic = "" },
		"mechanism":  func(c *kafka.Config) { c.Mechanism = "GUESSING" },
		"no dialer":  func(c *kafka.Config) { c.Dial = nil },
	} {
		c := good
		spoil(&c)
		if _, err := kafka.New(c); err == nil {
			t.Errorf("%s: there is no error", name)
		}
	}
	p, err := kafka.New(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// cluster is a Kafka in this process, spoken to over TCP by the real client.
func cluster(t *testing.T, options ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(1, topic)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func connection() sink.Connection {
	return sink.Connection{Dial: new(net.Dialer).DialContext, Timeout: patience, Mode: outbox.Binary}
}

func config(c *kfake.Cluster) kafka.Config {
	return kafka.Config{Connection: connection(), Brokers: c.ListenAddrs(), Topic: topic}
}

func publisher(t *testing.T, c kafka.Config) *kafka.Publisher {
	t.Helper()
	p, err := kafka.New(c)
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

func message(key, data string) outbox.Message {
	return outbox.Message{RecordedMessage: eventstore.RecordedMessage{
		Message: eventstore.Message{
			ID: uuid.Must(uuid.NewV7()), Type: "shop.OrderPlaced", Key: key, Source: "/shop", Subject: key, Namespace: "shop", Data: []byte(data),
		},
		RecordedAt: time.Now(),
	}}
}

// incompressible is a text that stays as long as it is, however it is compressed.
func incompressible(n int) string {
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(strings.ReplaceAll(uuid.NewString(), "-", ""))
	}
	return b.String()[:n]
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

// read returns the first n records of the topic.
func read(t *testing.T, c *kfake.Cluster, n int) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumeTopics(topic), kgo.DialTimeout(patience), kgo.RequestTimeoutOverhead(patience))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []*kgo.Record
	for len(all) < n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading record %d of %d: %v", len(all), n, err)
		}
		all = append(all, fetches.Records()...)
	}
	return all
}
