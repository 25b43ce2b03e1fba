package nats

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/panics"
)

const (
	// again is after how long a message that was not handled comes again; handling after how long one does of whose handling nothing is known.
	again    = time.Second
	handling = 30 * time.Second
	// buffered bounds the messages that have arrived and wait to be handled: each may be as large
	// as the server allows.
	buffered = 64
)

// Listen implements outbox.Listener: a durable consumer of the group, on the stream that has the subject. It begins with the first message that the stream has.
func (p *Publisher) Listen(ctx context.Context, address, group string, handle func(context.Context, outbox.Incoming) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.life, cancel)()
	s, consumer, failed := p.consumer(ctx, address, group)
	if failed != nil {
		return failed
	}
	defer s.conn.Close()
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		defer panics.Recover(nil, "handling a message of NATS") // without an acknowledgement it comes again
		if ctx.Err() != nil {
			_ = m.Nak() // it is for another listener
			return
		}
		if err := handle(ctx, incoming(m)); err != nil {
			_ = m.NakWithDelay(again) // if this is lost the message comes again too, only later
			return
		}
		_ = m.Ack()
	}, jetstream.PullMaxMessages(buffered))
	if err != nil {
		return p.explain(s, "listening to subject "+address, err)
	}
	defer func() {
		cancel()
		consuming.Stop()
		<-consuming.Closed() // what is being handled ends before we return
		_ = s.conn.FlushTimeout(time.Second)
	}()
	select {
	case <-ctx.Done():
		return fmt.Errorf("listening to subject %s at %s: %w", address, p.where, ctx.Err())
	case <-s.ends:
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "listening to subject %s at %s: the connection has ended", address, p.where)
	case <-consuming.Closed():
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonNotFound, "listening to subject %s at %s: the consumer of group %s is gone", address, p.where, group)
	}
}

// consumer connects, and makes the consumer of a group where there is none.
func (p *Publisher) consumer(ctx context.Context, address, group string) (*session, jetstream.Consumer, *outbox.Error) {
	ctx, done := p.bound(ctx)
	defer done()
	if late := p.late(ctx); late != nil {
		return nil, nil, late
	}
	s, failed := p.connect(ctx)
	if failed != nil {
		return nil, nil, failed
	}
	stream, err := s.js.StreamNameBySubject(ctx, address)
	if err != nil {
		s.conn.Close()
		return nil, nil, p.explain(s, "looking for a stream for subject "+address, err)
	}
	consumer, err := s.js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: durable(group, address), FilterSubject: address, AckPolicy: jetstream.AckExplicitPolicy, AckWait: handling, MaxAckPending: batch,
	})
	if err != nil {
		s.conn.Close()
		return nil, nil, p.explain(s, "listening to subject "+address, err)
	}
	return s, consumer, nil
}

func incoming(m jetstream.Msg) outbox.Incoming {
	in := outbox.Incoming{Headers: make(map[string]string, len(m.Headers())), Body: m.Data()}
	for name, values := range m.Headers() {
		name = strings.ToLower(name)
		value := strings.Join(values, ",")
		if strings.HasPrefix(name, prefix) {
			value = sink.UnescapeHeader(value)
		}
		in.Headers[name] = value
	}
	return in
}

// durable is the name of a group's consumer of a subject. What no name may have is written as a number, so that two subjects never share one.
func durable(group, address string) string {
	var b strings.Builder
	for i, part := range []string{group, address} {
		if i > 0 {
			b.WriteByte('-')
		}
		for _, c := range []byte(part) {
			if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "_%02x", c)
			}
		}
	}
	return b.String()
}
