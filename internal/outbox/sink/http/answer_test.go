package http_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/http"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
)

func TestRetryAfterIsHonouredInBothFormsAndCapped(t *testing.T) {
	t.Parallel()
	date := func(in time.Duration) string { return time.Now().Add(in).UTC().Format(nethttp.TimeFormat) }
	for header, want := range map[string]struct{ least, most time.Duration }{
		"": {}, "0": {}, "7": {7 * time.Second, 7 * time.Second}, " 7 ": {7 * time.Second, 7 * time.Second}, "-5": {}, "soon": {}, "7200": {time.Hour, time.Hour},
		"99999999999999999999": {time.Hour, time.Hour}, date(30 * time.Minute): {time.Minute, 30 * time.Minute}, date(-time.Hour): {}, date(48 * time.Hour): {time.Hour, time.Hour},
	} {
		err := publish(t, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
			w.Header().Set("Retry-After", header)
			w.WriteHeader(nethttp.StatusServiceUnavailable)
		})
		if e, ok := errors.AsType[*outbox.Error](err); !ok || e.RetryAfter < want.least || e.RetryAfter > want.most {
			t.Errorf("%q: %v, not %v to %v", header, e.RetryAfter, want.least, want.most)
		}
	}
}

func TestAServiceThatRepeatsWhatItWasSentDoesNotShowTheSecretInTheError(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		w.WriteHeader(nethttp.StatusInternalServerError)
		// Also where the end of what is shown would cut it in two.
		fmt.Fprint(w, "you sent\n\x1b[31m", r.Header.Get("Authorization"), strings.Repeat("x", 210), r.Header.Get("Authorization"))
	}))
	defer server.Close()
	token := http.Config{Connection: connection(), URL: server.URL}
	token.Credentials.Token = sinktest.Secret
	password := http.Config{Connection: connection(), URL: server.URL}
	password.Credentials.Username, password.Credentials.Password = "relay", sinktest.Secret
	for name, c := range map[string]http.Config{"token": token, "password": password} {
		err := publisher(t, c).Publish(t.Context(), []outbox.Message{message()})[0]
		if err == nil || !strings.Contains(err.Error(), "[redacted]") || strings.Contains(err.Error(), sinktest.Secret[:6]) || strings.Contains(err.Error(), "cmVsYXk6") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%s: the error is more than a line: %q", name, err)
		}
	}
}

func TestCredentialsAreSentInTheFormTheyWereGiven(t *testing.T) {
	t.Parallel()
	var got atomic.Pointer[nethttp.Request]
	server := httptest.NewServer(nethttp.HandlerFunc(func(_ nethttp.ResponseWriter, r *nethttp.Request) { got.Store(r) }))
	defer server.Close()
	c := http.Config{Connection: connection(), URL: server.URL, UserAgent: "relay/1", Headers: map[string]string{"X-Tenant": "shop"}}
	c.Credentials.Username, c.Credentials.Password = "relay", "p:w"
	if err := publisher(t, c).Publish(t.Context(), []outbox.Message{message()})[0]; err != nil {
		t.Fatal(err)
	}
	r := got.Load()
	if name, password, ok := r.BasicAuth(); !ok || name != "relay" || password != "p:w" {
		t.Errorf("it arrived as %s %s", name, password)
	}
	if r.UserAgent() != "relay/1" || r.Header.Get("X-Tenant") != "shop" || r.Method != nethttp.MethodPost {
		t.Errorf("%s %v", r.Method, r.Header)
	}
}

func TestAKeptConnectionThatTheServiceEndedCostsNoAttempt(t *testing.T) {
	t.Parallel()
	// It answers one request of each connection and ends the connection with the second, unread.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var served sync.WaitGroup
	defer served.Wait()
	defer l.Close()
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer conn.Close()
				buffer := make([]byte, 64<<10)
				if _, err := conn.Read(buffer); err == nil {
					_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
					_, _ = conn.Read(buffer)
				}
			})
		}
	})
	p := publisher(t, http.Config{Connection: connection(), URL: "http://" + l.Addr().String()})
	defer p.Close()
	for i := range 5 {
		if err := p.Publish(t.Context(), []outbox.Message{message()})[0]; err != nil {
			t.Errorf("message %d: %v", i, err)
		}
	}
}

