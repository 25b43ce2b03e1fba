// Package http publishes to whatever takes CloudEvents over HTTP: one POST for each message.
//
//	2xx                                             taken
//	401, 403; 404; 429, 502, 503, 504; a connection
//	that never came about                           the sink is not available, whatever the message
//	413; other 4xx; 3xx, because redirects are
//	not followed                                    a definite no to this message
//	408, 425, other 5xx; a time-out or a broken
//	connection after the message may have been sent it may be taken later
package http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/panics"
)

const (
	// prefix is that of CloudEvents attributes in headers, by the specification's binding for HTTP.
	prefix = "ce-"
	// maxAnswerBytes is what is read of an answer, so that its connection can be used again; maxShownBytes what an error shows of it.
	maxAnswerBytes       = 64 << 10
	maxShownBytes        = 256
	maxAnswerHeaderBytes = 64 << 10
	maxRetryAfter        = time.Hour
	parallel             = 64
	idleTimeout          = 90 * time.Second
)

// Config says where to publish.
type Config struct {
	sink.Connection
	// URL is http or https, with a host, without a user or a fragment.
	URL string
	// Headers are sent with every message, besides those of CloudEvents.
	Headers   map[string]string
	UserAgent string
}

// Publisher publishes to one URL.
type Publisher struct {
	config    Config
	where     string
	secrets   *strings.Replacer // takes what is secret out of answers
	transport *nethttp.Transport
	// life ends with Close.
	life context.Context
	end  context.CancelFunc

	mu       sync.Mutex // is held to look at life before a request is counted
	requests sync.WaitGroup
}

var _ outbox.Publisher = (*Publisher)(nil)

// New makes a publisher. It connects when it is first needed.
func New(c Config) (*Publisher, error) {
	if c.Dial == nil {
		return nil, errors.New("making an HTTP publisher: there is nothing to connect with")
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "": // the error would show the URL, and with it what may be secret in it
		return nil, errors.New("making an HTTP publisher: the url is no URL with a host")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("making an HTTP publisher: the url begins with %q, not with http:// or https://", u.Scheme)
	case u.User != nil || strings.Contains(c.URL, "#"):
		return nil, errors.New("making an HTTP publisher: the url has a user or a fragment in it; credentials are given apart from it")
	}
	if err := checkHeaders(&c); err != nil {
		return nil, fmt.Errorf("making an HTTP publisher: %w", err)
	}
	if c.UserAgent == "" {
		c.UserAgent = "saga-operator"
	}
	p := &Publisher{config: c, where: u.Scheme + "://" + u.Host, secrets: redactor(c.Credentials)}
	p.life, p.end = context.WithCancel(context.Background())
	// The transport alone, without a client: no redirects, no cookies. Proxy stays nil: a proxy would do the connecting, and the egress policy would judge its address.
	p.transport = &nethttp.Transport{
		DialContext: c.Dial, TLSClientConfig: c.TLS.Clone(), TLSHandshakeTimeout: c.Wait(), ForceAttemptHTTP2: true, DisableCompression: true,
		MaxIdleConns: parallel, MaxIdleConnsPerHost: parallel, IdleConnTimeout: idleTimeout, MaxResponseHeaderBytes: maxAnswerHeaderBytes,
	}
	return p, nil
}

// Limits implements outbox.Publisher.
func (*Publisher) Limits() outbox.Limits { return outbox.Limits{Batch: 1, Parallel: parallel} }

// Publish implements outbox.Publisher.
func (p *Publisher) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	free := make(chan struct{}, parallel)
	for i := range all {
		free <- struct{}{} // each gives it back, at the latest when ctx is done
		wait.Go(func() {
			defer func() { <-free }()
			if err := panics.Catch(nil, "posting a message", func() error { errs[i] = p.post(ctx, &all[i]); return nil }); err != nil {
				errs[i] = &outbox.Error{Kind: outbox.Failed, Reason: outbox.ReasonRefused, Err: err}
			}
		})
	}
	wait.Wait()
	return errs
}

// Check implements outbox.Publisher. It asks what may be done there, which does nothing; an answer of whatever kind says that somebody is there, and most that they know us.
func (p *Publisher) Check(ctx context.Context) error {
	req, err := p.request(ctx, nethttp.MethodOptions, nil)
	if err != nil {
		return &outbox.Error{Kind: outbox.Unavailable, Reason: outbox.ReasonRefused, Err: err}
	}
	answer, failed := p.send(req)
	if failed != nil {
		failed.Kind = outbox.Unavailable
		return failed
	}
	switch failed := p.judge(answer); {
	case answer.status == nethttp.StatusNotImplemented: // somebody is there, and does not know the method
		return nil
	case failed != nil && answer.status >= 500:
		failed.Kind, failed.Reason = outbox.Unavailable, outbox.ReasonBusy
		return failed
	case failed != nil && failed.Kind == outbox.Unavailable:
		return failed
	}
	return nil
}

// Close implements outbox.Publisher.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.end()
	p.mu.Unlock()
	p.requests.Wait() // so that none gives a connection back when they have been closed
	p.transport.CloseIdleConnections()
	return nil
}

