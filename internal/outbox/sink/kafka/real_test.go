package kafka_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/kafka"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
)

// KAFKA_BROKERS names brokers (host:port, with commas between them) of a real Kafka, without TLS and SASL, on which topics may be created and deleted.
const brokersVariable = "KAFKA_BROKERS"

func TestConformanceOnARealBroker(t *testing.T) {
	t.Parallel()
	if os.Getenv(brokersVariable) == "" {
		t.Skip(brokersVariable + " names no Kafka brokers")
	}
	sinktest.Run(t, func(t *testing.T) *sinktest.Harness {
		c, create := realConfig(t)
		create(t, c.Topic)
		ready := publisher(t, c)
		eventually(t, "the topic is known", func() bool { return ready.Check(t.Context()) == nil })
		return harness(c)
	})
}

func TestWhatARealBrokerHasIsListenedTo(t *testing.T) {
	t.Parallel()
	c, create := realConfig(t)
	p := publisher(t, c)
	wantError(t, p.Check(t.Context()), outbox.Unavailable, outbox.ReasonNotFound)
	create(t, c.Topic)
	eventually(t, "the topic is known", func() bool { return p.Check(t.Context()) == nil })
	mustPublish(t, p, message("a", "1"), message("b", "2"))
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan outbox.Incoming, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- p.Listen(ctx, c.Topic, c.Topic, func(_ context.Context, in outbox.Incoming) error { got <- in; return nil })
	}()
	receive(t, got)
	receive(t, got)
	cancel()
	<-ended
}

// realConfig is for a topic that does not exist yet, on the brokers of the environment; create makes it.
func realConfig(t *testing.T) (c kafka.Config, create func(t *testing.T, topic string)) {
	t.Helper()
	brokers := os.Getenv(brokersVariable)
	if brokers == "" {
		t.Skip(brokersVariable + " names no Kafka brokers")
	}
	c = kafka.Config{Connection: connection(), Brokers: strings.Split(brokers, ","), Topic: "saga-test-" + uuid.NewString()}
	client, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return c, func(t *testing.T, topic string) {
		t.Helper()
		ask := kmsg.NewPtrCreateTopicsRequest()
		of := kmsg.NewCreateTopicsRequestTopic()
		of.Topic, of.NumPartitions, of.ReplicationFactor = topic, 3, 1
		ask.Topics = append(ask.Topics, of)
		answer, err := ask.RequestWith(t.Context(), client)
		if err == nil {
			err = kerr.ErrorForCode(answer.Topics[0].ErrorCode)
		}
		if err != nil {
			t.Fatalf("creating topic %s: %v", topic, err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			ask := kmsg.NewPtrDeleteTopicsRequest()
			of := kmsg.NewDeleteTopicsRequestTopic()
			of.Topic = kmsg.StringPtr(topic)
			ask.Topics, ask.TopicNames = append(ask.Topics, of), []string{topic}
			if _, err := ask.RequestWith(ctx, client); err != nil {
				t.Errorf("deleting topic %s: %v", topic, err)
			}
		})
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) { //nolint:forbidigo // the pause between two looks
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
