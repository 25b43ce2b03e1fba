package orders_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

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
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	taken := to.Taken()
	for ; len(told(taken)) < 3; taken = to.Taken() {
		if err := to.Await(waiting, len(taken)+1); err != nil {
			t.Fatalf("%v: %v", taken, err)
		}
	}
	if all := strings.Join(told(taken), ", "); all != "OrderPlaced 1 1, OrderAccepted 1 2, OrderCancelled 1 3" {
		t.Errorf("told was %s", all)
	}
}

// told says what the messages tell, each once: one may come more than once.
func told(messages []outbox.Message) (all []string) {
	known := map[uuid.UUID]bool{}
	for _, m := range messages {
		if !known[m.ID] {
			all = append(all, fmt.Sprint(strings.TrimPrefix(m.Type, orders.MessageTypePrefix), " ", m.Key, " ", m.Sequence))
		}
		known[m.ID] = true
	}
	return all
}
