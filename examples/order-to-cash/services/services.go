// Package services runs the services of the example: all in one process for tests and for looking around, or one in a process of its own.
package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/inventory"
	"github.com/vextrus/saga-operator/examples/order-to-cash/invoicing"
	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
	"github.com/vextrus/saga-operator/examples/order-to-cash/payments"
	"github.com/vextrus/saga-operator/examples/order-to-cash/shipping"
)

// Services are the services of this process while they run.
type Services struct {
	options Options
	urls    ordertocash.URLs
	running map[string]*service
	orders  *orders.Service
	ship    *shipping.Service
	cancel  context.CancelFunc
	serving sync.WaitGroup
	failed  chan error
}

// service is one of them.
type service struct {
	pool     *pgxpool.Pool
	effects  *effect.Service
	handler  http.Handler
	work     func(context.Context) error // what it does beside answering
	listener net.Listener
	server   *http.Server
}

// Start creates what is missing in the database and starts the services; they are ready when it returns. ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Services, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("starting the services: %w", err)
	}
	s := &Services{options: o, running: map[string]*service{}, failed: make(chan error, 2*len(Names))}
	for _, prepare := range []func(context.Context) error{s.create, s.listen, s.publish} {
		if err := prepare(ctx); err != nil {
			s.drop()
			return nil, fmt.Errorf("starting the services: %w", err)
		}
	}
	s.serve()
	return s, nil
}

// create makes the services that were asked for, and their tables.
func (s *Services) create(ctx context.Context) error {
	for _, name := range s.options.Only {
		pool, err := effect.Connect(ctx, s.options.DatabaseURL, name, s.options.MaxConns, s.options.Timeout)
		if err != nil {
			return err
		}
		here := &service{pool: pool}
		s.running[name] = here
		if err := s.make(ctx, name, here); err != nil {
			return err
		}
		here.effects.SetTimeout(s.options.Timeout)
	}
	return nil
}

func (s *Services) make(ctx context.Context, name string, here *service) error {
	o := s.options
	switch name {
	case Orders:
		made, err := orders.New(ctx, here.pool, o.Logger)
		if err != nil {
			return err
		}
		s.orders, here.effects, here.handler, here.work = made, made.Service, made, made.Run
	case Inventory:
		made, err := inventory.New(ctx, here.pool, o.Stock, o.Logger)
		if err != nil {
			return err
		}
		here.effects, here.handler, here.work = made.Service, made, made.Run
	case Payments:
		prefix, client, err := o.Operator.callbacks()
		if err != nil {
			return err
		}
		made, err := payments.New(ctx, here.pool, payments.Options{Limit: o.PaymentsLimit, CallbackPrefix: prefix, Client: client}, o.Logger)
		if err != nil {
			return err
		}
		here.effects, here.handler, here.work = made.Service, made, made.Run
	case Shipping:
		made, err := shipping.New(ctx, here.pool, o.Logger)
		if err != nil {
			return err
		}
		s.ship, here.effects, here.handler, here.work = made, made.Service, made, made.Run
	case Invoicing:
		made, err := invoicing.New(ctx, here.pool, o.Logger)
		if err != nil {
			return err
		}
		here.effects, here.handler, here.work = made.Service, made, made.Run
	}
	return nil
}

// listen opens the ports, and finds out where all services are.
func (s *Services) listen(ctx context.Context) error {
	o := s.options
	s.urls = o.At
	for _, name := range Names {
		address, url := o.Addresses.of(name), urlOf(&s.urls, name)
		here := s.running[name]
		if here != nil {
			l, err := listenAt(ctx, *address, o.AnyPort)
			if err != nil {
				return err
			}
			here.listener = l
			*address = l.Addr().String()
		}
		if *url == "" && *address != "" {
			*url = "http://" + *address
		}
	}
	return nil
}

func listenAt(ctx context.Context, address string, anyPort bool) (net.Listener, error) {
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if host, _, bad := net.SplitHostPort(address); err != nil && bad == nil && anyPort {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	}
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w", address, err)
	}
	return l, nil
}

func (s *Services) serve() {
	// Requests end with this context: one that hangs on purpose must not hold a stop up.
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	for name, here := range s.running {
		s.serving.Go(func() {
			if err := here.work(ctx); err != nil {
				s.failed <- fmt.Errorf("what %s does beside answering: %w", name, err)
			}
		})
		here.server = &http.Server{
			Handler:           here.handler,
			BaseContext:       func(net.Listener) context.Context { return ctx },
			ReadHeaderTimeout: s.options.Timeout / 2,
			ReadTimeout:       s.options.Timeout,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    64 << 10,
			ErrorLog:          slog.NewLogLogger(s.options.Logger.Handler(), slog.LevelWarn),
		}
		s.serving.Go(func() {
			if err := here.server.Serve(here.listener); !errors.Is(err, http.ErrServerClosed) {
				s.failed <- fmt.Errorf("serving %s at %s: %w", name, here.listener.Addr(), err)
			}
		})
	}
}

// drop gives back what a start that failed had taken.
func (s *Services) drop() {
	for _, here := range s.running {
		if here.listener != nil {
			_ = here.listener.Close()
		}
		here.pool.Close()
	}
}

// URLs are where the services are: those of this process, and those that it was told of.
func (s *Services) URLs() ordertocash.URLs { return s.urls }

// Pool is one on the services' database, for reading the ledger. It is closed by Stop.
func (s *Services) Pool() *pgxpool.Pool { return s.running[s.options.Only[0]].pool }

// Failed tells why a service has stopped serving although nobody called Stop.
func (s *Services) Failed() <-chan error { return s.failed }

// SetFaults replaces the faults of a service that runs here.
func (s *Services) SetFaults(name string, f Faults) error {
	here := s.running[name]
	if here == nil {
		return fmt.Errorf("there is no service %q here", name)
	}
	return here.effects.SetFaults(f)
}

// Outage makes shipping unavailable for a while.
func (s *Services) Outage(o Outage) error { return s.ship.Outage(o) }

// Stop stops the services. Requests may end until ctx is done; then they are cut off.
func (s *Services) Stop(ctx context.Context) error {
	s.cancel()
	var errs []error
	for _, here := range s.running {
		if err := here.server.Shutdown(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stopping the services: %w", err), here.server.Close())
		}
	}
	s.serving.Wait()
	for _, here := range s.running {
		here.pool.Close()
	}
	return errors.Join(errs...)
}
