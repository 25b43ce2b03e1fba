package kafka_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/kafka"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
	"github.com/vextrus/saga-operator/internal/ports"
)

const user = "saga"

func TestConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) *sinktest.Harness {
		options := []kfake.Opt{kfake.SeedTopics(3, topic), kfake.EnableSASL(), kfake.Superuser(kafka.ScramSHA256, user, sinktest.Secret)}
		_, text, err := net.SplitHostPort(ports.ForTest(t))
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		options = append(options, kfake.Ports(port))
		running := cluster(t, options...)
		c := config(running)
		c.Mechanism = kafka.ScramSHA256
		c.Credentials = sink.Credentials{Username: user, Password: sinktest.Secret}
		h := harness(c)
		h.Credentials = true
		h.Stop = func(*testing.T) { running.Close() }
		h.Start = func(t *testing.T) {
			running = cluster(t, options...)
		}
		return h
	})
}

// harness is one for a topic that exists.
func harness(good kafka.Config) *sinktest.Harness {
	return &sinktest.Harness{
		New: func(t *testing.T, w sinktest.With) outbox.Publisher {
			t.Helper()
			c := good
			if w.Mode != "" {
				c.Mode = w.Mode
			}
			if w.Dial != nil {
				c.Dial = w.Dial
			}
			if w.Address != "" {
				c.Brokers = []string{w.Address}
			}
			if w.WrongCredentials {
				c.Credentials.Username = "nobody"
			}
			if w.Missing {
				c.Topic += "-missing"
			}
			if w.Timeout > 0 {
				c.Timeout = w.Timeout
			}
			p, err := kafka.New(c)
			if err != nil {
				t.Fatal(err)
			}
			return p
		},
		Received: func(t *testing.T) []sinktest.Got { return received(t, good) },
		TooLarge: 3_000_000,
		Missing:  true,
	}
}

// received is everything that the topic has at the moment.
func received(t *testing.T, c kafka.Config) []sinktest.Got {
	t.Helper()
	options := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.DialTimeout(patience), kgo.RequestTimeoutOverhead(patience)}
	if c.Mechanism != "" {
		options = append(options, kgo.SASL(scram.Auth{User: c.Credentials.Username, Pass: string(c.Credentials.Password)}.AsSha256Mechanism()))
	}
	asking, err := kgo.NewClient(options...)
	if err != nil {
		t.Fatal(err)
	}
	defer asking.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	from := map[int32]kgo.Offset{}
	var records int64
	for partition, end := range ends(ctx, t, asking, c.Topic) {
		records += end
		from[partition] = kgo.NewOffset().At(0)
	}
	reading, err := kgo.NewClient(append(options, kgo.FetchMaxWait(100*time.Millisecond), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{c.Topic: from}))...)
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	var all []sinktest.Got
	for int64(len(all)) < records {
		fetches := reading.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading record %d of %d: %v", len(all), records, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { all = append(all, got(t, r)) })
	}
	return all
}

func got(t *testing.T, r *kgo.Record) sinktest.Got {
	t.Helper()
	in := outbox.Incoming{Headers: map[string]string{}, Body: r.Value}
	for _, h := range r.Headers {
		in.Headers[h.Key] = string(h.Value)
	}
	e, err := outbox.Decode(in)
	if err != nil {
		t.Fatal(err)
	}
	return sinktest.Got{Key: string(r.Key), ID: e.ID(), Incoming: in}
}

// ends are the offsets behind the last record of each partition.
func ends(ctx context.Context, t *testing.T, client *kgo.Client, topic string) map[int32]int64 {
	t.Helper()
	ask := kmsg.NewPtrMetadataRequest()
	of := kmsg.NewMetadataRequestTopic()
	of.Topic = kmsg.StringPtr(topic)
	ask.Topics = append(ask.Topics, of)
	metadata, err := ask.RequestWith(ctx, client)
	if err != nil {
		t.Fatal(err)
	}
	list := kmsg.NewPtrListOffsetsRequest()
	listed := kmsg.NewListOffsetsRequestTopic()
	listed.Topic = topic
	for _, p := range metadata.Topics[0].Partitions {
		partition := kmsg.NewListOffsetsRequestTopicPartition()
		partition.Partition, partition.Timestamp = p.Partition, -1 // the latest
		listed.Partitions = append(listed.Partitions, partition)
	}
	list.Topics = append(list.Topics, listed)
	offsets, err := list.RequestWith(ctx, client)
	if err != nil {
		t.Fatal(err)
	}
	all := map[int32]int64{}
	for _, topic := range offsets.Topics {
		for _, p := range topic.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				t.Fatal(fmt.Errorf("asking for the end of partition %d: %w", p.Partition, err))
			}
			all[p.Partition] = p.Offset
		}
	}
	return all
}
