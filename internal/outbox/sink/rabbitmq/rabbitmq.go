// Package rabbitmq publishes to an exchange of RabbitMQ, or of whatever speaks AMQP 0-9-1 with RabbitMQ's extensions.
//
// A message counts as taken once the broker has confirmed it, which it does when every queue that the message was routed to has it. A message that is routed to no queue comes
// back, and makes the sink wait: to lose it in silence would be the worse surprise. Exchanges, queues and bindings are never made here.
package rabbitmq

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/panics"
)

const (
	// prefix is that of CloudEvents attributes in headers, by the specification's binding for AMQP.
	prefix = "cloudEvents:"
	batch  = 256
	// largeBytes is the size above which a message is sent by itself. A broker that finds one too large closes the channel, and what it took just before is in doubt: it would
	// be published again, and be there twice.
	largeBytes = 128 << 10
	// maxShort is the protocol's limit for names and routing keys.
	maxShort = 255
	// maxHeaderBytes leaves room in a frame, of which brokers take 128 KiB: headers cannot be spread over several, and a larger frame costs the connection.
	maxHeaderBytes = 100_000
)

// Config says where to publish.
type Config struct {
	sink.Connection
	// URL is amqp:// or amqps://, host, port and virtual host: amqps://rabbit.example:5671/shop. It holds no credentials.
	URL string
	// Exchange is that which messages are published to; empty is the default exchange, which takes the routing key for the name of a queue.
	Exchange string
	// RoutingKey is a template, see sink.Fill.
	RoutingKey string
}

// Publisher publishes to one exchange.
type Publisher struct {
	config Config
	target target
	// life ends with Close.
	life context.Context
	end  context.CancelFunc

	// turn is held by whoever uses the session; a channel, so that waiting for it ends with the context.
	turn    chan struct{}
	session *session
	closing sync.WaitGroup // sessions on their way out
}

var (
	_ outbox.Publisher = (*Publisher)(nil)
	_ outbox.Listener  = (*Publisher)(nil)
)

// New makes a publisher. It connects when it is first needed.
func New(c Config) (*Publisher, error) {
	if c.Dial == nil {
		return nil, errors.New("making a RabbitMQ publisher: there is nothing to connect with")
	}
	if len(c.Exchange) > maxShort {
		return nil, fmt.Errorf("making a RabbitMQ publisher: the name of the exchange has %d bytes, the protocol allows %d", len(c.Exchange), maxShort)
	}
	t, err := parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("making a RabbitMQ publisher: %w", err)
	}
	if t.encrypted && c.TLS == nil {
		c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	p := &Publisher{config: c, target: t, turn: make(chan struct{}, 1)}
	p.life, p.end = context.WithCancel(context.Background())
	return p, nil
}

// target is what a URL says.
type target struct {
	host, address, vhost string
	encrypted            bool
}

func (t target) String() string { return "RabbitMQ at " + t.address }

// parse reads a URL. The library's own parser is not asked: it reads files that parameters of the URL name.
func parse(text string) (target, error) {
	u, err := url.Parse(text)
	if err != nil {
		return target{}, errors.New("the URL cannot be read") // the error would show it, with what may be a password
	}
	ports := map[string]string{"amqp": "5672", "amqps": "5671"}
	port, known := ports[u.Scheme]
	switch {
	case !known:
		return target{}, errors.New("the URL is to begin with amqp:// or amqps://")
	case u.User != nil:
		return target{}, errors.New("the URL is to be without a user and a password: they come from a secret")
	case u.Hostname() == "":
		return target{}, errors.New("the URL names no host")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return target{}, errors.New("the URL is to end with the virtual host: parameters are not supported")
	}
	if u.Port() != "" {
		port = u.Port()
	}
	path := strings.TrimPrefix(u.EscapedPath(), "/")
	vhost, err := url.PathUnescape(path)
	if err != nil || strings.Contains(path, "/") || len(vhost) > maxShort {
		return target{}, fmt.Errorf("the path of the URL is to be one virtual host, with %%2F for a slash in its name, and not %q", path)
	}
	if vhost == "" {
		vhost = "/"
	}
	return target{host: u.Hostname(), address: net.JoinHostPort(u.Hostname(), port), vhost: vhost, encrypted: u.Scheme == "amqps"}, nil
}

// Limits implements outbox.Publisher. One call at a time: the messages of a batch are on their way together as it is.
func (p *Publisher) Limits() outbox.Limits { return outbox.Limits{Batch: batch, Parallel: 1} }

// Check implements outbox.Publisher: the broker can be reached, takes the credentials and has the exchange. Whether a queue is bound to it only a message can tell.
func (p *Publisher) Check(ctx context.Context) error {
	ctx, done, err := p.take(ctx)
	if err != nil {
		return unavailable(err)
	}
	defer done()
	s, err := p.open(ctx)
	if err != nil {
		return unavailable(err)
	}
	if err := s.declared(ctx, p.config.Exchange); err != nil {
		p.drop()
		return unavailable(s.explain("looking up exchange "+p.config.Exchange, err))
	}
	return nil
}

