package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/customers"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/world"
	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
)

// place places the orders and tells how each goes on until all have ended.
func (d *demo) place(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	heading("Customers place %d orders at %s/orders: each starts its saga by itself", len(d.orders), d.URLs.Orders)
	watcher, err := d.Client.Watch(ctx, &v1.SagaList{}, client.InNamespace(world.Namespace))
	if err != nil {
		return fmt.Errorf("watching the sagas: %w", err)
	}
	defer watcher.Stop()
	began := time.Now()
	placing := make(chan error, 1)
	go func() { placing <- d.placeAll(ctx) }()
	err = d.follow(ctx, watcher, began)
	cancel()
	return errors.Join(err, <-placing)
}

// placeAll places one order after another, each again where that cannot be done just now.
func (d *demo) placeAll(ctx context.Context) error {
	const pause = time.Second
	for i := range d.orders {
		o := &d.orders[i]
		for {
			err := o.Delay(ctx, http.DefaultClient, d.URLs.Shipping)
			if err == nil {
				err = o.Place(ctx, http.DefaultClient, d.URLs.Orders)
			}
			if err == nil {
				break
			}
			if !errors.Is(err, customers.ErrNotNow) {
				return err
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return err
			}
		}
	}
	return nil
}

// follow prints a line for each saga that ends, until all have.
func (d *demo) follow(ctx context.Context, watcher watch.Interface, began time.Time) error {
	kinds := map[string]customers.Kind{}
	for _, o := range d.orders {
		kinds[o.Order] = o.Kind
	}
	ended := map[string]v1.SagaPhase{}
	for len(ended) < len(kinds) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the orders to end: %w; %d of %d have; the services' log ends with\n%s\nand the operator's with\n%s",
				ctx.Err(), len(ended), len(kinds), d.Process(world.Services).Tail(), d.Process(world.Operator).Tail())
		case e, ok := <-watcher.ResultChan():
			if !ok {
				return errors.New("the API server ended the watch")
			}
			saga, isSaga := e.Object.(*v1.Saga)
			if !isSaga {
				continue
			}
			order, phase := saga.Labels[ordertocash.OrderLabel], saga.Status.Phase
			kind, mine := kinds[order]
			over := phase == v1.PhaseCompleted || phase == v1.PhaseCompensated || phase == v1.PhaseCompensationFailed
			if !mine || !over || ended[order] != "" {
				continue
			}
			ended[order] = phase
			fmt.Printf("  %5.1fs  %-12s %s\n", time.Since(began).Seconds(), saga.Name, progress(saga, kind))
			if phase == v1.PhaseCompensationFailed {
				return fmt.Errorf("%s is parked: %s", saga.Name, saga.Status.Reason)
			}
		}
	}
	return nil
}

func progress(s *v1.Saga, kind customers.Kind) string {
	return strings.TrimRight(fmt.Sprintf("%-12s %-6s %-14s %-56s # it %s", s.Status.Phase, s.Status.Progress, s.Status.Step, s.Status.Reason, kind), " ")
}

// printLedger prints what the services' own tables say, and returns what is not as it should be.
func (d *demo) printLedger(ctx context.Context) ([]string, error) {
	l, err := ledger.Read(ctx, d.Shop)
	if err != nil {
		return nil, err
	}
	if err := l.Write(os.Stdout); err != nil {
		return nil, err
	}
	calls, err := ledger.Calls(ctx, d.Shop)
	if err != nil {
		return nil, err
	}
	problems := append(l.Problems(), ledger.CheckCalls(calls)...)
	is := map[string]string{}
	for _, o := range l.Orders {
		is[o.Order] = o.Status
	}
	for _, o := range d.orders {
		if !slices.Contains(o.Ends(), is[o.Order]) {
			problems = append(problems, fmt.Sprintf("order %s, which %s, is %s", o.Order, o.Kind, is[o.Order]))
		}
	}
	return problems, nil
}
