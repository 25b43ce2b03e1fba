package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/panics"
)

const (
	// groupBytes is how much is handed to the client at once. A batch on the wire is made of one group at most, and a topic takes a batch of a million bytes unless it is
	// told otherwise.
	groupBytes = 900_000
	// recordOverhead is what a header or a record takes besides its texts, at most.
	recordOverhead = 64
	maxRecordBytes = 64 << 20

	recordRetries       = 10
	requestRetries      = 3
	unknownTopicRetries = 1
	metadataMinAge      = 250 * time.Millisecond
	// closeTimeout bounds the farewell to brokers that do not answer.
	closeTimeout = 2 * time.Second
)

// session is a client from its making to its end.
type session struct {
	where  string
	client *kgo.Client
	cancel context.CancelFunc
	// unreachable is why the latest attempt to connect failed; nil once one has succeeded.
	unreachable atomic.Pointer[error]
	// hungUp is set when a broker has ended a connection at the sight of the credentials, which is how some refuse them.
	hungUp atomic.Bool
}

var _ kgo.HookBrokerRead = (*session)(nil)

// OnBrokerRead implements kgo.HookBrokerRead.
func (s *session) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, err error) {
	if kmsg.Key(key) == kmsg.SASLAuthenticate {
		s.hungUp.Store(errors.Is(err, io.EOF))
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// newSession makes a client that connects by dial only. Nothing is connected yet.
func newSession(where string, dial dialFunc, options func() []kgo.Opt) (*session, error) {
	s := &session{where: where}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	client, err := kgo.NewClient(append(options(), kgo.WithContext(ctx), kgo.WithHooks(s), kgo.Dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			s.unreachable.Store(&err)
		} else {
			s.unreachable.Store(nil)
		}
		return conn, err
	}))...)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("preparing the connection to %s: %w", where, err)
	}
	s.client = client
	return s, nil
}

// close ends the client. What it has not settled fails.
func (s *session) close() {
	end := time.AfterFunc(closeTimeout, s.cancel)
	defer end.Stop()
	s.client.CloseAllowingRebalance()
	s.cancel()
}

// dial connects by the connection's own dialer, where the egress policy is asked, and encrypts on top of it.
func (p *Publisher) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Wait())
	defer cancel()
	conn, err := p.config.Dial(ctx, network, address)
	if err != nil || p.config.TLS == nil {
		return conn, err
	}
	config := p.config.TLS.Clone()
	if config.ServerName == "" {
		// Each broker has its own name.
		if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
			config.ServerName = address
		}
	}
	encrypted := tls.Client(conn, config)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return encrypted, nil
}

// writable asks for the topic: whether it exists, and whether we may write to it.
func (s *session) writable(ctx context.Context, topic string) error {
	return s.lookUp(ctx, topic, kmsg.ACLOperationWrite, "writing to")
}

// readable is writable for reading.
func (s *session) readable(ctx context.Context, topic string) error {
	return s.lookUp(ctx, topic, kmsg.ACLOperationRead, "reading from")
}

func (s *session) lookUp(ctx context.Context, topic string, operation kmsg.ACLOperation, doing string) error {
	ask := kmsg.NewPtrMetadataRequest()
	of := kmsg.NewMetadataRequestTopic()
	of.Topic = kmsg.StringPtr(topic)
	ask.Topics = append(ask.Topics, of)
	ask.IncludeTopicAuthorizedOperations = true
	answer, err := s.ask(ctx, ask)
	if err != nil {
		return unavailable(s.explain("looking up topic "+topic, err))
	}
	for _, t := range answer.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return unavailable(s.explain("looking up topic "+topic, err))
		}
		const unknown = -1 << 31 // brokers before 2.3 do not say
		if t.AuthorizedOperations != unknown && t.AuthorizedOperations&(1<<operation) == 0 {
			return outbox.Errorf(outbox.Unavailable, outbox.ReasonUnauthorized, "looking up topic %s at %s: the credentials do not allow %s it", topic, s.where, doing)
		}
	}
	return nil
}

// ask waits for an answer, or for the end of ctx. The client looks at ctx only once a broker has greeted it, so the wait must; whoever closes the session ends what is left of it.
func (s *session) ask(ctx context.Context, request *kmsg.MetadataRequest) (*kmsg.MetadataResponse, error) {
	type result struct {
		answer *kmsg.MetadataResponse
		err    error
	}
	results := make(chan result, 1)
	go func() {
		var r result
		r.err = panics.Catch(nil, "asking a broker of Kafka", func() (err error) {
			r.answer, err = request.RequestWith(ctx, s.client)
			return err
		})
		results <- r
	}()
	select {
	case r := <-results:
		return r.answer, r.err
	case <-ctx.Done():
		select { // that it ended may be why there is an answer
		case r := <-results:
			return r.answer, r.err
		default:
			return nil, ctx.Err()
		}
	}
}

// item is a message of a call on its way.
type item struct {
	index  int
	record *kgo.Record
}

// size is about what the record takes on the wire, and not less.
func (i item) size() int {
	n := recordOverhead + len(i.record.Key) + len(i.record.Value)
	for _, h := range i.record.Headers {
		n += recordOverhead + len(h.Key) + len(h.Value)
	}
	return n
}

// publish sends items and writes what came of each to its place in errs. It says whether the session can be used again.
func (s *session) publish(ctx context.Context, all []item, errs []error) (healthy bool) {
	var alone []item
	healthy = true
	for len(all) > 0 {
		n, bytes := 1, all[0].size()
		for n < len(all) && bytes+all[n].size() <= groupBytes {
			bytes += all[n].size()
			n++
		}
		for i, err := range s.send(ctx, all[:n]) {
			switch {
			case err == nil:
			case n > 1 && refusal(err) != "":
				// The broker refuses a batch as a whole: the others in it are not to suffer for one.
				alone = append(alone, all[i])
			default:
				healthy = healthy && refusal(err) != ""
				errs[all[i].index] = s.explain("publishing to topic "+all[i].record.Topic, err)
			}
		}
		all = all[n:]
	}
	for _, it := range alone {
		if err := s.send(ctx, []item{it})[0]; err != nil {
			healthy = healthy && refusal(err) != ""
			errs[it.index] = s.explain("publishing to topic "+it.record.Topic, err)
		}
	}
	return healthy
}

// send hands items to the client and waits until all are settled or ctx is done. The client cannot be made to give up what is on the wire, so the wait must.
func (s *session) send(ctx context.Context, all []item) []error {
	type result struct {
		index int
		err   error
	}
	results := make(chan result, len(all))
	errs := make([]error, len(all))
	for i, it := range all {
		errs[i] = errUnsettled
		s.client.Produce(ctx, it.record, func(_ *kgo.Record, err error) { results <- result{i, err} })
	}
	_ = s.client.Flush(ctx) // sends without waiting for more; its only error is that of ctx
	for range all {
		select {
		case r := <-results:
			errs[r.index] = r.err
			continue
		default:
		}
		select {
		case r := <-results:
			errs[r.index] = r.err
		case <-ctx.Done():
			return errs
		}
	}
	return errs
}
