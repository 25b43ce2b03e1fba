package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/operations"
)

// heldAccess lets nobody know until it is let go.
type heldAccess struct {
	operations.Access
	asked, letGo chan struct{}
}

func (h *heldAccess) Allowed(ctx context.Context, who operations.Caller, what operations.Permission) error {
	h.asked <- struct{}{}
	<-h.letGo
	return h.Access.Allowed(ctx, who, what)
}

func TestMoreRequestsThanCanBeServedAtOnceAreTurnedAway(t *testing.T) {
	t.Parallel()
	h := &heldAccess{asked: make(chan struct{}), letGo: make(chan struct{})}
	r := newRig(t, func(o *operations.Options, s *Options) { h.Access, o.Access, s.Limits.Concurrent = o.Access, h, 4 })
	token := r.editor()
	c := call{method: "GET", path: sagas, token: token}
	served := make(chan int)
	for range 2 {
		go func() { served <- r.do(c).status }()
		<-h.asked
	}
	a := r.do(c)
	if p := a.problem(t); a.status != http.StatusServiceUnavailable || p.Reason != "Busy" || a.header.Get("Retry-After") == "" {
		t.Errorf("one more: %d %v %s", a.status, a.header, a.body)
	}
	close(h.letGo)
	for range 2 {
		if status := <-served; status != http.StatusOK {
			t.Errorf("one of the first was answered with %d", status)
		}
	}
	go func() { <-h.asked }()
	if a := r.do(c); a.status != http.StatusOK {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
}

// TestServerLimitsConcurrencyOfTenant fills the share of one namespace. A user of another namespace
// is still served.
func TestServerLimitsConcurrencyOfTenant(t *testing.T) {
	t.Parallel()
	h := &heldAccess{asked: make(chan struct{}), letGo: make(chan struct{})}
	r := newRig(t, func(o *operations.Options, s *Options) { h.Access, o.Access, s.Limits.Concurrent = o.Access, h, 4 })
	greedy, elsewhere := r.editor(), r.namespace()
	modest := r.token(r.account("modest", elsewhere), audience)
	served := make(chan int)
	for range 2 {
		go func() { served <- r.do(call{method: "GET", path: sagas, token: greedy}).status }()
		<-h.asked
	}
	if a := r.do(call{method: "GET", path: sagas, token: greedy}); a.status != http.StatusServiceUnavailable {
		t.Errorf("one request more of the tenant: %d %s", a.status, a.body)
	}
	go func() {
		served <- r.do(call{method: "GET", path: "/v1/namespaces/" + elsewhere + "/sagas", token: modest}).status
	}()
	<-h.asked // the request of the other namespace is served
	close(h.letGo)
	for range 3 {
		<-served
	}
}

func TestAUserIsHeldToTheirRateAndNobodyElseWithThem(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.UserRate = 0.001 })
	ada, grace := r.editor(), r.editor()
	get := func(token string) answer { return r.do(call{method: "GET", path: sagas, token: token}) }
	if a := get(ada); a.status != http.StatusOK {
		t.Fatalf("the first: %d %s", a.status, a.body)
	}
	if a := get(ada); a.status != http.StatusTooManyRequests || a.problem(t).Reason != "TooManyRequests" || a.header.Get("Retry-After") == "" {
		t.Errorf("the second: %d %v %s", a.status, a.header, a.body)
	}
	if a := get(grace); a.status != http.StatusOK {
		t.Errorf("somebody else: %d %s", a.status, a.body)
	}
}

func TestAnAddressIsHeldToItsRateBeforeAnybodyIsAskedAboutIt(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.AddressRate = 0.001 })
	if a := r.do(call{method: "GET", path: sagas, token: "junk"}); a.status != http.StatusUnauthorized {
		t.Fatalf("the first: %d %s", a.status, a.body)
	}
	if a := r.do(call{method: "POST", path: "/v1/callbacks/guess", body: "{}"}); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" {
		t.Errorf("the second: %d %s", a.status, a.body)
	}
}

// TestAddressRateExemptsTrustedToken uses up the rate of an address with invalid tokens. A user
// with a trusted token has the same address, as behind an ingress, and is still served.
func TestAddressRateExemptsTrustedToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.AddressRate = 0.001 })
	known, unknown := r.editor(), r.editor()
	get := func(token string) int { return r.do(call{method: "GET", path: sagas, token: token}).status }
	for range 3 {
		if status := get(known); status != http.StatusOK {
			t.Fatalf("valid token: %d", status)
		}
	}
	if status := get("junk"); status != http.StatusUnauthorized {
		t.Errorf("invalid token: %d", status)
	}
	for token, want := range map[string]int{known: http.StatusOK, unknown: http.StatusTooManyRequests, "junk": http.StatusTooManyRequests, "": http.StatusTooManyRequests} {
		if status := get(token); status != want {
			t.Errorf("token %.8q after the rate was used up: %d, want %d", token, status, want)
		}
	}
}

