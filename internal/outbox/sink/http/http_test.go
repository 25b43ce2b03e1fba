package http_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	"github.com/vextrus/saga-operator/internal/outbox/sink/http"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
	"github.com/vextrus/saga-operator/internal/ports"
)

func TestMain(m *testing.M) { os.Exit(sinktest.Main(m.Run)) }

const (
	maxBody = 100_000
	// patience bounds what a test waits for; nothing takes that long.
	patience = 5 * time.Minute
)

// service takes CloudEvents at /events from whoever has the token.
type service struct {
	address string
	server  *httptest.Server
	mu      sync.Mutex
	got     []sinktest.Got
}

func (s *service) ServeHTTP(w nethttp.ResponseWriter, r *nethttp.Request) {
	switch {
	case r.Header.Get("Authorization") != "Bearer "+sinktest.Secret:
		w.WriteHeader(nethttp.StatusUnauthorized)
		return
	case r.URL.Path != "/events":
		w.WriteHeader(nethttp.StatusNotFound)
		return
	case r.Method != nethttp.MethodPost:
		w.WriteHeader(nethttp.StatusMethodNotAllowed)
		return
	}
	// All of it: a client that is still sending when the connection ends may not see the answer.
	body, err := io.ReadAll(r.Body)
	if err != nil || len(body) > maxBody {
		w.WriteHeader(nethttp.StatusRequestEntityTooLarge)
		return
	}
	g := sinktest.Got{ID: r.Header.Get("Idempotency-Key"), Incoming: outbox.Incoming{Headers: map[string]string{}, Body: body}}
	for name, values := range r.Header {
		if g.Headers[strings.ToLower(name)], err = url.PathUnescape(values[0]); err != nil {
			w.WriteHeader(nethttp.StatusBadRequest)
			return
		}
	}
	g.Key = g.Headers["ce-partitionkey"]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, g)
	w.WriteHeader(nethttp.StatusAccepted)
}

// listen serves at the address where the service was before, or at any.
func (s *service) listen(t *testing.T) {
	t.Helper()
	if s.address == "" {
		s.address = ports.ForTest(t)
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	s.server = &httptest.Server{Listener: l, Config: &nethttp.Server{Handler: s, ReadHeaderTimeout: patience}}
	s.server.Start()
}

func TestTheHTTPSinkConforms(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) *sinktest.Harness {
		s := &service{}
		s.listen(t)
		t.Cleanup(func() { s.server.Close() })
		return &sinktest.Harness{
			Unordered: true, Credentials: true, Missing: true, TooLarge: 2 * maxBody,
			New: func(t *testing.T, w sinktest.With) outbox.Publisher {
				c := http.Config{Connection: connection(), URL: "http://" + s.address + "/events", Headers: map[string]string{"X-Tenant": "shop"}}
				c.Mode, c.Timeout, c.Credentials.Token = w.Mode, w.Timeout, sinktest.Secret
				if w.Dial != nil {
					c.Dial = w.Dial
				}
				if w.Address != "" {
					c.URL = "http://" + w.Address + "/events"
				}
				if w.Missing {
					c.URL = "http://" + s.address + "/nowhere"
				}
				if w.WrongCredentials {
					c.Credentials.Token = sinktest.Secret + "!"
				}
				return publisher(t, c)
			},
			Received: func(*testing.T) []sinktest.Got {
				s.mu.Lock()
				defer s.mu.Unlock()
				return append([]sinktest.Got(nil), s.got...)
			},
			Stop:  func(*testing.T) { s.server.CloseClientConnections(); s.server.Close() },
			Start: s.listen,
		}
	})
}

func connection() sink.Connection {
	return sink.Connection{Dial: (&net.Dialer{}).DialContext, Timeout: patience}
}

