// Command demo shows the operator at work: a real kube-apiserver, etcd and PostgreSQL, the operator, and the services of a shop, whose customers place orders. Each order starts a saga by itself. Some go
// through, some fail, at each step of the way. It exits 0 only if every order ended as it should and the balance over the services' own tables is zero, and leaves nothing behind. With --stay everything stays
// up until Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/vextrus/saga-operator/examples/order-to-cash/customers"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/world"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
)

const (
	// patience bounds how long the orders may take.
	patience = 10 * time.Minute
	// seed makes the same orders each time.
	seed = 1042
)

func main() {
	stay := flag.Bool("stay", false, "keep everything running until Ctrl-C, for orders and sagas of your own")
	n := flag.Int("orders", 30, "how many orders are placed")
	chance := flag.Uint64("seed", seed, "which ones")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *stay, *n, *chance)
	code, says := outcome(err, ctx.Err() != nil, *stay)
	if code == 0 {
		fmt.Print(says)
	} else {
		fmt.Fprint(os.Stderr, says)
	}
	os.Exit(code)
}

// errLeft says that something did not end as it should, and may still be there.
var errLeft = errors.New("stopping everything")

// outcome is the exit code, and what is said at the end.
func outcome(err error, interrupted, stay bool) (code int, says string) {
	const failed, byInterrupt = 1, 130
	switch {
	case errors.Is(err, errLeft), err != nil && !interrupted:
		return failed, fmt.Sprintf("demo: %v\n", err)
	case interrupted && stay:
		return 0, "stopped; nothing is left behind\n"
	case interrupted:
		return byInterrupt, "demo: interrupted; nothing is left behind\n"
	}
	return 0, ""
}

func run(ctx context.Context, stay bool, n int, seed uint64) (err error) {
	began := time.Now()
	orders, err := customers.Make(seed, "", n)
	if err != nil {
		return err
	}
	w, err := world.Start(ctx, world.Options{
		Root: ".", Durable: true, Elect: true, DefaultPorts: true,
		Stage: func(about string) func(error) {
			began := time.Now()
			fmt.Printf("▸ %s … ", about)
			return func(err error) {
				if err != nil {
					fmt.Println("failed")
					return
				}
				fmt.Printf("%.1f s\n", time.Since(began).Seconds())
			}
		},
		Progress: func(line string) { fmt.Printf("%s … ", line) },
	})
	defer func() {
		if stop := w.Stop(); stop != nil {
			err = errors.Join(err, fmt.Errorf("%w: %w", errLeft, stop))
		}
	}()
	if err != nil {
		return err
	}
	d := &demo{World: w, orders: orders}
	if stay {
		return d.stay(ctx)
	}
	if err := d.place(ctx); err != nil {
		return err
	}
	if err := d.show(ctx); err != nil {
		return err
	}
	heading("All %d orders ended as they should, and the balance is zero (%.0f s in all).", n, time.Since(began).Seconds())
	fmt.Println("Next: make dev keeps all of this running, for orders and sagas of your own.")
	return nil
}

// demo is what is shown.
type demo struct {
	*world.World
	orders []customers.Order
}

// show prints what there is to see afterwards, and fails when something is not as it should be.
func (d *demo) show(ctx context.Context) error {
	heading("What kubectl get sagas shows")
	if err := d.printTable(ctx); err != nil {
		return err
	}
	for _, o := range d.orders {
		if o.Kind == customers.TooLarge {
			heading("What PostgreSQL has recorded of order %s, which %s: everything before that was done, and is undone", o.Order, o.Kind)
			if err := d.printHistory(ctx, o.Order); err != nil {
				return err
			}
			break
		}
	}
	heading("What the services' own tables say: nothing is left of orders that were rolled back")
	problems, err := d.printLedger(ctx)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return fmt.Errorf("it does not add up:\n  %s", strings.Join(problems, "\n  "))
	}
	return nil
}

// stay waits for Ctrl-C.
func (d *demo) stay(ctx context.Context) error {
	heading("Everything runs. In another terminal:")
	fmt.Printf(`
  export KUBECONFIG=%s
  kubectl config set-context --current --namespace=%s
  curl -H 'Idempotency-Key: 1' -d '{"customer": "c-7", "card": "card-1", "country": "DE", "lines": [{"sku": "B-1", "quantity": 2}], "total": {"amount": "25.90", "currency": "EUR"}}' %s/orders
  kubectl get sagas -w
  kubectl apply -f examples/order-to-cash/sagas/completes.yaml
  kubectl explain saga.spec.steps

Services: orders %s, inventory %s, payments %s, shipping %s, invoicing %s
API:      %s (the token of the orders service: %s)
Balance:  psql '%s' -f examples/order-to-cash/balance.sql
Events:   psql '%s' -c 'SELECT stream, version, type FROM event_store ORDER BY position'
Log:      %s

Ctrl-C stops everything.
`, d.Cluster.Kubeconfig(), world.Namespace, d.URLs.Orders, d.URLs.Orders, d.URLs.Inventory, d.URLs.Payments, d.URLs.Shipping, d.URLs.Invoicing,
		d.API, d.TokenFile(), d.Shop.Config().ConnString(), d.Database, d.LogFile(world.Operator))
	op, shop := d.Process(world.Operator), d.Process(world.Services)
	select {
	case <-ctx.Done():
		return nil
	case <-op.Exited():
		return fmt.Errorf("the operator ended by itself:\n%s", op.Tail())
	case <-shop.Exited():
		return fmt.Errorf("the services %s ended by themselves:\n%s", strings.Join(services.Names, ", "), shop.Tail())
	}
}

func heading(format string, args ...any) {
	fmt.Printf("\n▸ "+format+"\n", args...)
}