func TestAddressRateCountsOnlyForgedCallbacks(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.AddressRate = 0.001 })
	post := func() int {
		return r.do(call{method: "POST", path: "/v1/callbacks/token", body: `{"outcome":"Succeeded"}`}).status
	}
	for range 3 {
		if status := post(); status != http.StatusNoContent {
			t.Fatalf("valid callback: %d", status)
		}
	}
	r.answers.failWith(engine.ErrNoCallback)
	for _, want := range []int{http.StatusNotFound, http.StatusTooManyRequests} {
		if status := post(); status != want {
			t.Errorf("forged callback: %d, want %d", status, want)
		}
	}
}

func TestServerLimitsRateOfCallbackToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.UserRate = 0.001 })
	for token, want := range map[string][]int{"one": {http.StatusNoContent, http.StatusTooManyRequests}, "other": {http.StatusNoContent}} {
		for _, status := range want {
			if a := r.do(call{method: "POST", path: "/v1/callbacks/" + token, body: `{"outcome":"Succeeded"}`}); a.status != status {
				t.Errorf("token %s: %d, want %d", token, a.status, status)
			}
		}
	}
}

// TestServerRespondsBeforeUnauthorizedBody sends requests without their bodies.
func TestServerRespondsBeforeUnauthorizedBody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.answers.failWith(engine.ErrNoCallback)
	for path, want := range map[string]int{"/v1/callbacks/forged": http.StatusNotFound, "/v1/namespaces/shop/sagas": http.StatusUnauthorized} {
		c := r.dial()
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n", path)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != want {
			t.Errorf("%s: %v, %v", path, res, err)
		}
	}
}

func TestServerSlowBodyTakesNoPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.Concurrent, o.Limits.Callbacks = 2, 1 })
	token := r.editor()
	header := fmt.Sprintf("HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\nContent-Length: 100\r\n\r\n{", token)
	for range 3 {
		fmt.Fprintf(r.dial(), "POST /v1/namespaces/%s/sagas %s", r.ns, header)
		fmt.Fprintf(r.dial(), "POST /v1/callbacks/token %s", header)
	}
	r.until("the server waits for all bodies", func() bool {
		return r.server.memory.Used() >= 6*requestBytes
	})
	if a := r.do(call{method: "GET", path: sagas, token: token}); a.status != http.StatusOK {
		t.Errorf("request: %d %s", a.status, a.body)
	}
	if a := r.do(call{method: "POST", path: "/v1/callbacks/token", body: `{"outcome":"Succeeded"}`}); a.status != http.StatusNoContent {
		t.Errorf("callback: %d %s", a.status, a.body)
	}
}

// TestServerServesDespiteSilentConnections opens many connections that send nothing. They replace
// each other, and not the connection whose request is being served.
func TestServerServesDespiteSilentConnections(t *testing.T) {
	t.Parallel()
	h := &heldAccess{asked: make(chan struct{}), letGo: make(chan struct{})}
	r := newRig(t, func(o *operations.Options, s *Options) { h.Access, o.Access, s.Limits.Connections = o.Access, h, 4 })
	letGo := sync.OnceFunc(func() { close(h.letGo) })
	defer letGo()
	c := call{method: "GET", path: sagas, token: r.editor()}
	served := make(chan int, 1)
	go func() { served <- r.do(c).status }()
	<-h.asked
	for range 10 {
		silent, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.base, "https://"))
		r.ok(err)
		defer silent.Close()
	}
	conn := r.dial()
	fmt.Fprintf(conn, "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("new connection: %v, %v", res, err)
	}
	letGo()
	if status := <-served; status != http.StatusOK {
		t.Errorf("request: %d", status)
	}
}

func TestServerLimitsMemoryOfList(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.Memory = 250 << 10 })
	token := r.editor()
	for i := range 25 {
		r.create(token, fmt.Sprintf("order-%d", i))
	}
	a := r.do(call{method: "GET", path: sagas, token: token})
	if a.status != http.StatusServiceUnavailable || a.problem(t).Reason != "Busy" || !strings.Contains(a.problem(t).Detail, "limit") {
		t.Errorf("without limit: %d %.300s", a.status, a.body)
	}
	if n := testutil.ToFloat64(r.server.metrics.limited.WithLabelValues("memory")); n != 1 {
		t.Errorf("saga_api_limited_total{limit=memory} = %v, want 1", n)
	}
	if a := r.do(call{method: "GET", path: sagas + "?limit=2", token: token}); a.status != http.StatusOK {
		t.Errorf("limit=2: %d %.300s", a.status, a.body)
	}
	r.until("all memory is given back", func() bool {
		return r.server.memory.Used() == 0
	})
}

