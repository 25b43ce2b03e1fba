// Command demo shows the operator at work: a real kube-apiserver, etcd and PostgreSQL, the four services of the example, and three orders as sagas. One
// completes, one is declined and rolled back, one has to wait for shipping and completes. It exits 0 only if they ended so and the services' own ledger
// balances, and leaves nothing behind. With --stay everything stays up until Ctrl-C.
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

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// namespace is where the orders are.
const namespace = "shop"

// patience bounds how long the orders may take.
const patience = 2 * time.Minute

// orders are the sagas of the demo and how each has to end.
var orders = []struct {
	manifest, name, about string
	ends                  v1.SagaPhase
}{
	{"completes.yaml", "order-1042", "goes through", v1.PhaseCompleted},
	{"declined.yaml", "order-1043", "is too dear for its card, and is rolled back", v1.PhaseCompensated},
	{"shipping-down.yaml", "order-1044", "has to wait for shipping, and goes through", v1.PhaseCompleted},
}

func main() {
	stay := flag.Bool("stay", false, "keep everything running until Ctrl-C, for sagas of your own")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *stay)
	switch {
	case ctx.Err() != nil && *stay:
		fmt.Println("stopped; nothing is left behind")
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "demo: interrupted; nothing is left behind")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stay bool) (err error) {
	began := time.Now()
	w := &world{}
	defer func() { err = errors.Join(err, w.stop()) }()
	if err := w.start(ctx); err != nil {
		return err
	}
	if stay {
		return w.stay(ctx)
	}
	if err := w.placeOrders(ctx); err != nil {
		return err
	}
	if err := w.show(ctx); err != nil {
		return err
	}
	heading("All three orders ended as they should, and the ledger balances (%.0f s in all).", time.Since(began).Seconds())
	fmt.Println("Next: make dev keeps all of this running, for sagas of your own.")
	return nil
}

// show prints what there is to see afterwards, and fails when something is not as it should be.
func (w *world) show(ctx context.Context) error {
	heading("What kubectl get sagas shows")
	if err := w.printTable(ctx); err != nil {
		return err
	}
	heading("What PostgreSQL has recorded of order-1043, the one that was rolled back")
	if err := w.printHistory(ctx, "order-1043"); err != nil {
		return err
	}
	heading("What the services' own tables say: nothing is left of the order that was rolled back")
	problems, err := w.printLedger(ctx)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return fmt.Errorf("the ledger does not balance:\n  %s", strings.Join(problems, "\n  "))
	}
	return nil
}

// stay waits for Ctrl-C.
func (w *world) stay(ctx context.Context) error {
	heading("Everything runs. In another terminal:")
	fmt.Printf(`
  export KUBECONFIG=%s
  kubectl config set-context --current --namespace=%s
  kubectl apply -f examples/order-to-cash/sagas/
  kubectl get sagas -w
  kubectl explain saga.spec.steps

Services: orders %s, inventory %s, payments %s, shipping %s
Events:   psql '%s' -c 'SELECT stream, version, type FROM event_store ORDER BY position'
Log:      %s

Ctrl-C stops everything.
`, w.cluster.Kubeconfig(), namespace, w.urls.Orders, w.urls.Inventory, w.urls.Payments, w.urls.Shipping, w.database, w.operator.LogFile())
	select {
	case <-ctx.Done():
		return nil
	case <-w.operator.Exited():
		return fmt.Errorf("the operator ended by itself:\n%s", w.operator.Tail())
	case <-w.services.Exited():
		return fmt.Errorf("the services ended by themselves:\n%s", w.services.Tail())
	}
}

func heading(format string, args ...any) {
	fmt.Printf("\n▸ "+format+"\n", args...)
}
