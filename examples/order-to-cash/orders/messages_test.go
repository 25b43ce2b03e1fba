package orders_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func TestWhatHappensToAnOrderIsToldInOrder(t *testing.T) {
	t.Parallel()
	r := start(t)
	to := &memory.Publisher{}
	if err := r.service.PublishTo(t.Context(), outbox.Sink{ID: "events", Name: "events", Publisher: to}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.service.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer stop()

	r.post("k-1", "/orders", order("1"))
	r.post("k-1", "/orders", order("1")) // a repetition tells nothing
	r.post("k-2", "/orders", `{"order":"2"}`)
	r.post("s/3", "/orders/1/accept", "")
	r.post("s/4", "/orders/1/cancel", "")
	waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := to.Await(waiting, 3); err != nil {
		t.Fatalf("%v: %v", to.Taken(), err)
	}
	var got []string
	for _, m := range to.Taken() {
		got = append(got, fmt.Sprint(strings.TrimPrefix(m.Type, orders.MessageTypePrefix), " ", m.Key, " ", m.Sequence))
	}
	if all := strings.Join(got, ", "); all != "OrderPlaced 1 1, OrderAccepted 1 2, OrderCancelled 1 3" {
		t.Errorf("told was %s", all)
	}
}
