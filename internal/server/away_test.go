package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/watch"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

func TestWithoutPostgreSQLOrTheAPIServerItSaysSoAndWhenToAskAgain(t *testing.T) {
	t.Parallel()
	away := &atomic.Bool{}
	nowhere, err := postgres.Open(t.Context(), postgres.Config{URL: "postgres://saga@127.0.0.1:1/saga?sslmode=disable"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nowhere.Close)
	r := newRig(t, func(o *operations.Options, _ *Options) {
		o.Database, o.Keys = nowhere, idempotency.NewPostgres(nowhere, idempotency.Options{})
		watched, ok := o.Client.(client.WithWatch)
		if !ok {
			watched = unwatched{o.Client}
		}
		broken := func() error {
			if away.Load() {
				return &net.OpError{Op: "dial", Err: errors.New("connection refused to 10.0.0.1")}
			}
			return nil
		}
		o.Client = interceptor.NewClient(watched, interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, k client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
				return errors.Join(broken(), c.Get(ctx, k, obj, opts...))
			},
			List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
				return errors.Join(broken(), c.List(ctx, l, opts...))
			},
		})
	})
	token := r.editor()
	r.createAs(kubernetes(t).Config, "order-1", nil)
	unavailable := func(what string, c call) {
		t.Helper()
		c.token = token
		a := r.do(c)
		if p := a.problem(t); a.status != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" || p.Reason != "Unavailable" || strings.Contains(string(a.body), "10.0.0.1") {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	away.Store(true)
	unavailable("getting without the API server", call{method: "GET", path: sagas + "/order-1"})
	unavailable("listing without the API server", call{method: "GET", path: sagas})
	away.Store(false)
	unavailable("history without PostgreSQL", call{method: "GET", path: sagas + "/order-1/history"})
	unavailable("creating without PostgreSQL", call{method: "POST", path: sagas, body: manifest("order-2"), header: key("k")})
	if a := r.do(call{method: "GET", path: sagas + "/order-1", token: token}); a.status != http.StatusOK {
		t.Errorf("getting without PostgreSQL: %d %s", a.status, a.body)
	}
}

// unwatched is a client that is not asked to watch.
type unwatched struct{ client.Client }

func (unwatched) Watch(context.Context, client.ObjectList, ...client.ListOption) (watch.Interface, error) {
	return nil, errors.New("nothing is watched here")
}

// reviewer answers TokenReviews.
type reviewer struct {
	client.Client
	asked atomic.Int32
	say   func(token string) (authenticationv1.TokenReviewStatus, error)
}

func (r *reviewer) Create(_ context.Context, o client.Object, _ ...client.CreateOption) (err error) {
	r.asked.Add(1)
	review, _ := o.(*authenticationv1.TokenReview)
	review.Status, err = r.say(review.Spec.Token)
	return err
}

func good(audiences ...string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: audiences, User: authenticationv1.UserInfo{
		Username: "ada", UID: "u-1", Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"x": {"y"}}}}
}