func TestServerLimitsMemoryOfBody(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(_ *operations.Options, o *Options) { o.Limits.Memory = 2 << 20 })
	for name, body := range map[string]string{"long": strings.Repeat("x", 900<<10), "many values": strings.Repeat("0,", 40_000)} {
		a := r.do(call{method: "POST", path: "/v1/callbacks/token", body: `{"outcome":"Succeeded","body":["` + body + `"]}`})
		if name != "long" {
			a = r.do(call{method: "POST", path: "/v1/callbacks/token", body: `{"outcome":"Succeeded","body":[` + body + `0]}`})
		}
		if a.status != http.StatusServiceUnavailable || a.problem(t).Reason != "Busy" || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %.300s", name, a.status, a.body)
		}
	}
	if a := r.do(call{method: "POST", path: "/v1/callbacks/token", body: `{"outcome":"Succeeded"}`}); a.status != http.StatusNoContent {
		t.Errorf("small body: %d %s", a.status, a.body)
	}
}

// TestServerLimitsMemoryOfRequestsWithoutBody holds a request that takes all memory of its user.
func TestServerLimitsMemoryOfRequestsWithoutBody(t *testing.T) {
	t.Parallel()
	h := &heldAccess{asked: make(chan struct{}), letGo: make(chan struct{})}
	r := newRig(t, func(o *operations.Options, s *Options) {
		h.Access, o.Access, s.Limits.Memory = o.Access, h, 3*requestBytes
	})
	letGo := sync.OnceFunc(func() { close(h.letGo) })
	defer letGo()
	c := call{method: "GET", path: sagas, token: r.editor()}
	served := make(chan int, 1)
	go func() { served <- r.do(c).status }()
	<-h.asked
	again := make(chan answer, 1)
	go func() { again <- r.do(c) }()
	select {
	case <-h.asked:
		t.Error("the second request was admitted")
	case a := <-again:
		if a.status != http.StatusServiceUnavailable || a.problem(t).Reason != "Busy" {
			t.Errorf("second request: %d %s", a.status, a.body)
		}
	}
	if n := testutil.ToFloat64(r.server.metrics.limited.WithLabelValues("memory")); n != 1 {
		t.Errorf("saga_api_limited_total{limit=memory} = %v, want 1", n)
	}
	letGo()
	<-served
}

func TestTheMemoryOfRatesIsBounded(t *testing.T) {
	t.Parallel()
	r := newRates(1)
	for i := range maxRated + 500 {
		r.take(fmt.Sprint(i))
	}
	if n := len(r.all.Keys()); n > maxRated {
		t.Errorf("%d are remembered", n)
	}
}

func TestANetworkOfIPv6CountsAsOneAddress(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64", "[2001:db8:1:2:ffff::]:2": "2001:db8:1:2::/64",
		"[::ffff:192.0.2.7]:1": "192.0.2.7", "[fe80::1%eth0]:1": "fe80::/64", "pipe": "pipe",
	} {
		if got := network(remote); got != want {
			t.Errorf("%s counts as %s, want %s", remote, got, want)
		}
	}
}

// Find succeeds for every token, unless the fake fails with engine.ErrNoCallback.
func (c *fakeCallbacks) Find(_ context.Context, token string) (namespace string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(c.fail, engine.ErrNoCallback) {
		return "", c.fail
	}
	namespace, _, _ = strings.Cut(token, ".")
	return namespace, nil
}

// dial opens a bare connection.
func (r *rig) dial() net.Conn {
	r.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", strings.TrimPrefix(r.base, "https://"))
	r.ok(err)
	r.Cleanup(func() { _ = c.Close() })
	r.ok(c.SetDeadline(time.Now().Add(patience)))
	return c
}

