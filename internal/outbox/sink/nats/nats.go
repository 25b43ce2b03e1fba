// Package nats publishes to a stream of NATS JetStream.
//
// A message has its id as Nats-Msg-Id, so that the server drops what it has had within the stream's window for duplicates. A message is taken when a stream has acknowledged it.
// Streams are never made: a subject that none listens to makes the sink wait.
package nats

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/panics"
)

const (
	// prefix is that of CloudEvents attributes in headers, by the specification's binding for NATS.
	prefix      = "ce-"
	contentType = "content-type"
	batch       = 512
	parallel    = 4
)

// Config says where to publish.
type Config struct {
	sink.Connection
	// Servers are nats://host:port, tls://host:port or host:port, some of the cluster's.
	Servers []string
	// Subject is where messages go; {type}, {namespace} and {subject} in it are the message's.
	Subject string
}

// Publisher publishes to one subject, or to those that its template makes.
type Publisher struct {
	config Config
	where  string
	// life ends with Close.
	life context.Context
	end  context.CancelFunc

	// turn is held by whoever looks at or changes the session; a channel, so that waiting for it ends with the context.
	turn    chan struct{}
	session *session
}

var (
	_ outbox.Publisher = (*Publisher)(nil)
	_ outbox.Listener  = (*Publisher)(nil)
)

// New makes a publisher. It connects when it is first needed.
func New(c Config) (*Publisher, error) {
	switch {
	case c.Dial == nil:
		return nil, errors.New("making a NATS publisher: there is nothing to connect with")
	case len(c.Servers) == 0:
		return nil, errors.New("making a NATS publisher: there are no servers")
	case !valid(sink.Fill(c.Subject, plausible)):
		return nil, fmt.Errorf("making a NATS publisher: %q is no subject to publish to", c.Subject)
	}
	for i, server := range c.Servers {
		if !strings.Contains(server, "://") {
			server = "nats://" + server
		}
		u, err := url.Parse(server)
		// What is wrong is said without showing it: there may be a password in it.
		if err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(server, "?#,") {
			return nil, fmt.Errorf("making a NATS publisher: server %d is not nats://host:port, tls://host:port or host:port", i)
		}
	}
	p := &Publisher{config: c, where: "NATS at " + strings.Join(c.Servers, ","), turn: make(chan struct{}, 1)}
	p.life, p.end = context.WithCancel(context.Background())
	return p, nil
}

// plausible is a message to fill a template with where there is none.
var plausible = func() *outbox.Message {
	m := &outbox.Message{}
	m.Type, m.Namespace, m.Subject = "io.vextrus.saga.Completed", "default", "saga"
	return m
}()

// valid reports whether a subject can be published to: no wildcards, no empty tokens, no spaces.
func valid(subject string) bool {
	for i := range len(subject) {
		if c := subject[i]; c <= ' ' || c == 0x7f || c == '*' || c == '>' {
			return false
		}
	}
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" {
			return false
		}
	}
	return true
}

// Limits implements outbox.Publisher.
func (*Publisher) Limits() outbox.Limits { return outbox.Limits{Batch: batch, Parallel: parallel} }

// Check implements outbox.Publisher: a server can be reached, takes the credentials, and has a stream that takes the subject. Who may publish need not be allowed to look for
// streams; then it is enough that we are let in.
func (p *Publisher) Check(ctx context.Context) error {
	ctx, done := p.bound(ctx)
	defer done()
	s, failed := p.open(ctx)
	if failed != nil {
		failed.Kind = outbox.Unavailable
		return failed
	}
	if failed := p.look(ctx, s, pattern(p.config.Subject)); failed != nil {
		p.dropIfGone(s)
		failed.Kind = outbox.Unavailable
		return failed
	}
	return nil
}

// look looks for a stream that has subjects of a pattern.
func (p *Publisher) look(ctx context.Context, s *session, subjects string) *outbox.Error {
	const api = "$JS.API.STREAM.NAMES"
	answered := make(chan error, 1) // has room: nobody may be waiting any more
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		answered <- panics.Catch(nil, "looking for a stream of NATS", func() error {
			_, err := s.js.StreamNameBySubject(ctx, subjects)
			return err
		})
	}()
	for {
		news, denial := s.denied(api)
		if denial != nil {
			return nil // the question ends with ctx
		}
		select {
		case err := <-answered:
			if err != nil {
				return p.explain(s, "looking for a stream for subject "+subjects, err)
			}
			return nil
		case <-news:
		case <-s.ends:
			cancel()
			return p.explain(s, "looking for a stream for subject "+subjects, <-answered)
		}
	}
}

