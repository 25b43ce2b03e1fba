// Package http is the participant that every service already is: an effect is one HTTP request.
//
// # Settings
//
//	method: POST                # GET, POST, PUT, PATCH or DELETE
//	url: http://inventory/reservations/${input.orderId}
//	headers: {X-Tenant: shop}   # optional
//	body: {order: "${input.orderId}"}   # optional, any JSON; not with GET
//	completion: Callback        # optional: 202 means that the answer comes later
//	callbackTimeout: 1h         # with it: how long it may take
//
// Every attempt of an effect sends the same request: the headers Idempotency-Key, Saga-Id (the saga's uid) and Saga-Step, traceparent
// when the call has one, and the body as JSON.
//
// # Outcomes
//
//	2xx                                                        Succeeded
//	429; a connection that never came about; an HTTP/2 stream
//	that the server refused                                    Retryable
//	2xx or 4xx with the header Saga-Outcome: Rejected          Rejected, by the participant's own word
//	3xx, because redirects are not followed; 401, 403, 404,
//	405, 407, 409, 413, 414, 421, 431, 451; any web page       Rejected, perhaps by a gateway
//	other 4xx                                                  Rejected
//	an address that the egress policy forbids; a request that
//	cannot be sent as it is written                            Rejected, by the operator
//	408, 425, 5xx, 101, and 303 except to a GET; a time-out or
//	a broken connection after the request may have been sent;
//	a 2xx response that is a web page, too large or breaks off Unknown
//
// A web page is a response of type text/html. A step that wants one sends the header Accept: text/html.
//
// With completion: Callback the request has the header Saga-Callback, a URL that nobody else is given. Of an answer 202 the outcome is what is said there later, once; any other
// answer is an outcome at once, as above.
//
// # URLs
//
// Values in a URL are escaped by package expression for the place at which they stand. Here the finished URL, the one that is sent, is
// checked again, whatever it was made of: http or https, no user, no fragment, no dot segments, and no encoded slashes or control
// characters in its path, because servers differ in what they make of those.
//
// No value chooses the host: scheme, host and port are text, or one of several texts between which an expression chooses. A value in
// the host is at most one label of it. The egress policy decides about the address that the host leads to.
package http

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	nethttp "net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Kind is the name under which the participant is registered.
const Kind = "http"

// Limits.
const (
	// DefaultMaxAnswerBytes bounds the body of an answer, before and after decompression.
	DefaultMaxAnswerBytes = 1 << 20
	// MaxRetryAfter caps the pause that a participant can ask for.
	MaxRetryAfter = time.Hour

	maxURLBytes          = 8 << 10
	maxHeaders           = 64
	maxHeaderBytes       = 8 << 10
	maxAnswerHeaderBytes = 64 << 10
	maxMessageBytes      = 512
	connectTimeout       = 10 * time.Second
	idleConnections      = 4096
	idlePerHost          = 512
	idleTimeout          = 90 * time.Second
)

// Options configure a Participant. The zero value is usable.
type Options struct {
	// Egress says which addresses may be connected to; nil means the default policy.
	Egress *egress.Policy
	// MaxAnswerBytes bounds the body of an answer; zero means DefaultMaxAnswerBytes.
	MaxAnswerBytes int64
	// UserAgent is sent with every request; empty means saga-operator.
	UserAgent string
	// TLS configures connections to https URLs; nil means the system's certificate authorities.
	TLS *tls.Config
	// Clock is what a date in Retry-After is compared with; nil means time.Now.
	Clock func() time.Time
	// Transport sends the requests, in place of one that is made from Egress and TLS; a simulation brings its own. It has to call the
	// httptrace.ClientTrace of a request's context when it hands out a connection: a request before that counts as not sent.
	Transport nethttp.RoundTripper
	// Callbacks gives out the URLs at which participants answer later; nil where nobody listens there, and then no step can ask for it.
	Callbacks Callbacks
}

// Callbacks gives out URLs at which one attempt is answered later.
type Callbacks interface {
	// Issue returns a new URL that is good for so long.
	Issue(ctx context.Context, call participant.Call, within time.Duration) (url string, err error)
}

// Participant carries out effects of kind http. It is safe for concurrent use.
type Participant struct {
	transport *nethttp.Transport
	sender    nethttp.RoundTripper // the transport, unless another was given
	limit     int64
	userAgent string
	clock     func() time.Time
	callbacks Callbacks
}

var (
	_ participant.Participant = (*Participant)(nil)
	_ participant.Preparer    = (*Participant)(nil)
)