func publisher(t *testing.T, c http.Config) *http.Publisher {
	t.Helper()
	p, err := http.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func message() outbox.Message {
	var m outbox.Message
	m.ID, m.Type, m.Source, m.Key, m.Data = uuid.New(), "t", "/s", "k", []byte(`{}`)
	return m
}

// publish publishes one message to a handler.
func publish(t *testing.T, handler nethttp.HandlerFunc) error {
	t.Helper()
	server := httptest.NewServer(handler)
	defer server.Close()
	return publisher(t, http.Config{Connection: connection(), URL: server.URL}).Publish(t.Context(), []outbox.Message{message()})[0]
}

func TestWhatAStatusMeans(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]outbox.Error{
		301: {Kind: outbox.Rejected, Reason: outbox.ReasonRefused}, 400: {Kind: outbox.Rejected, Reason: outbox.ReasonRefused}, 422: {Kind: outbox.Rejected, Reason: outbox.ReasonRefused},
		401: {Kind: outbox.Unavailable, Reason: outbox.ReasonUnauthorized}, 403: {Kind: outbox.Unavailable, Reason: outbox.ReasonUnauthorized},
		404: {Kind: outbox.Unavailable, Reason: outbox.ReasonNotFound}, 408: {Kind: outbox.Failed, Reason: outbox.ReasonRefused}, 413: {Kind: outbox.Rejected, Reason: outbox.ReasonTooLarge},
		425: {Kind: outbox.Failed, Reason: outbox.ReasonRefused}, 429: {Kind: outbox.Unavailable, Reason: outbox.ReasonBusy}, 500: {Kind: outbox.Failed, Reason: outbox.ReasonRefused},
		502: {Kind: outbox.Unavailable, Reason: outbox.ReasonConnectionFailed, Open: true}, 504: {Kind: outbox.Unavailable, Reason: outbox.ReasonTimeout, Open: true}, 503: {Kind: outbox.Unavailable, Reason: outbox.ReasonBusy},
	} {
		err := publish(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Retry-After", "7")
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			fmt.Fprint(w, "because of that")
		})
		e, ok := errors.AsType[*outbox.Error](err)
		if !ok || e.Kind != want.Kind || e.Reason != want.Reason || e.Open != want.Open || e.RetryAfter != 7*time.Second || !strings.Contains(e.Error(), "because of that") {
			t.Errorf("%d: %+v", status, err)
		}
	}
	for _, status := range []int{200, 201, 202, 204} {
		if err := publish(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) { w.WriteHeader(status) }); err != nil {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	calls := 0
	err := publish(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		calls++
		nethttp.Redirect(w, r, "/again", nethttp.StatusTemporaryRedirect)
	})
	if err == nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestAConnectionThatBreaksAfterTheMessageWasSentLeavesItOpen(t *testing.T) {
	t.Parallel()
	err := publish(t, func(nethttp.ResponseWriter, *nethttp.Request) { panic(nethttp.ErrAbortHandler) })
	if e, ok := errors.AsType[*outbox.Error](err); !ok || e.Kind != outbox.Failed {
		t.Errorf("%v", err)
	}
}

func TestAnAnswerWithoutEndIsNotRead(t *testing.T) {
	t.Parallel()
	err := publish(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		w.WriteHeader(nethttp.StatusInternalServerError)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("%v", err)
	}
}

func TestAHeaderCannotBreakOutOfItsLine(t *testing.T) {
	t.Parallel()
	var got nethttp.Header
	server := httptest.NewServer(nethttp.HandlerFunc(func(_ nethttp.ResponseWriter, r *nethttp.Request) { got = r.Header }))
	defer server.Close()
	m := message()
	m.Subject = "a\r\nX-Evil: 1 é%"
	if err := publisher(t, http.Config{Connection: connection(), URL: server.URL}).Publish(t.Context(), []outbox.Message{m})[0]; err != nil {
		t.Fatal(err)
	}
	if got.Get("X-Evil") != "" || got.Get("Ce-Subject") != "a%0D%0AX-Evil:%201%20%C3%A9%25" {
		t.Errorf("it arrived as %q", got.Get("Ce-Subject"))
	}
}

func TestAnEncryptedConnectionIsVerified(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(nethttp.HandlerFunc(func(nethttp.ResponseWriter, *nethttp.Request) {}))
	server.Config.ErrorLog = nil
	defer server.Close()
	c := http.Config{Connection: connection(), URL: server.URL}
	e, ok := errors.AsType[*outbox.Error](publisher(t, c).Check(t.Context()))
	if !ok || e.Kind != outbox.Unavailable || e.Reason != outbox.ReasonTLSFailed {
		t.Errorf("%v", e)
	}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	c.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if err := publisher(t, c).Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestURLsThatCannotWorkAreRefusedWithoutBeingShown(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "ftp://h/", "http://", "http:h", "http://u:canary@h/", "http://h/#canary", "://canary", "//h/canary"} {
		if _, err := http.New(http.Config{Connection: connection(), URL: bad}); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := http.New(http.Config{URL: "http://h/"}); err == nil {
		t.Error("without a way to connect it is made")
	}
}

func TestTheEnvironmentsProxyIsNotAsked(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	if err := publish(t, func(nethttp.ResponseWriter, *nethttp.Request) {}); err != nil {
		t.Error(err)
	}
	var dialed string
	c := http.Config{Connection: sink.Connection{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		dialed = address
		return nil, errors.New("no")
	}}, URL: "http://example.com/x"}
	if err := publisher(t, c).Check(t.Context()); err == nil || dialed != "example.com:80" {
		t.Errorf("it connected to %s: %v", dialed, err)
	}
}
