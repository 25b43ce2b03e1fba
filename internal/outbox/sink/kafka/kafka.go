// Package kafka publishes to a topic of Apache Kafka, or of whatever speaks its protocol.
//
// A message is a record whose key is the message's key: those of one key are in one partition, in their order. Topics are never created: one that does not exist
// makes the sink wait.
//
// The producer is idempotent, so its own repetitions leave one record. What is in doubt when a call ends is published again by a producer of its own, and may then be there twice.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/panics"
)

// Mechanisms by which a broker is told who we are.
const (
	Plain       = "PLAIN"
	ScramSHA256 = "SCRAM-SHA-256"
	ScramSHA512 = "SCRAM-SHA-512"
)

const (
	// prefix is that of CloudEvents attributes in headers, by the specification's binding for Kafka.
	prefix        = "ce_"
	contentType   = "content-type"
	clientID      = "saga-operator"
	batch         = 1000
	defaultPort   = "9092"
	maxTopicBytes = 249
)

// Config says where to publish.
type Config struct {
	sink.Connection
	// Brokers are host:port of some of the cluster's brokers; the others are learnt from them.
	Brokers []string
	Topic   string
	// Mechanism is one of those above; empty where the brokers ask for no credentials.
	Mechanism string
}

// Publisher publishes to one topic.
type Publisher struct {
	config Config
	// life ends with Close.
	life context.Context
	end  context.CancelFunc

	// turn is held by whoever looks at or changes what follows; a channel, so that waiting for it ends with the context.
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
		return nil, errors.New("making a Kafka publisher: there is nothing to connect with")
	}
	if len(c.Brokers) == 0 {
		return nil, errors.New("making a Kafka publisher: there are no brokers")
	}
	if c.Topic == "" || len(c.Topic) > maxTopicBytes {
		return nil, fmt.Errorf("making a Kafka publisher: the name of a topic has 1 to %d characters, %q has %d", maxTopicBytes, c.Topic, len(c.Topic))
	}
	c.Brokers = slices.Clone(c.Brokers)
	for i, broker := range c.Brokers {
		if _, _, err := net.SplitHostPort(broker); err != nil {
			c.Brokers[i] = net.JoinHostPort(broker, defaultPort)
		}
	}
	p := &Publisher{config: c, turn: make(chan struct{}, 1)}
	p.life, p.end = context.WithCancel(context.Background())
	if _, err := p.mechanism(); err != nil {
		return nil, err
	}
	if err := kgo.ValidateOpts(p.producing()...); err != nil {
		return nil, fmt.Errorf("making a Kafka publisher: %w", err)
	}
	return p, nil
}

