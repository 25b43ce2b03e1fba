package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/operations"
)

// Options are what the API needs.
type Options struct {
	Operations    *operations.Operations
	Authenticator *Authenticator
	Logger        *slog.Logger
	// Metrics is where the API's metrics are registered; nil is nowhere.
	Metrics prometheus.Registerer
	Limits  Limits
	// Version is the operator's, for the document.
	Version string

	// Address is where the API listens.
	Address string
	// CertFile and KeyFile are the certificate and its key, read again when they change. Without them the API signs a certificate itself.
	CertFile, KeyFile string
	// InsecureHTTP has the API do without TLS; on a loopback address only.
	InsecureHTTP bool
}

// Server is the HTTP API. As a http.Handler it is the whole of it, without a network.
type Server struct {
	options       Options
	log           *slog.Logger
	limits        Limits
	operations    map[string]*operation // by pattern of the mux
	methods       []string
	mux           *http.ServeMux
	commands      *operations.Operations
	authenticator *Authenticator
	metrics       *metrics
	users         *rates
	addresses     *rates
	checks        *places // of credentials, by address
	served        *places // by tenant, as are the two below
	callbacks     *places
	followed      *places
	userFollowed  *places // by user
	memory        *budget.Budget
	documentJSON  []byte
	documentYAML  []byte

	stopping chan struct{} // closed when those who follow have to go
	stopOnce sync.Once
}

// New returns the API. It listens when it is started.
func New(o Options) (*Server, error) {
	if o.Operations == nil || o.Authenticator == nil || o.Logger == nil {
		return nil, errors.New("making the API: operations, authenticator and logger are needed")
	}
	if o.InsecureHTTP {
		if err := CheckInsecure(o.Address); err != nil {
			return nil, err
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("making the API: a certificate needs its key, and a key its certificate")
	}
	s := &Server{
		options: o, log: o.Logger, limits: o.Limits.withDefaults(), operations: map[string]*operation{}, methods: []string{http.MethodGet, http.MethodPost},
		mux: http.NewServeMux(), commands: o.Operations, authenticator: o.Authenticator, stopping: make(chan struct{}),
	}
	s.users, s.addresses = newRates(s.limits.UserRate), newRates(s.limits.AddressRate)
	s.served, s.callbacks = sharedPlaces(s.limits.Concurrent), sharedPlaces(s.limits.Callbacks)
	s.checks = sharedPlaces(s.limits.CredentialChecks)
	s.followed, s.userFollowed = sharedPlaces(s.limits.Followers), fixedPlaces(s.limits.UserFollowers)
	s.memory = budget.New(s.limits.Memory)
	var err error
	if s.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	api := s.newAPI()
	s.routes(api)
	if s.documentJSON, s.documentYAML, err = document(api); err != nil {
		return nil, err
	}
	return s, nil
}

// newAPI prepares huma: JSON only, no page for people, no links to schemas, and nothing in a query that is not known.
func (s *Server) newAPI() huma.API {
	const title = "Saga operator"
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: title, Version: s.options.Version, Description: "Starts, follows and steers sagas. Whoever may do something with the object of a saga in Kubernetes may do it here; " +
				"errors are problem+json.", License: &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry(schemaPrefix, huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{bearerScheme: {
					Type: "http", Scheme: "bearer", Description: "A token of the cluster, for this API's audience: kubectl create token NAME --audience saga-operator"}},
			},
			Servers: []*huma.Server{{URL: "/"}},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
	placeholders(config.Components.Schemas)
	return humago.New(s.mux, config)
}

// The limits of one HTTP/2 connection: concurrent requests, and bytes of their bodies that have
// been received but not read.
const (
	maxStreams       = 64
	maxReceiveBuffer = 128 << 10
)

func boundedHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxReceiveBuffer, MaxReceiveBufferPerStream: maxReceiveBuffer / 2,
	}
}

// half returns half of a number of places, and at least one.
func half(n int) int { return max(1, n/2) }

// Start implements manager.Runnable: it serves until ctx is done.
func (s *Server) Start(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.options.Address)
	if err != nil {
		return fmt.Errorf("listening for the API: %w", err)
	}
	return s.Serve(ctx, l)
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica answers.
func (*Server) NeedLeaderElection() bool { return false }

// Serve serves on a listener, which it closes, until ctx is done.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	connections := limitConnections(l, s.limits.Connections, s.metrics.limited.WithLabelValues("connections").Inc)
	l = connections
	srv := &http.Server{
		ConnState: connections.connState,
		HTTP2:     boundedHTTP2(),
		Handler:   s, ReadHeaderTimeout: s.limits.HeaderTimeout, ReadTimeout: s.limits.ReadTimeout, WriteTimeout: s.limits.WriteTimeout, IdleTimeout: s.limits.IdleTimeout,
		MaxHeaderBytes: s.limits.HeaderBytes, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // who fails to speak TLS is no news
	}
	return (&endpoint{
		name: "the API", flags: "api", server: srv, plain: s.options.InsecureHTTP, certFile: s.options.CertFile, keyFile: s.options.KeyFile, log: s.log,
		stopping: s.endStreams,
	}).serve(ctx, l)
}

// endStreams ends the streams of those who follow.
func (s *Server) endStreams() { s.stopOnce.Do(func() { close(s.stopping) }) }