// Publish implements outbox.Publisher.
func (p *Publisher) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := make([]error, len(all))
	waiting := make([]item, 0, len(all))
	for i := range all {
		it, err := p.item(&all[i])
		if err != nil {
			errs[i] = err
			continue
		}
		it.index = i
		waiting = append(waiting, it)
	}
	ctx, done, err := p.take(ctx)
	if err != nil {
		for _, it := range waiting {
			errs[it.index] = err
		}
		return errs
	}
	defer done()
	var alone []item
	var late error
	for len(waiting) > 0 {
		n := together(waiting)
		for i, err := range p.send(ctx, waiting[:n], &late) {
			if refused(err) && n > 1 {
				// The broker closes the channel for one message, and all behind it go with it: each is tried by itself.
				alone = append(alone, waiting[i])
				continue
			}
			errs[waiting[i].index] = err
		}
		waiting = waiting[n:]
	}
	for _, it := range alone {
		errs[it.index] = p.send(ctx, []item{it}, &late)[0]
	}
	return errs
}

// together says how many items, from the first on, are sent at once.
func together(all []item) int {
	n := 0
	for n < min(len(all), batch) && len(all[n].message.Body) <= largeBytes {
		n++
	}
	return max(n, 1)
}

// Close implements outbox.Publisher.
func (p *Publisher) Close() error {
	p.end() // ends what has the turn
	p.turn <- struct{}{}
	p.drop()
	<-p.turn
	p.closing.Wait()
	return nil
}

// take waits for the turn, and bounds what is done with it. It is given back by done.
func (p *Publisher) take(ctx context.Context) (_ context.Context, done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Wait())
	unhook := context.AfterFunc(p.life, cancel)
	done = func() { unhook(); cancel() }
	late := func() error {
		done()
		if p.life.Err() != nil {
			return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "publishing to %s: the publisher is closed", p.target)
		}
		return outbox.Errorf(outbox.Failed, outbox.ReasonTimeout, "publishing to %s: %w", p.target, ctx.Err())
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, late()
	}
	// Looked at with the turn in hand: Close has either seen what is made with it or is seen. And no session is to end for a call that does not begin.
	if ctx.Err() != nil || p.life.Err() != nil {
		<-p.turn
		return nil, nil, late()
	}
	return ctx, func() { <-p.turn; unhook(); cancel() }, nil
}

// send publishes items over the session, and drops that when it is of no further use. Late is why there is no time for more, once there is none: what would be sent after that
// shares the fate of what used the time up.
func (p *Publisher) send(ctx context.Context, all []item, late *error) []error {
	if *late != nil {
		return slices.Repeat([]error{*late}, len(all))
	}
	s, err := p.open(ctx)
	if err != nil {
		return slices.Repeat([]error{err}, len(all))
	}
	errs, healthy := s.send(ctx, p.config.Exchange, all)
	if !healthy {
		p.drop()
	}
	if ctx.Err() != nil {
		*late = cmp.Or(errs[len(errs)-1], error(s.explain("publishing", ctx.Err())))
	}
	return errs
}

// open returns the session, a fresh one where the last has ended. Its caller has the turn.
func (p *Publisher) open(ctx context.Context) (*session, error) {
	if p.session != nil && p.session.open() {
		return p.session, nil
	}
	p.drop()
	s, err := p.connect(ctx)
	if err == nil {
		if err = s.confirm(ctx); err != nil {
			p.closing.Go(panics.Wrap(nil, "closing a connection to a broker", s.close))
			err = s.explain("opening a channel", err)
		}
	}
	if err != nil {
		return nil, unavailable(err)
	}
	p.session = s
	return s, nil
}

// drop ends the session. Its caller has the turn.
func (p *Publisher) drop() {
	if s := p.session; s != nil {
		p.session = nil
		p.closing.Go(panics.Wrap(nil, "closing a connection to a broker", s.close))
	}
}

// item is a message of a call on its way.
type item struct {
	index   int
	key     string
	message amqp.Publishing
}

// item is a message in the form in which it travels.
func (p *Publisher) item(m *outbox.Message) (item, error) {
	e, err := m.Encode(p.config.Mode, prefix)
	if err != nil {
		return item{}, err
	}
	key := sink.Fill(p.config.RoutingKey, m)
	if len(key) > maxShort {
		return item{}, outbox.Errorf(outbox.Rejected, outbox.ReasonRefused, "publishing message %s: its routing key has %d bytes, the protocol allows %d", m.ID, len(key), maxShort)
	}
	headers, bytes := make(amqp.Table, len(e.Headers)), 0
	for _, h := range e.Headers {
		headers[h.Name] = h.Value
		bytes += len(h.Name) + len(h.Value)
	}
	if bytes > maxHeaderBytes {
		return item{}, outbox.Errorf(outbox.Rejected, outbox.ReasonTooLarge, "publishing message %s: its headers have %d bytes, at most %d fit", m.ID, bytes, maxHeaderBytes)
	}
	return item{key: key, message: amqp.Publishing{
		MessageId: m.ID.String(), ContentType: e.ContentType, DeliveryMode: amqp.Persistent, Timestamp: m.RecordedAt, Headers: headers, Body: e.Body,
	}}, nil
}