func TestWhatTheClusterSaysOfATokenIsRememberedForAShortTime(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakeClock(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
	r := &reviewer{say: func(token string) (authenticationv1.TokenReviewStatus, error) {
		switch token {
		case "good":
			return good("saga-operator"), nil
		case "away":
			return authenticationv1.TokenReviewStatus{}, errors.New("no route to host")
		}
		return authenticationv1.TokenReviewStatus{Error: "bad"}, nil
	}}
	a := NewAuthenticator(r, []string{"saga-operator"}, clock)
	ask := func(token string, times, want int32) {
		t.Helper()
		before := r.asked.Load()
		for range times {
			caller, err := a.Authenticate(t.Context(), token)
			if token == "good" && (err != nil || caller.Name != "ada" || caller.UID != "u-1" || caller.Extra["x"][0] != "y") ||
				token == "bad" && !errors.Is(err, errUnauthenticated) || token == "away" && !errors.Is(err, operations.ErrUnavailable) {
				t.Errorf("%s: %+v, %v", token, caller, err)
			}
		}
		if got := r.asked.Load() - before; got != want {
			t.Errorf("%s: the cluster was asked %d times, want %d", token, got, want)
		}
	}
	ask("good", 5, 1)
	ask("bad", 5, 1)
	ask("away", 3, 3) // that nobody could say is not remembered
	clock.Step(refusedFor + time.Millisecond)
	ask("good", 1, 0)
	ask("bad", 1, 1)
	clock.Step(acceptedFor)
	ask("good", 1, 1)
}

func TestAPanicWhileATokenIsLookedAtIsAnErrorAndNoMore(t *testing.T) {
	t.Parallel()
	broken := true
	a := NewAuthenticator(&reviewer{say: func(string) (authenticationv1.TokenReviewStatus, error) {
		if broken {
			panic("at the disco")
		}
		return good("saga-operator"), nil
	}}, []string{"saga-operator"}, nil)
	if _, err := a.Authenticate(t.Context(), "token"); err == nil || errors.Is(err, errUnauthenticated) || !strings.Contains(err.Error(), "panic: at the disco") {
		t.Errorf("error %v", err)
	}
	broken = false
	if caller, err := a.Authenticate(t.Context(), "token"); err != nil || caller.Name != "ada" {
		t.Errorf("afterwards: %+v, %v", caller, err)
	}
}

func TestATokenForAnotherAudienceIsNotTaken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status authenticationv1.TokenReviewStatus
		wanted []string
		good   bool
	}{
		"the right one": {good("saga-operator"), []string{"saga-operator"}, true},
		"an authenticator that knows no audiences": {good(), []string{"saga-operator"}, false},
		"another one": {good("vault"), []string{"saga-operator"}, false},
		"none wanted": {good("api"), nil, true},
		"nobody":      {authenticationv1.TokenReviewStatus{Authenticated: true}, nil, false},
	} {
		a := NewAuthenticator(&reviewer{say: func(string) (authenticationv1.TokenReviewStatus, error) { return c.status, nil }}, c.wanted, nil)
		if _, err := a.Authenticate(t.Context(), "token"); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyOneBearerTokenIsABearerToken(t *testing.T) {
	t.Parallel()
	for _, values := range [][]string{{"Basic YTpi"}, {"Bearer"}, {"Bearer "}, {"Bearer a b"}, {"Bearer a,b"}, {"Bearer a", "Bearer b"}, {"Bearer " + strings.Repeat("x", maxToken+1)}} {
		if token, err := bearerToken(http.Header{"Authorization": values}); !errors.Is(err, errUnauthenticated) || token != "" {
			t.Errorf("%.80q: %q, %v", values, token, err)
		}
	}
	if token, err := bearerToken(http.Header{"Authorization": {"bearer abc"}}); token != "abc" || err != nil {
		t.Errorf("%q, %v", token, err)
	}
}

// write puts a certificate and its key into files.
func write(t *testing.T, dir string, c tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(file+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestANewCertificateIsUsedWithoutARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	second, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := write(t, dir, first)
	r := newRig(t, func(_ *operations.Options, o *Options) { o.CertFile, o.KeyFile = certFile, keyFile })
	serves := func(c tls.Certificate) bool {
		conn, ok := r.dial().(*tls.Conn)
		defer conn.Close()
		return ok && string(conn.ConnectionState().PeerCertificates[0].Raw) == string(c.Certificate[0])
	}
	if !serves(first) {
		t.Fatal("it does not serve the certificate that it was given")
	}
	write(t, dir, second)
	r.until("it serves the new certificate", func() bool { return serves(second) })
}

func TestPlainHTTPIsForLoopbackOnly(t *testing.T) {
	t.Parallel()
	for address, allowed := range map[string]bool{
		"127.0.0.1:8080": true, "[::1]:8080": true, "127.9.9.9:1": true, ":8080": false, "0.0.0.0:8080": false, "localhost:8080": false, "192.0.2.7:80": false, "nonsense": false, "": false,
	} {
		if err := CheckInsecure(address); (err == nil) != allowed {
			t.Errorf("%s: %v", address, err)
		}
	}
	r := newRig(t)
	_, err := New(Options{Operations: r.server.commands, Authenticator: r.server.authenticator, Logger: slog.Default(), Address: ":8080", InsecureHTTP: true})
	if err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("%v", err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.Replace(r.base, "https", "http", 1)+"/openapi.json", nil)
	r.ok(err)
	res, err := http.DefaultClient.Do(req)
	if err == nil {
		_ = res.Body.Close()
		if res.StatusCode != http.StatusBadRequest { // net/http's word to those who speak no TLS
			t.Errorf("without TLS: %d", res.StatusCode)
		}
	}
}

func TestTheSelfSignedCertificateIsForThisMachine(t *testing.T) {
	t.Parallel()
	c, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := parsed.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if parsed.IsCA || time.Until(parsed.NotAfter) > 366*24*time.Hour {
		t.Error(fmt.Errorf("it is good for more than it should be: %v", parsed.NotAfter))
	}
}

func TestStoppingEndsThoseWhoFollow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	r.create(token, "order-1")
	f := r.follow(token, "order-1", "")
	r.server.endStreams()
	for {
		if _, ok := f.next(); !ok {
			break
		}
	}
	if err := f.lines.Err(); err != nil {
		t.Errorf("the stream was cut off: %v", err)
	}
}
