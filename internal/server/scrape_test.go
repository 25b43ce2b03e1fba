package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/ports"
)

// serveMetrics starts a server of metrics, which has one metric, for the duration of a test.
func serveMetrics(t *testing.T, o MetricsOptions) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "saga_served", Help: "A metric."}))
	o.Metrics, o.Logger = registry, slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := NewMetricsServer(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving metrics: %v", err)
		}
	})
}

func TestMetricsServerOnLoopbackNeedsNoToken(t *testing.T) {
	t.Parallel()
	address := ports.ForTest(t)
	serveMetrics(t, MetricsOptions{Address: address})
	untilServed(t, address)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), "saga_served 0") {
		t.Errorf("the metrics on %s: %s %s, %v", address, res.Status, body, err)
	}
}

// untilServed waits until somebody listens on an address.
func untilServed(t *testing.T, address string) {
	t.Helper()
	for began := time.Now(); ; {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Since(began) > patience {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestMetricsServerUsesItsCertificate(t *testing.T) {
	t.Parallel()
	_, port, err := net.SplitHostPort(ports.ForTest(t))
	if err != nil {
		t.Fatal(err)
	}
	own, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := write(t, t.TempDir(), own)
	serveMetrics(t, MetricsOptions{Address: "localhost:" + port, CertFile: certFile, KeyFile: keyFile, Client: &reviews{}})
	untilServed(t, "localhost:"+port)
	dialer := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(t.Context(), "tcp", "localhost:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw; string(got) != string(own.Certificate[0]) {
		t.Error("the server does not show the certificate that it was given")
	}
}

// reviews is a cluster that says no to everybody, and counts how often it is asked.
type reviews struct {
	client.Client
	asked atomic.Int64
}

func (c *reviews) Create(context.Context, client.Object, ...client.CreateOption) error {
	c.asked.Add(1)
	return nil
}

func TestMetricsServerLimitsBadTokens(t *testing.T) {
	t.Parallel()
	cluster := &reviews{}
	s, err := NewMetricsServer(MetricsOptions{Address: ":8444", Client: cluster, Metrics: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	scrape := func(address string, i int) int {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
		r.RemoteAddr = address + ":4711"
		r.Header.Set("Authorization", fmt.Sprintf("Bearer wrong-%d", i))
		s.ServeHTTP(w, r)
		return w.Code
	}
	began := time.Now()
	const sent = 1000
	for i := range sent {
		scrape("192.0.2.1", i)
	}
	if most := int64(metricsAddressRate * (time.Since(began).Seconds() + burstSeconds + 1)); cluster.asked.Load() > most {
		t.Errorf("the cluster was asked about %d of %d bad tokens, want at most %d", cluster.asked.Load(), sent, most)
	}
	if got := scrape("192.0.2.2", sent); got != http.StatusUnauthorized {
		t.Errorf("another address: %d, want %d", got, http.StatusUnauthorized)
	}
}