// pattern is which subjects a template can make. Of what is filled in, only a namespace is always one token.
func pattern(template string) string {
	tokens := strings.Split(template, ".")
	for i, token := range tokens {
		if rest := strings.ReplaceAll(token, "{namespace}", ""); strings.Contains(rest, "{type}") || strings.Contains(rest, "{subject}") {
			return strings.Join(append(tokens[:i:i], ">"), ".")
		} else if rest != token {
			tokens[i] = "*"
		}
	}
	return strings.Join(tokens, ".")
}

// Publish implements outbox.Publisher.
func (p *Publisher) Publish(ctx context.Context, all []outbox.Message) []error {
	ctx, done := p.bound(ctx)
	defer done()
	errs := make([]error, len(all))
	s, failed := p.open(ctx)
	if failed != nil {
		for i := range errs {
			errs[i] = failed
		}
		return errs
	}
	sent := make([]*natsgo.Msg, len(all))
	acks := make([]jetstream.PubAckFuture, len(all))
	for i := range all {
		if sent[i], errs[i] = p.message(&all[i]); errs[i] != nil {
			continue
		}
		var err error
		if acks[i], err = s.js.PublishMsgAsync(sent[i], jetstream.WithMsgID(all[i].ID.String()), jetstream.WithRetryAttempts(0)); err != nil {
			errs[i] = p.explain(s, "publishing message "+all[i].ID.String(), err)
		}
	}
	for i, ack := range acks {
		if ack == nil || errs[i] != nil {
			continue
		}
		if failed := p.await(ctx, s, ack, sent[i].Subject, all[i].ID.String()); failed != nil {
			errs[i] = failed
		}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		p.drop(s) // it may have gone deaf, of which nobody tells us
	}
	p.dropIfGone(s)
	return errs
}

// message makes what is sent.
func (p *Publisher) message(m *outbox.Message) (*natsgo.Msg, error) {
	subject := sink.Fill(p.config.Subject, m)
	if !valid(subject) {
		return nil, outbox.Errorf(outbox.Rejected, outbox.ReasonRefused, "publishing message %s to %s: %q, made of %s, is no subject to publish to", m.ID, p.where, subject, p.config.Subject)
	}
	encoded, err := m.Encode(p.config.Mode, prefix)
	if err != nil {
		return nil, err
	}
	out := &natsgo.Msg{Subject: subject, Data: encoded.Body, Header: make(natsgo.Header, len(encoded.Headers)+2)}
	values := make([]string, len(encoded.Headers)) // one piece of memory for all
	for i, h := range encoded.Headers {
		values[i] = sink.EscapeHeader(h.Value)
		out.Header[h.Name] = values[i : i+1 : i+1]
	}
	out.Header[contentType] = []string{encoded.ContentType}
	return out, nil
}

// await is until the server has answered, or will not.
func (p *Publisher) await(ctx context.Context, s *session, ack jetstream.PubAckFuture, subject, id string) *outbox.Error {
	doing := "publishing message " + id
	for {
		news, denial := s.denied(subject)
		if denial != nil {
			return p.explain(s, doing, denial)
		}
		select {
		case <-ack.Ok():
			return nil
		case err := <-ack.Err():
			return p.explain(s, doing, err)
		case <-news:
		case <-s.ends:
			select { // it may have been answered just before
			case <-ack.Ok():
				return nil
			default:
				return outbox.Errorf(outbox.Failed, outbox.ReasonConnectionFailed, "%s to %s: the connection ended before it was acknowledged", doing, p.where)
			}
		case <-ctx.Done():
			return outbox.Errorf(outbox.Failed, outbox.ReasonTimeout, "%s to %s: no acknowledgement came: %w", doing, p.where, ctx.Err())
		}
	}
}

// Close implements outbox.Publisher.
func (p *Publisher) Close() error {
	p.end() // ends what is being published, and whoever connects
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	p.forget(p.session)
	return nil
}
