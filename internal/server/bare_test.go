package server

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/operations"
)

// gatekeeper is a cluster that knows each token which begins with good-, as that of a user of the same
// name, and allows what it is told to. It counts what it is asked.
type gatekeeper struct {
	client.Client
	allows bool
	asked  atomic.Int64
}

func (g *gatekeeper) Create(_ context.Context, o client.Object, _ ...client.CreateOption) error {
	g.asked.Add(1)
	switch review := o.(type) {
	case *authenticationv1.TokenReview:
		if token := review.Spec.Token; strings.HasPrefix(token, "good-") {
			review.Status = authenticationv1.TokenReviewStatus{
				Authenticated: true, Audiences: []string{audience}, User: authenticationv1.UserInfo{Username: token},
			}
		}
	case *authorizationv1.SubjectAccessReview:
		review.Status.Allowed = g.allows
	}
	return nil
}

// newBare returns the API in front of a cluster that allows nothing: a request that passes all that
// stands before the operations is forbidden.
func newBare(t *testing.T, limits Limits) (*Server, *gatekeeper) {
	t.Helper()
	g, log := &gatekeeper{}, slog.New(slog.NewTextHandler(t.Output(), nil))
	ops, err := operations.New(operations.Options{
		Client: g, Access: operations.ClusterAccess{Client: g}, Database: &pgxpool.Pool{}, Keys: unhurriedKeys{}, Decider: &fakeDecider{}, Abandoner: &fakeAbandoner{},
		Callbacks: &fakeCallbacks{}, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Operations: ops, Authenticator: NewAuthenticator(g, []string{audience}, nil), Logger: log, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	return s, g
}

// ask has a handler serve one request of an address, without a network.
func ask(t *testing.T, h http.Handler, method, path, address, token string, body io.Reader) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, body)
	r.RemoteAddr = address + ":4711"
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

const (
	here, there = "192.0.2.1", "192.0.2.2"
	sagasOfShop = "/v1/namespaces/shop/sagas"
)

// watchedBody notes whether it is read.
type watchedBody struct{ read bool }

func (b *watchedBody) Read([]byte) (int, error) {
	b.read = true
	return 0, io.EOF
}

func TestTokenIsCheckedBeforeBodyIsRead(t *testing.T) {
	t.Parallel()
	s, _ := newBare(t, generous())
	for token, wanted := range map[string]bool{"bad": false, "good-ada": true} {
		var body watchedBody
		w := ask(t, s, http.MethodPost, sagasOfShop, here, token, &body)
		if body.read != wanted || (w.Code == http.StatusUnauthorized) == wanted {
			t.Errorf("token %s: status %d, the body was read: %t", token, w.Code, body.read)
		}
	}
}

func TestBodyBeyondItsLimitIsRefused(t *testing.T) {
	t.Parallel()
	s, _ := newBare(t, generous())
	body := `{"a":"` + strings.Repeat("x", maxSagaBody-8) + `"}`
	for more, want := range map[string]bool{"": false, " ": true} {
		// A reader of an unknown type has no length, so the header does not tell it.
		w := ask(t, s, http.MethodPost, sagasOfShop, here, "good-ada", io.MultiReader(strings.NewReader(body+more)))
		if (w.Code == http.StatusRequestEntityTooLarge) != want {
			t.Errorf("%d bytes, of at most %d: status %d %s", len(body+more), maxSagaBody, w.Code, w.Body)
		}
	}
}

func TestUserHasRateOfTheirOwn(t *testing.T) {
	t.Parallel()
	limits := generous()
	limits.UserRate = 0.001
	s, _ := newBare(t, limits)
	for i, c := range []struct {
		token, address string
		want           int
	}{
		{"good-ada", here, http.StatusForbidden}, {"good-ada", here, http.StatusTooManyRequests}, {"good-ada", there, http.StatusTooManyRequests},
		{"good-grace", here, http.StatusForbidden},
	} {
		if w := ask(t, s, http.MethodGet, sagasOfShop, c.address, c.token, nil); w.Code != c.want {
			t.Errorf("request %d, of %s: status %d, want %d", i, c.token, w.Code, c.want)
		}
	}
}

func TestAddressHasLimitedRateOfBadTokens(t *testing.T) {
	t.Parallel()
	limits := generous()
	limits.AddressRate = 0.001
	s, g := newBare(t, limits)
	for i, c := range []struct {
		token, address string
		want           int
	}{
		{"bad-1", here, http.StatusUnauthorized}, {"bad-2", here, http.StatusTooManyRequests}, {"bad-3", there, http.StatusUnauthorized},
	} {
		if w := ask(t, s, http.MethodGet, sagasOfShop, c.address, c.token, nil); w.Code != c.want {
			t.Errorf("request %d, from %s: status %d, want %d", i, c.address, w.Code, c.want)
		}
	}
	if asked := g.asked.Load(); asked != 2 {
		t.Errorf("the cluster was asked about %d tokens, want 2", asked)
	}
}

// newBareMetrics returns the server of metrics in front of a cluster.
func newBareMetrics(t *testing.T, g *gatekeeper) *MetricsServer {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "saga_served", Help: "A metric."}))
	s, err := NewMetricsServer(MetricsOptions{Address: ":8444", Client: g, Metrics: registry, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMetricsNeedTheRightToGetThem(t *testing.T) {
	t.Parallel()
	for allows, want := range map[bool]int{false: http.StatusForbidden, true: http.StatusOK} {
		w := ask(t, newBareMetrics(t, &gatekeeper{allows: allows}), http.MethodGet, "/metrics", here, "good-prometheus", nil)
		if shown := strings.Contains(w.Body.String(), "saga_served"); w.Code != want || shown != allows {
			t.Errorf("allowed: %t; status %d, want %d; metrics shown: %t", allows, w.Code, want, shown)
		}
	}
}

func TestMetricsHaveLimitedRateOfUser(t *testing.T) {
	t.Parallel()
	s := newBareMetrics(t, &gatekeeper{allows: true})
	s.users = newRates(0.001)
	for i, c := range []struct {
		token string
		want  int
	}{
		{"good-prometheus", http.StatusOK}, {"good-prometheus", http.StatusTooManyRequests}, {"good-other", http.StatusOK},
	} {
		w := ask(t, s, http.MethodGet, "/metrics", here, c.token, nil)
		if w.Code != c.want || (w.Header().Get("Retry-After") != "") != (c.want == http.StatusTooManyRequests) {
			t.Errorf("scrape %d, of %s: status %d %v, want %d", i, c.token, w.Code, w.Header(), c.want)
		}
	}
}

// TestCertificateWithoutItsKeyIsRefused has pairs that cannot serve. An endpoint that went on without
// them would show a certificate of its own, which no client can check.
func TestCertificateWithoutItsKeyIsRefused(t *testing.T) {
	t.Parallel()
	var files [2][2]string
	for i := range files {
		pair, err := selfSigned(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		files[i][0], files[i][1] = write(t, t.TempDir(), pair)
	}
	missing := filepath.Join(t.TempDir(), "none")
	for what, c := range map[string]struct {
		cert, key string
		good      bool
	}{
		"a pair":          {files[0][0], files[0][1], true},
		"another's key":   {files[0][0], files[1][1], false},
		"no key":          {files[0][0], "", false},
		"a missing key":   {files[0][0], missing, false},
		"no such files":   {missing, missing, false},
		"the other way":   {files[0][1], files[0][0], false},
		"no certificates": {"", "", true}, // it signs one itself
	} {
		e := &endpoint{name: "a test", flags: "test", certFile: c.cert, keyFile: c.key, log: slog.New(slog.DiscardHandler)}
		config, _, err := e.certificates()
		if (err == nil) != c.good {
			t.Errorf("%s: the error is %v", what, err)
		}
		if err == nil && config.MinVersion < tls.VersionTLS12 {
			t.Errorf("%s: TLS %x is spoken", what, config.MinVersion)
		}
	}
}

func TestServerNeedsCertificateAndKeyTogether(t *testing.T) {
	t.Parallel()
	s, _ := newBare(t, generous())
	for files, good := range map[[2]string]bool{{"", ""}: true, {"tls.crt", "tls.key"}: true, {"tls.crt", ""}: false, {"", "tls.key"}: false} {
		o := s.options
		o.CertFile, o.KeyFile = files[0], files[1]
		if _, err := New(o); (err == nil) != good {
			t.Errorf("certificate %q and key %q: %v", files[0], files[1], err)
		}
	}
}
