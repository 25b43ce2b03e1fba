package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

const (
	heartbeat      = 10 * time.Second
	connectionName = "saga-operator"
	// closeTimeout bounds the farewell to a broker that does not answer.
	closeTimeout = 2 * time.Second
)

// session is a connection from its making to its end.
type session struct {
	target  target
	raw     net.Conn
	conn    *amqp.Connection
	watches sync.WaitGroup
	// blocked is set while the broker reads nothing from us, because it is short of memory or disk.
	blocked atomic.Bool

	// Of the channel on which messages are published:
	channel *amqp.Channel
	ended   chan *amqp.Error
	// returns has room for all that can come back from one call of send. It is read when the call's confirmations are in: a return comes before its confirmation.
	returns chan amqp.Return
}

// connect makes a connection. Its error is one of kind Unavailable.
func (p *Publisher) connect(ctx context.Context) (*session, error) {
	raw, err := p.dial(ctx)
	if err != nil {
		return nil, sink.Unreachable(p.target.String(), err)
	}
	// The library knows no contexts; what it waits for ends with the connection.
	unhook := context.AfterFunc(ctx, func() { raw.Close() })
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(connectionName)
	s := &session{target: p.target, raw: raw}
	s.conn, err = amqp.Open(raw, amqp.Config{
		SASL:  []amqp.Authentication{&amqp.PlainAuth{Username: p.config.Credentials.Username, Password: string(p.config.Credentials.Password)}},
		Vhost: p.target.vhost, Heartbeat: heartbeat, Properties: properties, Locale: "en_US",
	})
	if !unhook() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		raw.Close()
		return nil, unavailable(s.explain("logging in", err))
	}
	blocked := s.conn.NotifyBlocked(make(chan amqp.Blocking))
	s.watches.Go(func() {
		for b := range blocked {
			s.blocked.Store(b.Active)
		}
	})
	return s, nil
}

// dial connects by the connection's own dialer, where the egress policy is asked, and encrypts on top of it.
func (p *Publisher) dial(ctx context.Context) (net.Conn, error) {
	conn, err := p.config.Dial(ctx, "tcp", p.target.address)
	if err != nil || p.config.TLS == nil {
		return conn, err
	}
	config := p.config.TLS.Clone()
	if config.ServerName == "" {
		config.ServerName = p.target.host
	}
	encrypted := tls.Client(conn, config)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return encrypted, nil
}

// bound makes what is done with the connection end with ctx: by the connection's end, as there is no other way. The result undoes it.
func (s *session) bound(ctx context.Context) (unbound func() bool) {
	return context.AfterFunc(ctx, s.sever)
}

func (s *session) sever() { s.raw.Close() }

// confirm opens the channel on which messages are published and confirmed.
func (s *session) confirm(ctx context.Context) (err error) {
	defer s.bound(ctx)()
	if s.channel, err = s.conn.Channel(); err != nil {
		return err
	}
	s.ended = s.channel.NotifyClose(make(chan *amqp.Error, 1))
	s.returns = s.channel.NotifyReturn(make(chan amqp.Return, batch))
	return s.channel.Confirm(false)
}

// declared looks for an exchange, on a channel of its own: the broker closes the channel of a question whose answer is no.
func (s *session) declared(ctx context.Context, exchange string) error {
	if exchange == "" {
		return nil // the default exchange is always there, and refuses to be asked for
	}
	defer s.bound(ctx)()
	channel, err := s.conn.Channel()
	if err != nil {
		return err
	}
	// A passive declaration compares nothing but the name.
	if err := channel.ExchangeDeclarePassive(exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		return err
	}
	return channel.Close()
}

func (s *session) open() bool { return !s.conn.IsClosed() && !s.channel.IsClosed() }

// close ends the connection.
func (s *session) close() { s.end(closeTimeout) }

// end ends the connection, and waits no longer than that for the broker to say goodbye.
func (s *session) end(within time.Duration) {
	_ = s.conn.CloseDeadline(time.Now().Add(within)) // it is over either way
	s.sever()
	s.watches.Wait()
}

// send publishes items, at most a batch, and waits until all are confirmed or ctx is done. It says whether the session can be used again.
func (s *session) send(ctx context.Context, exchange string, all []item) (errs []error, healthy bool) {
	unbound := s.bound(ctx)
	defer unbound()
	confirmations := make([]*amqp.DeferredConfirmation, len(all))
	for i, it := range all {
		var err error
		if confirmations[i], err = s.channel.PublishWithDeferredConfirm(exchange, it.key, true, false, it.message); err == nil {
			continue
		}
		if !s.channel.IsClosed() {
			s.sever() // what was written breaks off somewhere
		}
		break
	}
	for _, c := range confirmations {
		if c == nil {
			break
		}
		select {
		case <-c.Done():
		case <-ctx.Done():
		}
	}
	returned := s.returned()
	errs = make([]error, len(all))
	healthy = true
	var broken error
	for i, it := range all {
		why, back := returned[it.message.MessageId]
		switch c := confirmations[i]; {
		case back:
			errs[i] = outbox.Errorf(outbox.Unavailable, outbox.ReasonNotFound, "publishing message %s to exchange %q of %s: no queue is bound for routing key %q (%s)",
				it.message.MessageId, exchange, s.target, it.key, why)
		case c != nil && c.Acked():
		default:
			if broken == nil {
				broken = s.broken(ctx)
			}
			errs[i] = s.explain(fmt.Sprintf("publishing message %s to exchange %q", it.message.MessageId, exchange), broken)
			healthy = healthy && errors.Is(broken, errNack)
		}
	}
	return errs, healthy
}

// returned are the messages that came back, with the broker's reason.
func (s *session) returned() map[string]string {
	all := map[string]string{}
	for {
		select {
		case r, ok := <-s.returns:
			if !ok {
				return all
			}
			all[r.MessageId] = r.ReplyText
		default:
			return all
		}
	}
}

// broken says why a message was not confirmed.
func (s *session) broken(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !s.channel.IsClosed() && !s.conn.IsClosed() {
		return errNack
	}
	select {
	case e, ok := <-s.ended: // at once or in a moment
		if ok && e != nil {
			return e
		}
		return amqp.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}
