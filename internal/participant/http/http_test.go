package http

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// patience bounds what a test waits for; nothing takes that long.
const patience = 10 * time.Minute

// TestMain looks for goroutines that have outlived the tests. One that is about to end may take its time.
func TestMain(m *testing.M) {
	code := m.Run()
	for enough := time.Now().Add(2 * time.Minute); code == 0; {
		err := goleak.Find()
		if err == nil {
			break
		}
		if time.Now().After(enough) {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func loopback(t testing.TB) *egress.Policy {
	t.Helper()
	p, err := egress.New([]string{"127.0.0.0/8", "::1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newParticipant(t testing.TB, o Options) *Participant {
	t.Helper()
	if o.Egress == nil {
		o.Egress = loopback(t)
	}
	p := New(o)
	// Its own bounds are for participants that hang, and those of tests may be slower than that.
	p.transport.DialContext, p.transport.TLSHandshakeTimeout = o.Egress.Dialer(patience).DialContext, patience
	t.Cleanup(p.Close)
	return p
}

func newServer(t testing.TB, h nethttp.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s
}

func post(url string, more ...any) participant.Call {
	with := map[string]any{"method": "POST", "url": url, "body": map[string]any{"order": "1042", "amount": int64(3)}}
	for i := 0; i < len(more); i += 2 {
		with[more[i].(string)] = more[i+1]
	}
	return participant.Call{
		Saga:    participant.Identity{UID: "u-1", Namespace: "shop", Name: "order-1042"},
		Attempt: saga.Attempt{EffectID: saga.EffectID{Step: "charge", Direction: saga.Action}, Number: 1},
		Key:     "u-1/charge/action", With: with, TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
}

// do carries a call out, with all the time that it takes.
func do(t testing.TB, p *Participant, call participant.Call) participant.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return doIn(ctx, t, p, call)
}

func doIn(ctx context.Context, t testing.TB, p *Participant, call participant.Call) participant.Result {
	t.Helper()
	r := p.Do(ctx, call)
	if !r.Accepted && (r.Kind == saga.Succeeded) != (r.Reason == "" && r.Message == "") || len(r.Message) > 1024 || strings.ContainsAny(r.Reason, " -'") {
		t.Errorf("a result that does not keep to its contract: %+v", r)
	}
	return r
}

func want(t testing.TB, r participant.Result, kind saga.OutcomeKind, reason, message string) {
	t.Helper()
	if r.Kind != kind || r.Reason != reason || !strings.Contains(r.Message, message) {
		t.Errorf("got %s %s %q, want %s %s %q", r.Kind, r.Reason, r.Message, kind, reason, message)
	}
	if own := kind == saga.Rejected && (reason == "EgressDenied" || reason == "InvalidRequest"); (r.Author == saga.AuthorOperator) != own {
		t.Errorf("%s %s: the author is %q; only a no of which nothing was sent is the operator's", kind, reason, r.Author)
	}
}

// raw serves connections by hand: serve gets each one after its first request has been read.
func raw(t testing.TB, serve func(n int, c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if readRequest(bufio.NewReader(c)) {
					serve(n, c)
				}
			})
		}
	})
	return "http://" + l.Addr().String() + "/"
}

func readRequest(r *bufio.Reader) bool {
	req, err := nethttp.ReadRequest(r)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

// gone waits until the other side has closed the connection.
func gone(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func TestEveryAttemptSendsTheSameRequest(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []string
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		var b strings.Builder
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(&b, "%s %s %s\n", r.Method, r.RequestURI, body)
		for _, h := range []string{"Idempotency-Key", "Saga-Id", "Saga-Step", "Traceparent", "Content-Type", "Accept", "User-Agent", "X-Tenant", "X-Count",
			"Cookie", "Authorization"} {
			fmt.Fprintf(&b, "%s: %s\n", h, r.Header.Get(h))
		}
		mu.Lock()
		seen = append(seen, b.String())
		mu.Unlock()
		w.Header().Set("Set-Cookie", "a=b")
		fmt.Fprint(w, `{"id": "ch-7", "n": 3, "x": 1.5}`)
	})
	p := newParticipant(t, Options{})
	call := post(s.URL+"/charges/a%20b?q=1", "headers", map[string]any{"x-tenant": "shop", "X-Count": int64(4)},
		"body", map[string]any{"z": "<&>", "a": []any{int64(1), nil, 1.5}, "m": map[string]any{"k": true}})
	for range 3 {
		r := do(t, p, call)
		wantBody := map[string]any{"id": "ch-7", "n": int64(3), "x": 1.5}
		if r.Kind != saga.Succeeded || r.Response["status"] != int64(200) || !cmp.Equal(wantBody, bodyOf(t, r)) {
			t.Fatalf("got %+v", r)
		}
		if h := r.Response["headers"].(map[string]any); h["content-type"] != "text/plain; charset=utf-8" || h["set-cookie"] != nil {
			t.Errorf("headers %v", h)
		}
	}
	wantSeen := `POST /charges/a%20b?q=1 {"a":[1,null,1.5],"m":{"k":true},"z":"<&>"}
Idempotency-Key: u-1/charge/action
Saga-Id: u-1
Saga-Step: charge
Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
Content-Type: application/json
Accept: application/json
User-Agent: saga-operator
X-Tenant: shop
X-Count: 4
Cookie: 
Authorization: 
`
	if diff := cmp.Diff([]string{wantSeen, wantSeen, wantSeen}, seen); diff != "" {
		t.Error(diff)
	}
}

func TestAConnectionThatNeverCameAboutIsRetryable(t *testing.T) {
	t.Parallel()
	p := newParticipant(t, Options{})
	want(t, do(t, p, post("http://127.0.0.1:1/")), saga.Retryable, "ConnectionFailed", "refused") // no server of a test ever gets this port

	unresolved, dialer := newParticipant(t, Options{}), loopback(t).Dialer(patience)
	dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no server of names is there")
	}}
	unresolved.transport.DialContext = dialer.DialContext
	want(t, do(t, unresolved, post("http://no-such-host.invalid/")), saga.Retryable, "ConnectionFailed", "lookup")

	untrusted := httptest.NewTLSServer(nethttp.HandlerFunc(func(nethttp.ResponseWriter, *nethttp.Request) { t.Error("a request came through") }))
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer untrusted.Close()
	want(t, do(t, p, post(untrusted.URL)), saga.Retryable, "ConnectionFailed", "certificate")

	// Accepts, and never says anything in the handshake.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond) // whatever has come about by then, nothing was sent
	defer cancel()
	want(t, doIn(ctx, t, p, post("https://"+silent.Addr().String()+"/")), saga.Retryable, "ConnectionFailed", "deadline")

	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	want(t, p.Do(ctx, post("http://127.0.0.1:1/")), saga.Retryable, "ConnectionFailed", "canceled")
}