func TestWhatAnAnswerToTheCheckMeans(t *testing.T) {
	t.Parallel()
	for status, reason := range map[int]string{
		200: "", 204: "", 301: "", 400: "", 405: "", 501: "", 401: outbox.ReasonUnauthorized, 403: outbox.ReasonUnauthorized, 404: outbox.ReasonNotFound,
		429: outbox.ReasonBusy, 500: outbox.ReasonBusy, 502: outbox.ReasonBusy, 503: outbox.ReasonBusy,
	} {
		var method atomic.Value
		server := httptest.NewServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
			method.Store(r.Method)
			w.WriteHeader(status)
		}))
		err := publisher(t, http.Config{Connection: connection(), URL: server.URL}).Check(t.Context())
		server.Close()
		if e, failed := errors.AsType[*outbox.Error](err); failed != (reason != "") || failed && (e.Kind != outbox.Unavailable || e.Reason != reason) {
			t.Errorf("%d: %v", status, err)
		}
		if method.Load() != nethttp.MethodOptions {
			t.Errorf("the check was a %v", method.Load())
		}
	}
}

func TestNoAnswerInTimeLeavesTheMessageOpen(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	var asked atomic.Bool
	server := httptest.NewServer(nethttp.HandlerFunc(func(nethttp.ResponseWriter, *nethttp.Request) {
		asked.Store(true)
		<-over
	}))
	defer server.Close()
	defer close(over)
	c := http.Config{Connection: connection(), URL: server.URL}
	// The time has to be enough to connect in, however slow the machine is.
	for c.Timeout = 20 * time.Millisecond; c.Timeout < patience; c.Timeout *= 2 {
		err := publisher(t, c).Publish(t.Context(), []outbox.Message{message()})[0]
		if !asked.Load() {
			continue
		}
		if e, ok := errors.AsType[*outbox.Error](err); !ok || e.Kind != outbox.Failed || e.Reason != outbox.ReasonTimeout {
			t.Errorf("%v", err)
		}
		return
	}
	t.Error("the service was never asked")
}

func TestAConnectionThatDoesNotComeAboutInTimeCostsNoAttempt(t *testing.T) {
	t.Parallel()
	c := http.Config{URL: "http://blackhole.test/"}
	c.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // the relay's is as long as the publisher's own, and began before
	defer cancel()
	err := publisher(t, c).Publish(ctx, []outbox.Message{message()})[0]
	if e, ok := errors.AsType[*outbox.Error](err); !ok || e.Kind != outbox.Unavailable || e.Reason != outbox.ReasonTimeout || e.Open {
		t.Errorf("%+v", err)
	}
}

func TestMessagesOfOneCallGoAtTheSameTime(t *testing.T) {
	t.Parallel()
	const n = 8
	var here sync.WaitGroup
	here.Add(n)
	server := httptest.NewServer(nethttp.HandlerFunc(func(nethttp.ResponseWriter, *nethttp.Request) {
		here.Done()
		here.Wait() // until all are here
	}))
	defer server.Close()
	all := make([]outbox.Message, n)
	for i := range all {
		all[i] = message()
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, err := range publisher(t, http.Config{Connection: connection(), URL: server.URL}).Publish(ctx, all) {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestHeadersThatCannotBeSentAreRefusedWithoutBeingShown(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*http.Config){
		"a value with a line break": func(c *http.Config) { c.Headers = map[string]string{"X-A": "canary\r\nX-B: 1"} },
		"a name with a space":       func(c *http.Config) { c.Headers = map[string]string{"X A": "canary"} },
		"a token with a line break": func(c *http.Config) { c.Credentials.Token = "canary\n" },
		"an agent with a break":     func(c *http.Config) { c.UserAgent = "canary\n" },
	} {
		c := http.Config{Connection: connection(), URL: "http://h/"}
		spoil(&c)
		if _, err := http.New(c); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewRefusesForgedHeaders(t *testing.T) {
	t.Parallel()
	for names, message := range map[string]string{
		"X-Forwarded-For": "who the client is", "Remote_User": "who the client is", "X_Original_URL": "which path", "Saga-Id": "set by the operator",
		"Idempotency_Key": "to many servers", "ce_id": "to many servers", "Ce-Id": "set by the operator", "Content-Type": "set by the operator",
		"Authorization": "Secret", "Cookie": "Secret", "User-Agent": "set by the operator", "X-A X_A": "to many servers",
	} {
		c := http.Config{Connection: connection(), URL: "http://h/", Headers: map[string]string{}}
		for name := range strings.FieldsSeq(names) {
			c.Headers[name] = "canary"
		}
		if _, err := http.New(c); err == nil || !strings.Contains(err.Error(), message) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %q", names, err, message)
		}
	}
	if _, err := http.New(http.Config{Connection: connection(), URL: "http://h/", Headers: map[string]string{"X-Tenant": "a", "x_user": "b"}}); err != nil {
		t.Error(err)
	}
}
