// Package services runs the four services of the example in one process: for the demo, for tests, and for looking around.
package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/inventory"
	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
	"github.com/vextrus/saga-operator/examples/order-to-cash/payments"
	"github.com/vextrus/saga-operator/examples/order-to-cash/shipping"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
	sinkhttp "github.com/vextrus/saga-operator/internal/outbox/sink/http"
)

// What tests and the demo need of the services' own packages.
type (
	// Faults are what a service does wrong on purpose.
	Faults = effect.Faults
	// Duration is how faults tell time.
	Duration = effect.Duration
	// Outage is a time during which shipping is unavailable.
	Outage = shipping.Outage
)

// Addresses are where the services listen, each host:port.
type Addresses struct{ Orders, Inventory, Payments, Shipping string }

// DefaultAddresses are those that the sagas are written for: ordertocash.DefaultURLs.
func DefaultAddresses() Addresses {
	at := func(url string) string { return strings.TrimPrefix(url, "http://") }
	u := ordertocash.DefaultURLs
	return Addresses{at(u.Orders), at(u.Inventory), at(u.Payments), at(u.Shipping)}
}

// DefaultPaymentsLimit is the most that a card can be charged, in any currency.
const DefaultPaymentsLimit = "1000.00"

// Options say how to run the services. Only the database is required.
type Options struct {
	// DatabaseURL is a connection URL. The role needs to be allowed to create schemas in the database.
	DatabaseURL string
	// Addresses to listen at; an empty one is a free port of 127.0.0.1.
	Addresses Addresses
	// AnyPort takes a free port of the same host where the one that was asked for is taken.
	AnyPort bool
	// PaymentsLimit is a decimal; empty is DefaultPaymentsLimit.
	PaymentsLimit string
	// Stock is what is delivered of each article that the database does not know yet; nil is DefaultStock.
	Stock map[string]int64
	// MaxConns is the most connections to the database; zero is 16.
	MaxConns int32
	// OrderEvents is a URL to which what happens to orders is posted, as CloudEvents; nowhere when empty.
	OrderEvents string
	// Logger is told of what goes wrong; nil is nobody.
	Logger *slog.Logger
}

// DefaultStock is plenty of A-7 and B-1, and one R-9.
func DefaultStock() map[string]int64 {
	return map[string]int64{"A-7": 100_000, "B-1": 100_000, "R-9": 1}
}

// Services are the four services while they run.
type Services struct {
	urls    ordertocash.URLs
	pool    *pgxpool.Pool
	names   map[string]*effect.Service
	orders  *orders.Service
	ship    *shipping.Service
	servers []*http.Server
	cancel  context.CancelFunc
	serving sync.WaitGroup
	failed  chan error
}

// Start creates what is missing in the database and starts the services; they are ready when it returns. ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Services, error) {
	if o.DatabaseURL == "" {
		return nil, errors.New("starting the services: no database is named; set DATABASE_URL, for example postgres://user@127.0.0.1:5432/shop")
	}
	o = o.withDefaults()
	pool, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &Services{pool: pool, failed: make(chan error, 4)}
	handlers, err := s.create(ctx, o)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("starting the services: %w", err)
	}
	listeners, err := listen(ctx, o)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("starting the services: %w", err)
	}
	url := func(i int) string { return "http://" + listeners[i].Addr().String() }
	s.urls = ordertocash.URLs{Orders: url(0), Inventory: url(1), Payments: url(2), Shipping: url(3)}
	s.serve(listeners, handlers, o.Logger)
	return s, nil
}

