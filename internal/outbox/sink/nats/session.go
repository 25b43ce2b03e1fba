package nats

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/vextrus/saga-operator/internal/outbox"
)

const (
	// A connection that does not answer so many of our pings is given up.
	pingInterval = 20 * time.Second
	pingsMissed  = 2
)

// session is a connection. It is not mended: after it has ended the next call makes another one, and meanwhile nothing is queued for it.
type session struct {
	conn *natsgo.Conn
	js   jetstream.JetStream
	ends chan struct{} // closed when the connection is

	mu      sync.Mutex
	denials []error
	news    chan struct{} // closed with the next denial
}

// deny remembers that the server does not allow something, of which it tells apart from any answer.
func (s *session) deny(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const most = 1000 // subjects made of messages could be any number
	if len(s.denials) < most {
		s.denials = append(s.denials, err)
	}
	close(s.news)
	s.news = make(chan struct{})
}

// denied returns why a subject cannot be published to, or a channel that says that there is more to be known. Who may not listen to answers can publish nowhere.
func (s *session) denied(subject string) (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.denials {
		if text := err.Error(); strings.Contains(text, `Publish to "`+subject+`"`) || strings.Contains(text, `Subscription to "`+natsgo.InboxPrefix) {
			return nil, err
		}
	}
	return s.news, nil
}

// dialer connects by the way that the egress policy watches, for as long as ctx allows: also what follows on the connection until it is established.
type dialer struct {
	ctx   context.Context //nolint:containedctx // the client's interface has none
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	last  error
	unset []func() bool
}

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := d.dial(d.ctx, network, address)
	if err != nil {
		d.last = err
		return nil, err
	}
	d.last = nil
	d.unset = append(d.unset, context.AfterFunc(d.ctx, func() { _ = conn.Close() }))
	return conn, nil
}

// established leaves connections to themselves.
func (d *dialer) established() {
	for _, unset := range d.unset {
		unset()
	}
}

// bound bounds a call by the timeout and by Close.
func (p *Publisher) bound(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Wait())
	unhook := context.AfterFunc(p.life, cancel)
	return ctx, func() { unhook(); cancel() }
}

// late is why nothing could begin any more; nil while there is time.
func (p *Publisher) late(ctx context.Context) *outbox.Error {
	switch {
	case p.life.Err() != nil:
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "connecting to %s: the publisher is closed", p.where)
	case ctx.Err() != nil:
		return outbox.Errorf(outbox.Failed, outbox.ReasonTimeout, "connecting to %s: %w", p.where, ctx.Err())
	}
	return nil
}

// open returns the session, a new one where there is none.
func (p *Publisher) open(ctx context.Context) (*session, *outbox.Error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, p.late(ctx)
	}
	if late := p.late(ctx); late != nil {
		return nil, late
	}
	if p.session != nil && p.session.conn.IsConnected() {
		return p.session, nil
	}
	p.forget(p.session)
	s, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	p.session = s
	return s, nil
}

// connect makes a connection that ends at its first failure.
func (p *Publisher) connect(ctx context.Context) (*session, *outbox.Error) {
	d := &dialer{ctx: ctx, dial: p.config.Dial}
	defer d.established()
	s := &session{ends: make(chan struct{}), news: make(chan struct{})}
	options := []natsgo.Option{
		natsgo.Name("saga-operator"), natsgo.NoReconnect(), natsgo.Timeout(p.config.Wait()), natsgo.PingInterval(pingInterval), natsgo.MaxPingsOutstanding(pingsMissed),
		// Names are resolved by the dialer, which looks at what they lead to. Servers that servers tell of are not looked for.
		natsgo.SetCustomDialer(d), natsgo.SkipHostLookup(), natsgo.IgnoreDiscoveredServers(),
		natsgo.ClosedHandler(func(*natsgo.Conn) { close(s.ends) }),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) {
			if errors.Is(err, natsgo.ErrPermissionViolation) {
				s.deny(err)
			}
		}),
	}
	if p.config.TLS != nil {
		options = append(options, natsgo.Secure(p.config.TLS.Clone()))
	}
	switch c := p.config.Credentials; {
	case c.Token != "":
		options = append(options, natsgo.Token(string(c.Token)))
	case c.Username != "" || c.Password != "":
		options = append(options, natsgo.UserInfo(c.Username, string(c.Password)))
	}
	conn, err := natsgo.Connect(strings.Join(p.config.Servers, ","), options...)
	if err != nil {
		return nil, p.unconnected(ctx, d, err)
	}
	s.conn = conn
	if s.js, err = jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(parallel*batch*2), jetstream.WithPublishAsyncTimeout(p.config.Wait())); err != nil {
		conn.Close()
		return nil, outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "connecting to %s: %w", p.where, err)
	}
	return s, nil
}

// drop forgets a session.
func (p *Publisher) drop(s *session) {
	p.turn <- struct{}{} // held no longer than it takes to connect
	defer func() { <-p.turn }()
	p.forget(s)
}

// dropIfGone forgets a session whose connection has ended.
func (p *Publisher) dropIfGone(s *session) {
	if !s.conn.IsConnected() {
		p.drop(s)
	}
}

// forget is for whoever has the turn.
func (p *Publisher) forget(s *session) {
	if s == nil {
		return
	}
	s.conn.Close()
	if p.session == s {
		p.session = nil
	}
}
