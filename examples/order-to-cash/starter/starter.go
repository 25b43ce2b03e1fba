// Package starter gives every order that is placed its saga: it publishes the message OrderPlaced by asking the operator's HTTP API for a saga.
//
//	201; 409 or 422 when the order's saga exists      done
//	401, 403; 404; 408, 425, 429, 502, 503, 504;
//	a connection that never came about                nothing can be started at the moment, whatever the order
//	other 4xx                                         a definite no to this order: a dead letter, for a person
//	other 5xx; a connection that broke off            it may have been started: tried again
//
// A message may come twice, and so may the request. It bears the id of the event as its idempotency key, and the saga is named for the order, so there is one saga.
package starter

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

const (
	usualTimeout   = 10 * time.Second
	parallel       = 16
	maxAnswerBytes = 1 << 20 // a Saga object
	maxShownBytes  = 500
	maxRetryAfter  = time.Minute
)

// Config says where sagas are started. All of it but Timeout is required.
type Config struct {
	// URL is that of the operator's API, without a slash at the end, such as https://saga-operator-api.saga-system.svc:8443.
	URL string
	// Namespace is where the sagas are.
	Namespace string
	// TokenFile has the token of a ServiceAccount that may create and get sagas there. It is read at each use: the kubelet renews it.
	TokenFile string
	// CAFile has the certificates, in PEM, that the API's is checked against.
	CAFile string
	// Definition is what each order goes through.
	Definition ordertocash.Definition
	// Timeout bounds one request; zero is ten seconds.
	Timeout time.Duration
}

// Publisher starts sagas.
type Publisher struct {
	config    Config
	sagas     string // the URL of all sagas
	transport *http.Transport
}

var _ outbox.Publisher = (*Publisher)(nil)

// New makes a publisher. It connects when it is first needed.
func New(c Config) (*Publisher, error) {
	c.Timeout = cmp.Or(c.Timeout, usualTimeout)
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the URL of the operator's API: %w", err)
	case u.Scheme != "https" || u.Host == "" || u.User != nil:
		return nil, errors.New("the URL of the operator's API: it has to begin with https:// and a host")
	case c.Namespace == "" || c.TokenFile == "" || c.CAFile == "":
		return nil, errors.New("starting sagas: the namespace, the token's file and the CA's file are needed")
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the CA of the operator's API: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading the CA of the operator's API: there is no certificate in %s", c.CAFile)
	}
	return &Publisher{
		config: c, sagas: strings.TrimSuffix(c.URL, "/") + "/v1/namespaces/" + url.PathEscape(c.Namespace) + "/sagas",
		transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, TLSHandshakeTimeout: c.Timeout, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: parallel, IdleConnTimeout: time.Minute,
		},
	}, nil
}

// Wants tells whether a message starts a saga: that of an order which no saga has placed.
func Wants(m *outbox.Message) bool {
	if m.Type != orders.MessageTypePrefix+"OrderPlaced" {
		return false
	}
	var placed orders.OrderPlaced
	// One that cannot be read is refused later, where somebody sees it.
	return json.Unmarshal(m.Data, &placed) != nil || placed.Saga == ""
}

// Limits implements outbox.Publisher.
func (*Publisher) Limits() outbox.Limits { return outbox.Limits{Batch: 1, Parallel: parallel} }

// Close implements outbox.Publisher.
func (p *Publisher) Close() error {
	p.transport.CloseIdleConnections()
	return nil
}

// Publish implements outbox.Publisher.
func (p *Publisher) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i := range all {
		wait.Go(func() {
			if failed := p.start(ctx, &all[i]); failed != nil {
				errs[i] = failed
			}
		})
	}
	wait.Wait()
	return errs
}

// Check implements outbox.Publisher: whoever may look at a saga, if there is one or not, is known there.
func (p *Publisher) Check(ctx context.Context) error {
	a, failed := p.send(ctx, http.MethodGet, p.sagas+"/"+orders.SagaName("0"), "", nil)
	if failed == nil && a.status != http.StatusNotFound && a.status >= http.StatusBadRequest {
		failed = judge(a)
	}
	if failed != nil {
		failed.Kind = outbox.Unavailable
		return failed
	}
	return nil
}

// input is what the expressions of the saga read.
type input struct {
	OrderID  string        `json:"orderId"`
	Customer string        `json:"customer"`
	Card     string        `json:"card"`
	Country  string        `json:"country"`
	Lines    []orders.Line `json:"lines"`
	Pieces   int64         `json:"pieces"`
	Total    any           `json:"total"`
}