func (o Options) withDefaults() Options {
	if o.PaymentsLimit == "" {
		o.PaymentsLimit = DefaultPaymentsLimit
	}
	if o.Stock == nil {
		o.Stock = DefaultStock()
	}
	if o.MaxConns == 0 {
		o.MaxConns = 16
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func open(ctx context.Context, o Options) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(o.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("the database URL of the services: %w", err)
	}
	config.MaxConns = o.MaxConns
	for name, value := range map[string]string{
		"application_name": "order-to-cash", "statement_timeout": "8s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "8s",
	} {
		if _, set := config.ConnConfig.RuntimeParams[name]; !set {
			config.ConnConfig.RuntimeParams[name] = value
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting the services to the database: %w", err)
	}
	return pool, nil
}

// publish has what happens to orders posted to a URL.
func (s *Services) publish(ctx context.Context, url string) error {
	if url == "" {
		return nil
	}
	const attempts, first, longest = 20, time.Second, 5 * time.Minute
	to, err := sinkhttp.New(sinkhttp.Config{Connection: sink.Connection{Dial: (&net.Dialer{}).DialContext}, URL: url, UserAgent: "order-to-cash"})
	if err != nil {
		return err
	}
	return s.orders.PublishTo(ctx, outbox.Sink{
		ID: "order-events", Name: "order-events", Publisher: to, Retry: outbox.Retry{MaxAttempts: attempts, InitialBackoff: first, MaxBackoff: longest},
	})
}

// create makes the four services, in the order of their addresses.
func (s *Services) create(ctx context.Context, o Options) ([]http.Handler, error) {
	var err error
	if s.orders, err = orders.New(ctx, s.pool, o.Logger); err != nil {
		return nil, err
	}
	if err := s.publish(ctx, o.OrderEvents); err != nil {
		return nil, err
	}
	stock, err := inventory.New(ctx, s.pool, o.Stock, o.Logger)
	if err != nil {
		return nil, err
	}
	pay, err := payments.New(ctx, s.pool, o.PaymentsLimit, o.Logger)
	if err != nil {
		return nil, err
	}
	if s.ship, err = shipping.New(ctx, s.pool, o.Logger); err != nil {
		return nil, err
	}
	s.names = map[string]*effect.Service{"orders": s.orders.Service, "inventory": stock, "payments": pay, "shipping": s.ship.Service}
	return []http.Handler{s.orders, stock, pay, s.ship}, nil
}

func listen(ctx context.Context, o Options) ([]net.Listener, error) {
	var all []net.Listener
	for _, address := range []string{o.Addresses.Orders, o.Addresses.Inventory, o.Addresses.Payments, o.Addresses.Shipping} {
		if address == "" {
			address = "127.0.0.1:0"
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if host, _, bad := net.SplitHostPort(address); err != nil && bad == nil && o.AnyPort {
			l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
		}
		if err != nil {
			for _, l := range all {
				_ = l.Close()
			}
			return nil, fmt.Errorf("listening at %s: %w", address, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func (s *Services) serve(listeners []net.Listener, handlers []http.Handler, log *slog.Logger) {
	// Requests end with this context: one that hangs on purpose must not hold a stop up.
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.serving.Go(func() {
		if err := s.orders.Run(ctx); err != nil {
			s.failed <- fmt.Errorf("keeping the read model of orders: %w", err)
		}
	})
	for i, l := range listeners {
		server := &http.Server{
			Handler:           handlers[i],
			BaseContext:       func(net.Listener) context.Context { return ctx },
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    64 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		}
		s.servers = append(s.servers, server)
		s.serving.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				s.failed <- fmt.Errorf("serving at %s: %w", l.Addr(), err)
			}
		})
	}
}

// URLs are where the services are.
func (s *Services) URLs() ordertocash.URLs { return s.urls }

// Pool is the services' database, for reading the ledger. It is closed by Stop.
func (s *Services) Pool() *pgxpool.Pool { return s.pool }

// Failed tells why a service has stopped serving although nobody called Stop.
func (s *Services) Failed() <-chan error { return s.failed }

// SetFaults replaces the faults of the service: orders, inventory, payments or shipping.
func (s *Services) SetFaults(service string, f Faults) error {
	named, ok := s.names[service]
	if !ok {
		return fmt.Errorf("there is no service %q; there are orders, inventory, payments and shipping", service)
	}
	return named.SetFaults(f)
}

// Outage makes shipping unavailable for a while.
func (s *Services) Outage(o Outage) error { return s.ship.Outage(o) }

// Stop stops the services. Requests may end until ctx is done; then they are cut off.
func (s *Services) Stop(ctx context.Context) error {
	s.cancel()
	var errs []error
	for _, server := range s.servers {
		if err := server.Shutdown(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stopping the services: %w", err), server.Close())
		}
	}
	s.serving.Wait()
	s.pool.Close()
	return errors.Join(errs...)
}
