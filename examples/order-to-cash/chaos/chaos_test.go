// Package chaos kills the operator and the services of the shop while customers place orders, and looks at what is left: real processes, a real API server, PostgreSQL. CHAOS=long has 500 orders in two
// minutes; CHAOS_SEED repeats the choices of another run.
package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/examples/order-to-cash/customers"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/world"
	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

// plan is how much of everything there is.
type plan struct {
	orders int
	// placing is how long customers place orders, and how long processes are killed.
	placing time.Duration
	// every is the longest pause between the end of a restart and the next kill, away the longest time that a process stays away.
	every, away time.Duration
	// settling bounds how long the sagas may take after that.
	settling time.Duration
}

func planned() plan {
	if os.Getenv("CHAOS") == "long" {
		return plan{orders: 500, placing: 2 * time.Minute, every: 2 * time.Second, away: 2 * time.Second, settling: 10 * time.Minute}
	}
	return plan{orders: 40, placing: 8 * time.Second, every: time.Second, away: 500 * time.Millisecond, settling: 10 * time.Minute}
}

func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("CHAOS_SEED")
	if text == "" {
		return rand.Uint64()
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("CHAOS_SEED: %v", err)
	}
	return n
}

func TestEveryOrderIsFulfilledOrFullyUndoneWhoeverIsKilled(t *testing.T) {
	p, seed := planned(), seed(t)
	t.Logf("CHAOS_SEED=%d, %d orders in %s", seed, p.orders, p.placing)
	orders, err := customers.Make(seed, "x", p.orders)
	if err != nil {
		t.Fatal(err)
	}
	w := start(t)
	placing, cancel := context.WithTimeout(t.Context(), p.placing+p.settling)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { place(placing, t, w, orders, p.placing) })
	killed := kill(t, w, p, rand.New(rand.NewPCG(seed, 1)))
	wg.Wait()
	t.Logf("killed were %v", killed)

	settle(t, w, orders, p.settling)
	judge(t, w, orders)
}

func start(t *testing.T) *world.World {
	t.Helper()
	t.Setenv("DATABASE_URL", "") // it brings a server of its own
	w, err := world.Start(t.Context(), world.Options{Root: "../../..", Separate: true})
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range w.Names() {
				if p := w.Process(name); p != nil {
					t.Logf("the log of %s ends with\n%s", name, p.Tail())
				}
			}
		}
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// place places orders, evenly over some time, each until it is taken.
func place(ctx context.Context, t *testing.T, w *world.World, orders []customers.Order, over time.Duration) {
	pace := time.NewTicker(over / time.Duration(len(orders)))
	defer pace.Stop()
	client := &http.Client{Timeout: 10 * time.Second}
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range orders {
		select {
		case <-ctx.Done():
			t.Errorf("only %d orders were placed: %v", i, ctx.Err())
			return
		case <-pace.C:
		}
		wg.Go(func() {
			try := time.NewTicker(100 * time.Millisecond)
			defer try.Stop()
			for {
				err := orders[i].Delay(ctx, client, w.URLs.Shipping)
				if err == nil {
					err = orders[i].Place(ctx, client, w.URLs.Orders)
				}
				if err == nil {
					return
				}
				select {
				case <-ctx.Done():
					t.Errorf("%v: %v", ctx.Err(), err)
					return
				case <-try.C:
				}
			}
		})
	}
}