// mechanism is nil where no credentials are asked for.
func (p *Publisher) mechanism() (sasl.Mechanism, error) {
	user, password := p.config.Credentials.Username, string(p.config.Credentials.Password)
	switch p.config.Mechanism {
	case "":
		return nil, nil
	case Plain:
		return plain.Auth{User: user, Pass: password}.AsMechanism(), nil
	case ScramSHA256:
		return scram.Auth{User: user, Pass: password}.AsSha256Mechanism(), nil
	case ScramSHA512:
		return scram.Auth{User: user, Pass: password}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("making a Kafka publisher: the mechanism is to be %s, %s or %s, not %q", Plain, ScramSHA256, ScramSHA512, p.config.Mechanism)
}

// Limits implements outbox.Publisher. One call at a time: the records of a batch are on their way together as it is.
func (p *Publisher) Limits() outbox.Limits { return outbox.Limits{Batch: batch, Parallel: 1} }

// Check implements outbox.Publisher: a broker can be reached, takes the credentials, has the topic and lets us write to it.
func (p *Publisher) Check(ctx context.Context) error {
	ctx, done := p.bound(ctx)
	defer done()
	s, fresh, err := p.open(ctx)
	if err == nil && !fresh {
		if err = s.writable(ctx, p.config.Topic); err != nil {
			p.drop(s)
		}
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// Publish implements outbox.Publisher.
func (p *Publisher) Publish(ctx context.Context, all []outbox.Message) []error {
	ctx, done := p.bound(ctx)
	defer done()
	errs := make([]error, len(all))
	waiting := make([]item, 0, len(all))
	for i := range all {
		r, err := p.record(&all[i])
		if err != nil {
			errs[i] = err
			continue
		}
		waiting = append(waiting, item{index: i, record: r})
	}
	if len(waiting) == 0 {
		return errs
	}
	s, _, err := p.open(ctx)
	if err != nil {
		for _, it := range waiting {
			errs[it.index] = err
		}
		return errs
	}
	if healthy := s.publish(ctx, waiting, errs); !healthy {
		p.drop(s)
	}
	return errs
}

// Close implements outbox.Publisher.
func (p *Publisher) Close() error {
	p.end() // ends what is being published
	p.turn <- struct{}{}
	s := p.session
	p.session = nil
	<-p.turn
	if s != nil {
		s.close()
	}
	p.closing.Wait()
	return nil
}

// bound bounds a call by the timeout and by Close.
func (p *Publisher) bound(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Wait())
	unhook := context.AfterFunc(p.life, cancel)
	return ctx, func() { unhook(); cancel() }
}

// open returns the session, a fresh one where there is none. A fresh one has seen the topic.
func (p *Publisher) open(ctx context.Context) (s *session, fresh bool, err error) {
	late := func() error {
		if p.life.Err() != nil {
			return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "connecting to %s: the publisher is closed", p.where())
		}
		return outbox.Errorf(outbox.Failed, outbox.ReasonTimeout, "connecting to %s: %w", p.where(), ctx.Err())
	}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, false, late()
	}
	// Looked at with the turn in hand: Close has either seen what is made here or is seen. And no session is to end for a call that does not begin.
	if ctx.Err() != nil || p.life.Err() != nil {
		return nil, false, late()
	}
	if p.session != nil {
		return p.session, false, nil
	}
	s, err = newSession(p.where(), p.dial, p.producing)
	if err != nil {
		return nil, false, unavailable(err)
	}
	if err := s.writable(ctx, p.config.Topic); err != nil {
		p.closing.Go(panics.Wrap(nil, "closing a connection to a broker", s.close))
		return nil, false, err
	}
	p.session = s
	return s, true, nil
}

// drop ends a session that is no longer to be trusted: the next call starts anew, with a producer that knows nothing of what this one has in doubt.
func (p *Publisher) drop(s *session) {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	if p.session == s {
		p.session = nil
		p.closing.Go(panics.Wrap(nil, "closing a connection to a broker", s.close))
	}
}

func (p *Publisher) where() string { return fmt.Sprintf("Kafka at %s", p.config.Brokers[0]) }

// record is a message in the form in which it travels.
func (p *Publisher) record(m *outbox.Message) (*kgo.Record, error) {
	e, err := m.Encode(p.config.Mode, prefix)
	if err != nil {
		return nil, err
	}
	r := &kgo.Record{Topic: p.config.Topic, Value: e.Body, Headers: make([]kgo.RecordHeader, 0, len(e.Headers)+1)}
	if m.Key != "" { // records without a key go to any partition
		r.Key = []byte(m.Key)
	}
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: contentType, Value: []byte(e.ContentType)})
	for _, h := range e.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Name, Value: []byte(h.Value)})
	}
	return r, nil
}

// connecting are the options that clients for publishing and for listening have in common.
func (p *Publisher) connecting() []kgo.Opt {
	wait := clamp(p.config.Wait())
	options := []kgo.Opt{
		kgo.ClientID(clientID), kgo.SeedBrokers(p.config.Brokers...), kgo.DisableClientMetrics(),
		kgo.RequestTimeoutOverhead(wait), kgo.RetryTimeout(wait), kgo.RequestRetries(requestRetries), kgo.MetadataMinAge(metadataMinAge),
	}
	if m, _ := p.mechanism(); m != nil { // New has seen the error
		options = append(options, kgo.SASL(m))
	}
	return options
}

func (p *Publisher) producing() []kgo.Opt {
	wait := clamp(p.config.Wait())
	return append(p.connecting(),
		// What is larger the topic itself refuses; its limit is not known here.
		kgo.ProducerBatchMaxBytes(maxRecordBytes), kgo.BrokerMaxWriteBytes(2*maxRecordBytes),
		kgo.RecordDeliveryTimeout(max(wait, time.Second)), kgo.ProduceRequestTimeout(wait),
		kgo.RecordRetries(recordRetries), kgo.UnknownTopicRetries(unknownTopicRetries),
		kgo.DefaultProduceTopic(p.config.Topic),
	)
}

// clamp brings a timeout into the bounds that the client insists on.
func clamp(d time.Duration) time.Duration { return min(max(d, 100*time.Millisecond), 15*time.Minute) }