func TestABreakAfterSendingIsUnknown(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		serve           func(n int, c net.Conn)
		reason, message string
	}{
		"closes without an answer":  {func(int, net.Conn) {}, "ConnectionBroken", "EOF"},
		"resets":                    {func(_ int, c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }, "ConnectionBroken", ""},
		"answers garbage":           {func(_ int, c net.Conn) { _, _ = io.WriteString(c, "\x00\x01garbage\r\n\r\n") }, "ConnectionBroken", "malformed"},
		"breaks in the headers":     {func(_ int, c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le") }, "ConnectionBroken", "malformed"},
		"sends headers without end": {endlessHeaders, "ConnectionBroken", "header"},
		"breaks in the body": {func(_ int, c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"a\":")
		}, "AnswerBroken", "was carried out (200)"},
		"breaks in a chunk": {func(_ int, c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
		}, "AnswerBroken", ""},
		"switches protocols": {func(_ int, c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
			gone(c)
		}, "SwitchingProtocols", ""},
		"says gzip and sends none": {func(_ int, c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n{\"a\":\"not gzip, no\"}")
		}, "AnswerBroken", "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want(t, do(t, newParticipant(t, Options{}), post(raw(t, c.serve))), saga.Unknown, c.reason, c.message)
		})
	}
}

func endlessHeaders(_ int, c net.Conn) {
	_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n")
	for i := 0; err == nil; i++ {
		_, err = fmt.Fprintf(c, "X-%d: %0100d\r\n", i, i)
	}
}

