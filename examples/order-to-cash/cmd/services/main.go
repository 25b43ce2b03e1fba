// Command services runs the four services of the order-to-cash example.
package main

import (
	"cmp"
	"context"
	"flag"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, options(log), log); err != nil {
		log.Error("the services ended", "error", err)
		os.Exit(1)
	}
}

// options are read from flags, and from the environment for flags that are not given.
func options(log *slog.Logger) services.Options {
	o := services.Options{Logger: log}
	at := services.DefaultAddresses()
	text := func(into *string, name, variable, fallback, usage string) {
		flag.StringVar(into, name, cmp.Or(os.Getenv(variable), fallback), usage+" ($"+variable+")")
	}
	text(&o.DatabaseURL, "database-url", "DATABASE_URL", "", "the database, in which each service has a schema of its own")
	text(&o.Addresses.Orders, "orders-address", "ORDERS_ADDRESS", at.Orders, "where orders listens")
	text(&o.Addresses.Inventory, "inventory-address", "INVENTORY_ADDRESS", at.Inventory, "where inventory listens")
	text(&o.Addresses.Payments, "payments-address", "PAYMENTS_ADDRESS", at.Payments, "where payments listens")
	text(&o.Addresses.Shipping, "shipping-address", "SHIPPING_ADDRESS", at.Shipping, "where shipping listens")
	text(&o.PaymentsLimit, "payments-limit", "PAYMENTS_LIMIT", services.DefaultPaymentsLimit, "a card is declined above this amount")
	text(&o.OrderEvents, "order-events", "ORDER_EVENTS", "", "a URL to which what happens to orders is posted, as CloudEvents")
	flag.Parse()
	return o
}

func run(ctx context.Context, o services.Options, log *slog.Logger) error {
	s, err := services.Start(ctx, o)
	if err != nil {
		return err
	}
	at := s.URLs()
	log.Info("the services are ready", "orders", at.Orders, "inventory", at.Inventory, "payments", at.Payments, "shipping", at.Shipping)
	var failed error
	select {
	case <-ctx.Done():
	case failed = <-s.Failed():
	}
	ending, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Stop(ending); err != nil {
		return err
	}
	return failed
}