// start asks for the saga of one order.
func (p *Publisher) start(ctx context.Context, m *outbox.Message) *outbox.Error {
	order := m.Subject
	var placed orders.OrderPlaced
	if err := json.Unmarshal(m.Data, &placed); err != nil {
		return outbox.Errorf(outbox.Rejected, outbox.ReasonRefused, "reading the event of order %s: %w", order, err)
	}
	in := input{OrderID: order, Customer: placed.Customer, Card: placed.Card, Country: placed.Country, Lines: placed.Lines, Total: placed.Total}
	for _, l := range placed.Lines {
		in.Pieces += l.Quantity.Int64()
	}
	body, err := p.config.Definition.Saga(p.config.Namespace, orders.SagaName(order), order, in)
	if err != nil {
		return outbox.Errorf(outbox.Rejected, outbox.ReasonRefused, "%w", err)
	}
	a, failed := p.send(ctx, http.MethodPost, p.sagas, m.ID.String(), body)
	switch {
	case failed != nil:
		return failed
	case a.status == http.StatusCreated || a.status == http.StatusOK:
		return nil
	case a.status == http.StatusConflict || a.status == http.StatusUnprocessableEntity:
		// The key may be forgotten since, or be that of a request from before the definition was changed. What counts is whether there is a saga.
		return p.exists(ctx, order, a)
	}
	return judge(a)
}

// exists looks for an order's saga after the API has refused to make one.
func (p *Publisher) exists(ctx context.Context, order string, refused answer) *outbox.Error {
	a, failed := p.send(ctx, http.MethodGet, p.sagas+"/"+orders.SagaName(order), "", nil)
	switch {
	case failed != nil:
		return failed
	case a.status == http.StatusNotFound && refused.status == http.StatusConflict: // the same request is on its way twice
		return fault(outbox.Failed, outbox.ReasonBusy, refused)
	case a.status == http.StatusNotFound:
		return judge(refused)
	case a.status != http.StatusOK:
		return judge(a)
	}
	var found struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(a.body, &found); err != nil {
		return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "reading the saga of order %s: %w", order, err)
	}
	if found.Metadata.Labels[ordertocash.OrderLabel] != order {
		return outbox.Errorf(outbox.Rejected, outbox.ReasonRefused, "starting the saga of order %s: there is a saga %s of somebody else", order, orders.SagaName(order))
	}
	return nil
}

// answer is what a request came to.
type answer struct {
	status     int
	retryAfter time.Duration
	body       []byte
}

// send sends one request.
func (p *Publisher) send(ctx context.Context, method, url, key string, body []byte) (answer, *outbox.Error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	token, err := os.ReadFile(p.config.TokenFile)
	if err != nil {
		return answer{}, outbox.Errorf(outbox.Unavailable, outbox.ReasonUnauthorized, "reading the token for the operator's API: %w", err)
	}
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(traced, method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, outbox.Errorf(outbox.Rejected, outbox.ReasonRefused, "making a request to the operator's API: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Accept", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
		req.Header.Set("Content-Type", "application/json")
	}
	// The transport alone: redirects are not followed, because the token would go along.
	resp, err := p.transport.RoundTrip(req)
	switch {
	case err != nil && !connected.Load():
		return answer{}, sink.Unreachable(p.config.URL, err)
	case err != nil:
		return answer{}, outbox.Errorf(outbox.Failed, outbox.ReasonConnectionFailed, "asking the operator's API: no answer came: %w", err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		a.retryAfter = min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes)); err != nil {
		return answer{}, outbox.Errorf(outbox.Failed, outbox.ReasonConnectionFailed, "asking the operator's API: the answer broke off: %w", err)
	}
	return a, nil
}

// judge says whose fault an answer is that did not bring a saga.
func judge(a answer) *outbox.Error {
	switch a.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault(outbox.Unavailable, outbox.ReasonUnauthorized, a)
	case http.StatusNotFound:
		return fault(outbox.Unavailable, outbox.ReasonNotFound, a)
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fault(outbox.Unavailable, outbox.ReasonBusy, a)
	}
	if a.status >= http.StatusInternalServerError {
		return fault(outbox.Failed, outbox.ReasonRefused, a)
	}
	return fault(outbox.Rejected, outbox.ReasonRefused, a)
}

func fault(kind outbox.Kind, reason string, a answer) *outbox.Error {
	text := strings.ToValidUTF8(string(a.body[:min(len(a.body), maxShownBytes)]), "")
	e := outbox.Errorf(kind, reason, "the operator's API answered %d: %s", a.status, strings.Join(strings.Fields(text), " "))
	e.RetryAfter = a.retryAfter
	return e
}