// New makes a participant with a connection pool of its own.
func New(o Options) *Participant {
	if o.Egress == nil {
		o.Egress = &egress.Policy{}
	}
	if o.MaxAnswerBytes <= 0 {
		o.MaxAnswerBytes = DefaultMaxAnswerBytes
	}
	if o.UserAgent == "" {
		o.UserAgent = "saga-operator"
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	p := &Participant{
		limit: o.MaxAnswerBytes, userAgent: o.UserAgent, clock: o.Clock, callbacks: o.Callbacks,
		// The transport alone, without a client: no redirects, no cookies, no credentials from a URL. Proxy stays nil: a proxy would do
		// the connecting, and the egress policy would judge the proxy's address.
		transport: &nethttp.Transport{
			DialContext:            o.Egress.Dialer(connectTimeout).DialContext,
			TLSClientConfig:        o.TLS,
			TLSHandshakeTimeout:    connectTimeout,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // the answer's own decompression has limits on both sides
			MaxIdleConns:           idleConnections,
			MaxIdleConnsPerHost:    idlePerHost,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: maxAnswerHeaderBytes,
		},
	}
	if p.sender = o.Transport; p.sender == nil {
		p.sender = p.transport
	}
	return p
}

// Close closes idle connections. Calls in flight are not affected.
func (p *Participant) Close() { p.transport.CloseIdleConnections() }

// Check implements participant.Participant.
func (p *Participant) Check(with map[string]any) []saga.FieldError {
	var errs []saga.FieldError
	fail := func(field, message string) { errs = append(errs, saga.FieldError{Field: field, Message: message}) }
	for _, name := range slices.Sorted(maps.Keys(with)) {
		if !slices.Contains(settings, name) {
			fail(name, "is not a setting of http; the settings are "+strings.Join(settings, ", "))
		}
	}
	if err := checkMethod(with); err != nil {
		fail("method", err.Error())
	}
	switch u := with["url"].(type) {
	case nil:
		fail("url", "is required")
	case string:
		if err := checkTemplate(u); err != nil {
			fail("url", err.Error())
		}
	default:
		fail("url", "must be a string")
	}
	if with["method"] == nethttp.MethodGet && with["body"] != nil {
		fail("body", "GET has no body; use POST, or put the values into the URL")
	}
	errs = append(errs, checkHeaders(with["headers"])...)
	if _, wrong := p.completion(with); wrong != nil {
		errs = append(errs, *wrong)
	}
	return errs
}

// settings are the names of all settings.
var settings = []string{"method", "url", "headers", "body", "completion", "callbackTimeout"}

// Do implements participant.Participant.
func (p *Participant) Do(ctx context.Context, call participant.Call) participant.Result {
	req, err := p.request(call)
	if err != nil {
		return participant.Result{Kind: saga.Rejected, Author: saga.AuthorOperator, Reason: "InvalidRequest", Message: short("the request cannot be sent: " + err.Error())}
	}
	within, wrong := p.completion(call.With)
	if wrong != nil {
		return participant.Result{Kind: saga.Rejected, Author: saga.AuthorOperator, Reason: "InvalidRequest", Message: short("the request cannot be sent: " + wrong.Error())}
	}
	if within > 0 {
		if call.Callback == "" {
			if r := p.Prepare(ctx, &call); r != nil {
				return *r
			}
		}
		req.Header[HeaderCallback] = []string{call.Callback}
	}
	// A request is written only to a connection that was handed out for it. As long as none was, nothing can have been sent. This
	// holds through the transport's own retries too (it repeats a request with an idempotency key when a kept connection turns out to
	// be dead, which is harmless under one key): the flag is never cleared.
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }}
	resp, err := p.sender.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		return failed(ctx, err, sent.Load())
	}
	defer resp.Body.Close()
	result := p.outcome(ctx, resp, call.ReserveMemory)
	if within > 0 && resp.StatusCode == nethttp.StatusAccepted {
		return participant.Result{Accepted: true, AnswerWithin: within} // whatever became of its body: the answer is still to come
	}
	return result
}

// checkTemplate checks a URL with 1 in the place of each value: 1 can stand in a host, a path and a
// query. Scheme, host and port are known but for labels of the host: no value chooses them.
func checkTemplate(template string) error {
	urls, err := expression.SampleURLs(template)
	if err != nil {
		return err
	}
	for _, u := range urls {
		if _, err := parseURL(u); err != nil {
			return err
		}
	}
	return nil
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