// TestAnAttemptWhoseTimeIsOverAfterSendingIsUnknown has the time be over when the participant has come so far, and hangs.
func TestAnAttemptWhoseTimeIsOverAfterSendingIsUnknown(t *testing.T) {
	t.Parallel()
	const begun = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
	for name, c := range map[string]struct {
		serve           func(c net.Conn, over func())
		read            int // so much of the answer has been read when its time is over
		reason, message string
	}{
		"before an answer":     {serve: func(c net.Conn, over func()) { over(); gone(c) }, reason: "TimedOut", message: "may have been carried out"},
		"in headers that drip": {serve: dripHeaders, reason: "TimedOut", message: "may have been carried out"},
		"in the body":          {serve: func(c net.Conn, _ func()) { _, _ = io.WriteString(c, begun); gone(c) }, read: len(begun), reason: "AnswerBroken", message: "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			over := func() { cancel(context.DeadlineExceeded) }
			p := newParticipant(t, Options{})
			if c.read > 0 {
				dial := p.transport.DialContext
				p.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := dial(ctx, network, address)
					if err != nil {
						return nil, err
					}
					return &watched{conn, c.read, over}, nil
				}
			}
			url := raw(t, func(_ int, conn net.Conn) { c.serve(conn, over) })
			want(t, doIn(ctx, t, p, post(url)), saga.Unknown, c.reason, c.message)
		})
	}
}

// dripHeaders goes on with headers, but not so long that they would be too many.
func dripHeaders(c net.Conn, over func()) {
	drip := time.NewTicker(10 * time.Millisecond)
	defer drip.Stop()
	_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n")
	for i := 0; err == nil && i < 1000; i++ {
		if i == 3 {
			over()
		}
		<-drip.C
		_, err = fmt.Fprintf(c, "X-%d: a\r\n", i)
	}
	gone(c)
}

// watched is a connection that tells when so many bytes have been read from it, and somebody waits for more.
type watched struct {
	net.Conn
	left int
	read func()
}

func (w *watched) Read(b []byte) (int, error) {
	if w.left == 0 {
		w.read()
	}
	n, err := w.Conn.Read(b)
	w.left -= n
	return n, err
}

func TestHTTP2WorksAndABreakThereIsUnknown(t *testing.T) {
	t.Parallel()
	var proto atomic.Value
	s := httptest.NewUnstartedServer(nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		proto.Store(r.Proto)
		if r.URL.Path == "/abort" {
			panic(nethttp.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, `{"ok":true}`)
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	p := newParticipant(t, Options{TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
	want(t, do(t, p, post(s.URL)), saga.Succeeded, "", "")
	want(t, do(t, p, post(s.URL+"/abort")), saga.Unknown, "ConnectionBroken", "")
	if proto.Load() != "HTTP/2.0" {
		t.Errorf("spoke %v", proto.Load())
	}
}

func TestAnAddressThatThePolicyForbidsIsNeverReached(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(nethttp.ResponseWriter, *nethttp.Request) { t.Error("a request came through") })
	p := newParticipant(t, Options{Egress: &egress.Policy{}})
	port := s.URL[strings.LastIndex(s.URL, ":"):]
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"} {
		want(t, do(t, p, post("http://"+host+port+"/")), saga.Rejected, "EgressDenied", "egress")
	}
	want(t, do(t, p, post("http://169.254.169.254/latest/meta-data/")), saga.Rejected, "EgressDenied", "an administrator can allow it")
}

func TestARedirectIsNeverFollowed(t *testing.T) {
	t.Parallel()
	target := newServer(t, func(nethttp.ResponseWriter, *nethttp.Request) { t.Error("the redirect was followed") })
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) {
		nethttp.Redirect(w, r, target.URL, nethttp.StatusFound)
	})
	want(t, do(t, newParticipant(t, Options{}), post(s.URL, "method", "GET", "body", nil)), saga.Rejected, "Found", "is not followed (302)")
}

// TestTheProxyOfTheEnvironmentIsNotUsed asks the transport: the standard library reads the environment once in a process, so a request would show nothing when another test was first.
func TestTheProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	t.Parallel()
	if newParticipant(t, Options{}).transport.Proxy != nil {
		t.Error("a proxy is looked for, and the egress policy would judge the proxy's address")
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(w nethttp.ResponseWriter, r *nethttp.Request) { _, _ = io.Copy(w, r.Body) })
	p := newParticipant(t, Options{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for j := range 20 {
				body := map[string]any{"i": int64(i), "j": int64(j)}
				if r := do(t, p, post(s.URL, "body", body)); !cmp.Equal(body, bodyOf(t, r)) {
					t.Errorf("sent %v, got %v", body, r)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkDo(b *testing.B) {
	answer, _ := json.Marshal(map[string]any{"id": "ch-7", "status": "captured"})
	s := newServer(b, func(w nethttp.ResponseWriter, _ *nethttp.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	})
	p := newParticipant(b, Options{})
	call := post(s.URL + "/charges")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if r := p.Do(context.Background(), call); r.Kind != saga.Succeeded {
				b.Error(r)
			}
		}
	})
}
