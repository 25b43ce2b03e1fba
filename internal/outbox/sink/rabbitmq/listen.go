package rabbitmq

import (
	"context"
	"fmt"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/outbox"
)

const (
	// prefetch bounds what is handed over and not yet acknowledged.
	prefetch = 32
	// A message that was not handled goes back to the queue after a pause, which grows while none is handled.
	firstPause = 100 * time.Millisecond
	longPause  = 5 * time.Second
)

// Listen implements outbox.Listener: address is a queue, whose consumers are one group, whatever its name.
func (p *Publisher) Listen(ctx context.Context, address, group string, handle func(context.Context, outbox.Incoming) error) error {
	s, deliveries, err := p.consume(ctx, address)
	if err != nil {
		return err
	}
	wait := p.config.Wait()
	// The broker puts what is not acknowledged back into the queue. Its answer says that it has seen what was.
	defer func() { s.end(wait) }()
	// What is handled is still acknowledged when ctx is done, but not for ever.
	defer context.AfterFunc(ctx, func() { time.AfterFunc(wait, s.sever) })()
	pause := firstPause
	for {
		if ctx.Err() != nil { // first of all: there may be both an end and a delivery
			return context.Cause(ctx)
		}
		select {
		case <-ctx.Done():
		case d, ok := <-deliveries:
			if !ok {
				return unavailable(s.explain("listening to queue "+address, s.broken(ctx)))
			}
			err := handle(ctx, incoming(&d))
			if err == nil {
				pause = firstPause
				err = d.Ack(false)
			} else {
				rest(ctx, pause)
				pause = min(2*pause, longPause)
				err = d.Nack(false, true)
			}
			if err != nil && ctx.Err() == nil {
				return unavailable(s.explain("acknowledging a message of queue "+address, err))
			}
		}
	}
}

// consume begins to read a queue over a connection of its own.
func (p *Publisher) consume(ctx context.Context, queue string) (_ *session, _ <-chan amqp.Delivery, err error) {
	opening, cancel := context.WithTimeout(ctx, p.config.Wait())
	defer cancel()
	s, err := p.connect(opening)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	defer s.bound(opening)()
	failed := func(err error) error { return unavailable(s.explain(fmt.Sprintf("listening to queue %q", queue), err)) }
	if s.channel, err = s.conn.Channel(); err != nil {
		return nil, nil, failed(err)
	}
	s.ended = s.channel.NotifyClose(make(chan *amqp.Error, 1))
	if err = s.channel.Qos(prefetch, 0, false); err != nil {
		return nil, nil, failed(err)
	}
	deliveries, err := s.channel.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return nil, nil, failed(err)
	}
	return s, deliveries, nil
}

// rest waits, but not longer than ctx.
func rest(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func incoming(d *amqp.Delivery) outbox.Incoming {
	in := outbox.Incoming{Headers: make(map[string]string, len(d.Headers)+2), Body: d.Body}
	for name, value := range d.Headers {
		switch value := value.(type) {
		case string:
			in.Headers[strings.ToLower(name)] = value
		case bool, int8, uint8, int16, int32, int64, float32, float64:
			in.Headers[strings.ToLower(name)] = fmt.Sprint(value)
		} // tables, lists and bytes are no attributes
	}
	if d.ContentType != "" {
		in.Headers["content-type"] = d.ContentType
	}
	if d.MessageId != "" {
		in.Headers["message-id"] = d.MessageId
	}
	return in
}
