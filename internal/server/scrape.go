package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/operations"
)

// MetricsOptions are what a [MetricsServer] needs.
type MetricsOptions struct {
	// Address is where it listens.
	Address string
	// CertFile and KeyFile are the certificate and its key, read again when they change. Without them
	// the server signs a certificate itself.
	CertFile, KeyFile string
	// Client asks the cluster about callers; it must know TokenReviews and SubjectAccessReviews. A
	// loopback address needs none.
	Client client.Client
	// Metrics are served.
	Metrics prometheus.Gatherer
	Logger  *slog.Logger
}

// MetricsServer serves /metrics. On a loopback address it speaks plain HTTP to all callers. On any
// other address it speaks HTTPS only, to callers whom the cluster allows to get /metrics.
type MetricsServer struct {
	options       MetricsOptions
	plain         bool
	authenticator *Authenticator
	access        operations.Access
	addresses     *rates
	users         *rates
	checks        *places // of tokens, by address
}

// The limits of a [MetricsServer]. They leave room for a scrape per second by several callers, and
// bound the questions to the cluster that other callers cause.
const (
	metricsConnections = 100
	metricsScrapes     = 4  // that run at a time
	metricsChecks      = 16 // of tokens, at a time
	metricsAddressRate = 20 // requests without valid credentials per second and address
	metricsUserRate    = 10 // requests per second and user
	metricsTimeout     = 30 * time.Second
)

// NewMetricsServer returns a server. It listens when it is started.
func NewMetricsServer(o MetricsOptions) (*MetricsServer, error) {
	plain, err := IsLoopback(o.Address)
	if err != nil {
		return nil, fmt.Errorf("making the metrics server: the address %q: %w", o.Address, err)
	}
	if o.Metrics == nil || o.Logger == nil || o.Client == nil && !plain {
		return nil, errors.New("making the metrics server: client, metrics and logger are needed")
	}
	return &MetricsServer{
		options: o, plain: plain,
		// Prometheus shows the token of its ServiceAccount, which is made for the API server.
		authenticator: NewAuthenticator(o.Client, nil, nil),
		access:        operations.ClusterAccess{Client: o.Client},
		addresses:     newRates(metricsAddressRate), users: newRates(metricsUserRate), checks: sharedPlaces(metricsChecks),
	}, nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica has metrics.
func (*MetricsServer) NeedLeaderElection() bool { return false }

// Start implements manager.Runnable: it serves until ctx is done.
func (s *MetricsServer) Start(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.options.Address)
	if err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	connections := limitConnections(l, metricsConnections, func() {})
	limits := Limits{}.withDefaults()
	return (&endpoint{
		name: "metrics", flags: "metrics", plain: s.plain, certFile: s.options.CertFile, keyFile: s.options.KeyFile, log: s.options.Logger,
		server: &http.Server{
			Handler: s, ConnState: connections.connState, HTTP2: boundedHTTP2(), ReadHeaderTimeout: limits.HeaderTimeout, ReadTimeout: limits.ReadTimeout,
			WriteTimeout: limits.WriteTimeout, IdleTimeout: limits.IdleTimeout, MaxHeaderBytes: limits.HeaderBytes,
			ErrorLog: slog.NewLogLogger(s.options.Logger.Handler(), slog.LevelDebug),
		},
	}).serve(ctx, connections)
}

// ServeHTTP implements http.Handler.
func (s *MetricsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const path = "/metrics"
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Path != path {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "metrics are read with GET", http.StatusMethodNotAllowed)
		return
	}
	if !s.plain && !s.admit(w, r, operations.Permission{Verb: "get", Path: path}) {
		return
	}
	promhttp.HandlerFor(s.options.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: metricsScrapes, Timeout: metricsTimeout}).ServeHTTP(w, r)
}

// admit reports whether the caller may do what is asked. If not, it has written the response.
func (s *MetricsServer) admit(w http.ResponseWriter, r *http.Request, what operations.Permission) bool {
	caller, ok := s.caller(w, r)
	if !ok {
		return false
	}
	if wait := s.users.take(caller.Name); wait > 0 {
		tooMany(w, wait)
		return false
	}
	var forbidden *operations.ForbiddenError
	switch err := s.access.Allowed(r.Context(), caller, what); {
	case err == nil:
		return true
	case errors.As(err, &forbidden):
		http.Error(w, err.Error(), http.StatusForbidden)
	default:
		s.unavailable(w, err)
	}
	return false
}

// caller authenticates a request. If it cannot, it has written the response.
func (s *MetricsServer) caller(w http.ResponseWriter, r *http.Request) (operations.Caller, bool) {
	address := network(r.RemoteAddr)
	token, err := bearerToken(r.Header)
	if err != nil || !s.authenticator.trusts(token) {
		if wait := s.addresses.wait(address); wait > 0 {
			tooMany(w, wait)
			return operations.Caller{}, false
		}
		free, ok := s.checks.take(address)
		if !ok {
			http.Error(w, "the operator is checking as many tokens as it can at the moment; retry", http.StatusServiceUnavailable)
			return operations.Caller{}, false
		}
		defer free()
	}
	if err == nil && token == "" {
		err = errUnauthenticated
	}
	var caller operations.Caller
	if err == nil {
		caller, err = s.authenticator.Authenticate(r.Context(), token)
	}
	switch {
	case errors.Is(err, errUnauthenticated):
		s.addresses.spend(address)
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, "a valid bearer token of the cluster is needed: Authorization: Bearer …", http.StatusUnauthorized)
		return caller, false
	case err != nil:
		s.unavailable(w, err)
		return caller, false
	}
	return caller, true
}

func tooMany(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
	http.Error(w, "too many requests for metrics", http.StatusTooManyRequests)
}

// unavailable responds to a request about which the cluster cannot be asked.
func (s *MetricsServer) unavailable(w http.ResponseWriter, err error) {
	s.options.Logger.Warn("failed to ask the API server about a request for metrics; check that the operator may create tokenreviews and subjectaccessreviews", "error", err)
	http.Error(w, "the cluster cannot be asked about this request at the moment; retry", http.StatusServiceUnavailable)
}
