package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/kafka"
)

func TestAListenerGetsWhatWasPublishedAndNotAgainOnceItIsHandled(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	p := publisher(t, config(c))
	mustPublish(t, p, message("a", "1"))

	got, stop := listen(t, p, func(outbox.Incoming) error { return nil })
	in := receive(t, got)
	e, err := outbox.Decode(in)
	if err != nil {
		t.Fatal(err)
	}
	if e.Type() != "shop.OrderPlaced" || string(in.Body) != "1" {
		t.Errorf("%v with %s came", e, in.Body)
	}
	stop()

	// What comes first to the next one tells that the first message does not come again.
	mustPublish(t, p, message("a", "2"))
	got, stop = listen(t, p, func(outbox.Incoming) error { return nil })
	defer stop()
	if in := receive(t, got); string(in.Body) != "2" {
		t.Errorf("%s came again", in.Body)
	}
}

func TestAMessageThatIsNotHandledComesAgainBeforeTheNextOfItsPartition(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	p := publisher(t, config(c))
	for i := range 3 {
		mustPublish(t, p, message("a", fmt.Sprint(i)))
	}
	failures := 2
	got, stop := listen(t, p, func(in outbox.Incoming) error {
		if string(in.Body) == "1" && failures > 0 {
			failures--
			return errors.New("not now")
		}
		return nil
	})
	defer stop()
	for _, want := range []string{"0", "1", "1", "1", "2"} {
		if in := receive(t, got); string(in.Body) != want {
			t.Fatalf("%s came where %s was to", in.Body, want)
		}
	}
}

func TestAMessageThatWasBeingHandledWhenTheListenerEndedComesAgain(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	p := publisher(t, config(c))
	mustPublish(t, p, message("a", "1"))
	got, stop := listen(t, p, func(outbox.Incoming) error { return errors.New("no") })
	receive(t, got)
	stop()
	got, stop = listen(t, p, func(outbox.Incoming) error { return nil })
	defer stop()
	if in := receive(t, got); string(in.Body) != "1" {
		t.Errorf("%s came", in.Body)
	}
}

// TestListenRefusesBatchThatExpands has a batch of a few kilobytes that would be 32 MiB in memory.
func TestListenRefusesBatchThatExpands(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	sender, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ProducerBatchMaxBytes(64<<20), kgo.BrokerMaxWriteBytes(128<<20),
		kgo.ProducerBatchCompression(kgo.GzipCompression()))
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	if err := sender.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: make([]byte, 32<<20)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = publisher(t, config(c)).Listen(ctx, topic, "group", func(context.Context, outbox.Incoming) error {
		cancel() // it has come
		return nil
	})
	if tooLarge := (*kgo.ErrDecompressTooLarge)(nil); !errors.As(err, &tooLarge) {
		t.Errorf("listening ended with %v", err)
	}
}

func TestListenEndsWhenTheBrokersAreGone(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	config := config(c)
	p := publisher(t, config)
	mustPublish(t, p, message("a", "1"))
	got := make(chan outbox.Incoming, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- p.Listen(t.Context(), topic, "group", func(_ context.Context, in outbox.Incoming) error { got <- in; return nil })
	}()
	receive(t, got)
	c.Close()
	select {
	case err := <-ended:
		wantError(t, err, outbox.Unavailable, outbox.ReasonConnectionFailed)
	case <-time.After(patience):
		t.Fatal("it goes on listening to nobody")
	}
}

func TestListenEndsWhenNothingCanBeReachedAnyMore(t *testing.T) {
	t.Parallel()
	c := cluster(t)
	config := config(c)
	dial := config.Dial
	var mu sync.Mutex
	var conns []net.Conn
	cut := false
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if cut {
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
		}
		conn, err := dial(ctx, network, address)
		conns = append(conns, conn)
		return conn, err
	}
	p := publisher(t, config)
	mustPublish(t, p, message("a", "1"))
	got := make(chan outbox.Incoming, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- p.Listen(t.Context(), topic, "group", func(_ context.Context, in outbox.Incoming) error { got <- in; return nil })
	}()
	receive(t, got)
	mu.Lock()
	cut = true
	for _, conn := range conns {
		conn.Close()
	}
	mu.Unlock()
	select {
	case err := <-ended:
		wantError(t, err, outbox.Unavailable, outbox.ReasonTimeout)
	case <-time.After(patience):
		t.Fatal("it goes on listening to nobody")
	}
}

func TestListeningToATopicThatDoesNotExistFails(t *testing.T) {
	t.Parallel()
	p := publisher(t, config(cluster(t)))
	err := p.Listen(t.Context(), "unheard-of", "group", func(context.Context, outbox.Incoming) error { return nil })
	wantError(t, err, outbox.Unavailable, outbox.ReasonNotFound)
}

func TestReadingNeedsNoRightToWrite(t *testing.T) {
	t.Parallel()
	acl := func(resource kmsg.ACLResourceType, name string, operation kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: operation, Allow: true}
	}
	c := cluster(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser(kafka.Plain, "admin", "admin"),
		kfake.User(kafka.Plain, "saga", "right", acl(kmsg.ACLResourceTypeTopic, topic, kmsg.ACLOperationRead), acl(kmsg.ACLResourceTypeGroup, "group", kmsg.ACLOperationRead)))
	admin := config(c)
	admin.Mechanism, admin.Credentials.Username, admin.Credentials.Password = kafka.Plain, "admin", "admin"
	mustPublish(t, publisher(t, admin), message("a", "1"))
	reader := admin
	reader.Credentials.Username, reader.Credentials.Password = "saga", "right"
	got, stop := listen(t, publisher(t, reader), func(outbox.Incoming) error { return nil })
	defer stop()
	receive(t, got)
}

// listen listens until it is stopped. What is handled also arrives in the channel.
func listen(t *testing.T, p *kafka.Publisher, handle func(outbox.Incoming) error) (<-chan outbox.Incoming, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan outbox.Incoming, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- p.Listen(ctx, topic, "group", func(_ context.Context, in outbox.Incoming) error {
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
