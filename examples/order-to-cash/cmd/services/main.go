// Command services runs the services of the order-to-cash example: all of them, or those that -service names.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := options(log)
	if err == nil {
		err = run(ctx, o, log)
	}
	if err != nil {
		log.Error("the services ended", "error", err)
		os.Exit(1)
	}
}

// options are read from flags, and from the environment for flags that are not given.
func options(log *slog.Logger) (services.Options, error) {
	o := services.Options{Logger: log}
	text := func(into *string, name, fallback, usage string) {
		variable := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		flag.StringVar(into, name, cmp.Or(os.Getenv(variable), fallback), usage+" ($"+variable+")")
	}
	var only, conns string
	var api services.Operator
	at := services.DefaultAddresses()
	text(&only, "service", "", "the services to run, with commas between them; all by default")
	text(&o.DatabaseURL, "database-url", "", "the database, in which each service has a schema of its own")
	text(&conns, "database-connections", "6", "the most connections of each service to it")
	for name, service := range map[string]struct{ address, url, usual *string }{
		services.Orders:    {&o.Addresses.Orders, &o.At.Orders, &at.Orders},
		services.Inventory: {&o.Addresses.Inventory, &o.At.Inventory, &at.Inventory},
		services.Payments:  {&o.Addresses.Payments, &o.At.Payments, &at.Payments},
		services.Shipping:  {&o.Addresses.Shipping, &o.At.Shipping, &at.Shipping},
		services.Invoicing: {&o.Addresses.Invoicing, &o.At.Invoicing, &at.Invoicing},
	} {
		text(service.address, name+"-address", *service.usual, "where "+name+" listens")
		text(service.url, name+"-url", "", "where sagas find "+name+"; http:// and its address by default")
	}
	text(&o.PaymentsLimit, "payments-limit", services.DefaultPaymentsLimit, "a card is declined above this amount")
	text(&o.OrderEvents, "order-events", "", "a URL to which what happens to orders is posted, as CloudEvents")
	text(&api.URL, "api-url", "", "the operator's API, https, where orders start their sagas; they start none by default")
	text(&api.CallbackURL, "callback-url", "", "where payments calls back, the operator's --callback-url; that of the API by default")
	text(&api.CAFile, "api-ca-file", "", "the certificates that the API's is checked against")
	text(&api.TokenFile, "api-token-file", "/var/run/secrets/saga-operator/token", "the token, for the audience saga-operator, of a ServiceAccount that may create and get sagas")
	text(&api.Namespace, "namespace", "shop", "where sagas are started")
	flag.Parse()
	if only != "" {
		o.Only = strings.Split(only, ",")
	}
	if api.URL != "" {
		o.Operator = &api
	}
	if _, err := fmt.Sscanf(conns, "%d", &o.MaxConns); err != nil || o.MaxConns < 2 {
		return o, fmt.Errorf("-database-connections: %q is no number of at least 2", conns)
	}
	return o, nil
}

func run(ctx context.Context, o services.Options, log *slog.Logger) error {
	s, err := services.Start(ctx, o)
	if err != nil {
		return err
	}
	at := s.URLs()
	log.Info("the services are ready", "here", o.Only, "orders", at.Orders, "inventory", at.Inventory, "payments", at.Payments, "shipping", at.Shipping, "invoicing", at.Invoicing)
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-s.Failed():
	}
	ending, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ending); err != nil {
		return err
	}
	return failed
}