// post sends one message.
func (p *Publisher) post(ctx context.Context, m *outbox.Message) error {
	encoded, err := m.Encode(p.config.Mode, prefix)
	if err != nil {
		return err
	}
	req, err := p.request(ctx, nethttp.MethodPost, encoded.Body)
	if err != nil {
		return &outbox.Error{Kind: outbox.Rejected, Reason: outbox.ReasonRefused, Err: err}
	}
	for _, h := range encoded.Headers {
		req.Header.Set(h.Name, sink.EscapeHeader(h.Value))
	}
	req.Header.Set("Content-Type", encoded.ContentType)
	req.Header.Set("Idempotency-Key", m.ID.String())
	answer, failed := p.send(req)
	if failed == nil {
		failed = p.judge(answer)
	}
	if failed != nil {
		return failed
	}
	return nil
}

func (p *Publisher) request(ctx context.Context, method string, body []byte) (*nethttp.Request, error) {
	req, err := nethttp.NewRequestWithContext(ctx, method, p.config.URL, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making a request to %s: %w", p.where, err)
	}
	for name, value := range p.config.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("User-Agent", p.config.UserAgent)
	switch c := p.config.Credentials; {
	case c.Token != "":
		req.Header.Set("Authorization", "Bearer "+string(c.Token))
	case c.Username != "" || c.Password != "":
		req.Header.Set("Authorization", "Basic "+basic(c))
	}
	return req, nil
}

// answer is what a request came to.
type answer struct {
	status     int
	retryAfter time.Duration
	text       string
}

// send does one request. An error is an *outbox.Error: Unavailable where no connection came about, and Failed where the request may have been sent.
func (p *Publisher) send(req *nethttp.Request) (answer, *outbox.Error) {
	if !p.begin() {
		return answer{}, outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "publishing to %s: the publisher is closed", p.where)
	}
	defer p.requests.Done()
	ctx, cancel := context.WithTimeout(req.Context(), p.config.Wait())
	defer cancel()
	defer context.AfterFunc(p.life, cancel)()
	// A request is written only to a connection that was handed out for it. The transport tries again by itself only where a kept connection turned out to be dead; under one
	// idempotency key that does no harm, and what was connected once stays so here.
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	resp, err := p.transport.RoundTrip(req.WithContext(ctx))
	switch {
	case err != nil && !connected.Load(): // nothing was sent, whatever ended the attempt
		return answer{}, sink.Unreachable(p.where, err)
	case err != nil:
		return answer{}, outbox.Errorf(outbox.Failed, reasonOf(err), "publishing to %s: no answer came: %w", p.where, err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes)) // what it says only explains the status
	return answer{status: resp.StatusCode, retryAfter: retryAfter(resp.Header.Get("Retry-After")), text: p.shown(string(body))}, nil
}

// begin counts a request, unless the publisher is closed.
func (p *Publisher) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.Err() != nil {
		return false
	}
	p.requests.Add(1)
	return true
}

func reasonOf(err error) string {
	var network net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) && network.Timeout() {
		return outbox.ReasonTimeout
	}
	return outbox.ReasonConnectionFailed
}

// judge says what a status means; nil that the message was taken.
func (p *Publisher) judge(a answer) *outbox.Error {
	fault := func(kind outbox.Kind, reason string) *outbox.Error {
		e := outbox.Errorf(kind, reason, "publishing to %s: it answered %d %s %s", p.where, a.status, nethttp.StatusText(a.status), a.text)
		e.RetryAfter = a.retryAfter
		return e
	}
	switch {
	case a.status >= 200 && a.status < 300:
		return nil
	case a.status == nethttp.StatusUnauthorized, a.status == nethttp.StatusForbidden:
		return fault(outbox.Unavailable, outbox.ReasonUnauthorized)
	case a.status == nethttp.StatusNotFound:
		return fault(outbox.Unavailable, outbox.ReasonNotFound)
	case a.status == nethttp.StatusTooManyRequests, a.status == nethttp.StatusServiceUnavailable:
		return fault(outbox.Unavailable, outbox.ReasonBusy)
	case a.status == nethttp.StatusBadGateway: // of those who stand before the service, who say so of all messages while it is away
		return open(fault(outbox.Unavailable, outbox.ReasonConnectionFailed))
	case a.status == nethttp.StatusGatewayTimeout:
		return open(fault(outbox.Unavailable, outbox.ReasonTimeout))
	case a.status == nethttp.StatusRequestEntityTooLarge:
		return fault(outbox.Rejected, outbox.ReasonTooLarge)
	case a.status == nethttp.StatusRequestTimeout, a.status == nethttp.StatusTooEarly, a.status >= 500, a.status < 200:
		return fault(outbox.Failed, outbox.ReasonRefused)
	default:
		return fault(outbox.Rejected, outbox.ReasonRefused)
	}
}

// open says of a failure that the message may have been taken.
func open(e *outbox.Error) *outbox.Error {
	e.Open = true
	return e
}

// retryAfter reads a pause in seconds or until a date.
func retryAfter(header string) time.Duration {
	if header == "" {
		return 0
	}
	header = strings.TrimSpace(header)
	if strings.Trim(header, "0123456789") == "" {
		seconds, err := strconv.ParseUint(header, 10, 31)
		if err != nil {
			return maxRetryAfter // more than fits
		}
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if at, err := nethttp.ParseTime(header); err == nil {
		return min(max(time.Until(at), 0), maxRetryAfter)
	}
	return 0
}