func TestASlowClientIsLetGo(t *testing.T) {
	t.Parallel()
	impatient := func(insecure bool) setup {
		return func(_ *operations.Options, o *Options) {
			o.Limits.HeaderTimeout, o.Limits.ReadTimeout, o.Limits.IdleTimeout = time.Second, 2*time.Second, time.Second
			o.InsecureHTTP, o.Address = insecure, "127.0.0.1:0"
		}
	}
	// Without TLS, so that there is no handshake that the limits hold for too.
	plain, secure := newRig(t, impatient(true)), newRig(t, impatient(false))
	token := plain.editor()
	body := manifest("order-1")
	for name, c := range map[string]struct {
		rig  *rig
		sent string
	}{
		"says nothing":            {plain, ""},
		"says nothing of TLS":     {secure, ""},
		"does not end its header": {plain, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow:"},
		"does not end its body": {plain, fmt.Sprintf("POST /v1/namespaces/%s/sagas HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\nContent-Length: %d\r\n\r\n%s",
			plain.ns, token, len(body), body[:len(body)-2])},
		"keeps an idle connection": {plain, "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"},
		"never begins with a chunk": {plain, fmt.Sprintf("POST /v1/namespaces/%s/sagas HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
			plain.ns, token)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(c.rig.base, "https://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			c.rig.ok(conn.SetDeadline(time.Now().Add(patience)))
			if _, err = io.WriteString(conn, c.sent); err == nil { // else it was let go before it has said a word
				_, err = io.Copy(io.Discard, conn)
			}
			if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("the connection stays open: %v", err)
			}
		})
	}
}

func isTimeout(err error) bool {
	timeout := net.Error(nil)
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestHeadersAreLimitedInNumberAndSize(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	many := http.Header{}
	for i := range 80 {
		many.Set(fmt.Sprintf("X-%d", i), "x")
	}
	if a := r.do(call{method: "GET", path: sagas, header: many}); a.status != http.StatusRequestHeaderFieldsTooLarge || a.problem(t).Detail == "" {
		t.Errorf("many: %d %s", a.status, a.body)
	}
	c := r.dial()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Large: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != http.StatusRequestHeaderFieldsTooLarge { // net/http itself
		t.Errorf("large: %v, %v", res, err)
	}
}

func TestABodyWithoutALengthIsLimitedToo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	req := r.request(call{method: "POST", path: sagas, token: r.editor(), header: key("k")})
	req.Header.Set("Content-Type", "application/json")
	req.Body, req.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader(`{"a":"`), io.LimitReader(letters{}, maxSagaBody))), -1
	res, err := r.http.Do(req)
	r.ok(err)
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("answered with %d", res.StatusCode)
	}
}

// letters never ends.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	return copy(p, bytes.Repeat([]byte("x"), len(p))), nil
}

func TestAPanicIsAnsweredWithoutInternals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.server.mux.HandleFunc("GET /panics", func(http.ResponseWriter, *http.Request) { panic("at the secret disco") })
	r.server.mux.HandleFunc("GET /late", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("half")); panic("late") })
	for _, path := range []string{"/panics", "/late"} {
		r.server.operations["GET "+path] = &operation{server: r.server, id: "openapi", public: true, handler: r.server.mux}
	}
	a := r.do(call{method: "GET", path: "/panics"})
	if p := a.problem(t); a.status != http.StatusInternalServerError || strings.Contains(string(a.body), "secret") || p.Reason != "Internal" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if log := r.log.String(); !strings.Contains(log, "secret disco") || !strings.Contains(log, a.header.Get("X-Request-Id")) {
		t.Error("the log does not say what happened")
	}
	res, err := r.http.Do(r.request(call{method: "GET", path: "/late"}))
	if err == nil {
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
	}
	if err == nil {
		t.Error("an answer that broke off looks complete")
	}
}

func TestRequestsAreCountedWithoutNames(t *testing.T) {
	t.Parallel()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	for status, class := range map[int]string{200: "2xx", 429: "4xx", 0: "none"} {
		m.observe("getSaga", status, time.Millisecond)
		if _, err := m.total.GetMetricWithLabelValues("getSaga", class); err != nil {
			t.Error(err)
		}
	}
}

func TestWithoutANetworkTheServerIsAHandler(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := httptest.NewRecorder()
	r.server.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	if w.Code != http.StatusOK || !bytes.Contains(w.Body.Bytes(), []byte(`"openapi": "3.1.0"`)) {
		t.Errorf("%d %.300s", w.Code, w.Body)
	}
}

func TestWhoIsTurnedAwayDoesNotWaitLongerForHavingAsked(t *testing.T) {
	t.Parallel()
	const interval = time.Hour
	r := newRates(1 / interval.Seconds())
	r.take("ada")
	for range 20 {
		if wait := r.take("ada"); wait <= 0 || wait > interval {
			t.Fatalf("there is a token in %s", wait)
		}
	}
}