// kill kills one process after the other, at random, and starts each again, for as long as orders are placed and until everybody has had their turn. It returns how often it killed which.
func kill(t *testing.T, w *world.World, p plan, chance *rand.Rand) map[string]int {
	t.Helper()
	killed := map[string]int{}
	var turn []string // in an order that changes
	for began := time.Now(); time.Since(began) < p.placing || len(turn) > 0; {
		<-time.After(time.Duration(chance.Int64N(int64(p.every))))
		if len(turn) == 0 {
			turn = w.Names()
			chance.Shuffle(len(turn), func(i, j int) { turn[i], turn[j] = turn[j], turn[i] })
		}
		name := turn[0]
		turn = turn[1:]
		w.Process(name).Kill()
		killed[name]++
		<-time.After(time.Duration(chance.Int64N(int64(p.away))))
		if err := w.Run(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	return killed
}

// settle waits until each order has a saga that has ended.
func settle(t *testing.T, w *world.World, orders []customers.Order, within time.Duration) {
	t.Helper()
	began, told := time.Now(), time.Now()
	deadline, tick := time.After(within), time.NewTicker(250*time.Millisecond)
	defer tick.Stop()
	for {
		err := ended(t.Context(), w, orders)
		if err == nil {
			t.Logf("all had ended after another %s", time.Since(began).Round(time.Second))
			return
		}
		if time.Since(told) > 15*time.Second {
			told = time.Now()
			t.Logf("after another %s: %v", time.Since(began).Round(time.Second), err)
		}
		select {
		case <-deadline:
			t.Fatalf("not within %s: %v", within, err)
		case <-tick.C:
		}
	}
}

// ended fails with what is not over yet. A saga that is parked is over, and judged later.
func ended(ctx context.Context, w *world.World, orders []customers.Order) error {
	list := &v1.SagaList{}
	if err := w.Client.List(ctx, list, client.InNamespace(world.Namespace)); err != nil {
		return err
	}
	phases := map[string]int{}
	var last string
	for _, s := range list.Items {
		phases[string(s.Status.Phase)]++
		switch s.Status.Phase {
		case v1.PhaseCompleted, v1.PhaseCompensated, v1.PhaseCompensationFailed:
		default:
			last = fmt.Sprintf("%s at %s: %s", s.Name, s.Status.Step, s.Status.Reason)
		}
	}
	if len(list.Items) < len(orders) || last != "" {
		return fmt.Errorf("of %d orders %d have sagas: %v; one is %s", len(orders), len(list.Items), phases, last)
	}
	return nil
}

// judge looks at what is left.
func judge(t *testing.T, w *world.World, orders []customers.Order) {
	t.Helper()
	list := &v1.SagaList{}
	if err := w.Client.List(t.Context(), list, client.InNamespace(world.Namespace)); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != len(orders) {
		t.Errorf("there are %d sagas for %d orders", len(list.Items), len(orders))
	}
	phase := map[string]v1.SagaPhase{}
	for _, s := range list.Items {
		phase[s.Labels[ordertocash.OrderLabel]] = s.Status.Phase
		if s.Status.Phase == v1.PhaseCompensationFailed {
			t.Errorf("%s is parked at %s: %s", s.Name, s.Status.Step, s.Status.Reason)
		}
	}
	l, err := ledger.Read(t.Context(), w.Shop)
	if err != nil {
		t.Fatal(err)
	}
	calls, err := ledger.Calls(t.Context(), w.Shop)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range append(l.Problems(), ledger.CheckCalls(calls)...) {
		t.Error(problem)
	}
	is, count := map[string]string{}, map[string]int{}
	for _, o := range l.Orders {
		is[o.Order] = o.Status
		count[o.Status]++
	}
	for _, o := range orders {
		ends := o.Ends()
		if o.Kind == customers.Expires { // shipping forgets that it was to turn the order away when it is killed
			ends = []string{"fulfilled", "cancelled"}
		}
		if !slices.Contains(ends, is[o.Order]) || (is[o.Order] == "fulfilled") != (phase[o.Order] == v1.PhaseCompleted) {
			t.Errorf("order %s, which %s, is %s, and its saga %s", o.Order, o.Kind, is[o.Order], phase[o.Order])
		}
	}
	t.Logf("orders: %v", count)
	if count["fulfilled"] == 0 || count["cancelled"] == 0 {
		t.Errorf("too little has happened: %v", count)
	}
}
