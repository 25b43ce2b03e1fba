package services_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

// TestHoweverAnOrderIsDeliveredItsNetEffectIsZeroOrOne delivers actions, compensations and duplicates of one order to all services, in
// any order, in part at the same time.
func TestHoweverAnOrderIsDeliveredItsNetEffectIsZeroOrOne(t *testing.T) {
	t.Parallel()
	r := start(t)
	var orders atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		order := fmt.Sprint("o", orders.Add(1))
		var steps []step // those that need no other before them
		for _, name := range []string{"accept", "reserve", "authorize", "print", "invoice"} {
			steps = append(steps, r.step(order, name))
		}
		r.do(order, "place")
		n := len(steps)
		acted, undone := make([]bool, n), make([]bool, n)
		var wg sync.WaitGroup
		for i, drawn := range rapid.SliceOfN(rapid.IntRange(0, 2*n), 1, 14).Draw(rt, "deliveries: a step, a compensation, or waiting for those before") {
			if drawn == 2*n {
				wg.Wait()
				continue
			}
			s := drawn % n
			deliver := r.act
			if drawn >= n {
				// A person may undo by hand what the saga undoes, too: the keys differ.
				deliver, undone[s] = func(order string, s step) reply {
					return r.send(s.undoMethod, s.undoURL, fmt.Sprintf("%s/%s/compensation-%d", order, s.name, i%3), "")
				}, true
			} else {
				acted[s] = true
			}
			wg.Go(func() {
				if got := deliver(order, steps[s]); got.Status != http.StatusCreated && got.Status != http.StatusOK && got.Status != http.StatusConflict {
					t.Errorf("%s was answered with %v", steps[s].name, got)
				}
			})
		}
		wg.Wait()
		for s, left := range r.footprint(order) {
			want := 0
			if acted[s] && !undone[s] {
				want = 1
			}
			if left != want {
				rt.Fatalf("%s: %d are left, not %d", steps[s].name, left, want)
			}
		}
	})
	for _, d := range r.ledger().Differences {
		if d.Kind != "orders" { // these are in the middle
			t.Error(d)
		}
	}
}

// footprint counts what an order has left behind.
func (r rig) footprint(order string) []int {
	r.t.Helper()
	left := make([]int, 5)
	err := r.Pool().QueryRow(r.t.Context(), `SELECT
		(SELECT count(*) FROM orders.orders WHERE id = $1 AND status = 'accepted'),
		(SELECT count(*) FROM inventory.reservations WHERE order_id = $1 AND state = 'reserved'),
		(SELECT count(*) FROM payments.authorizations WHERE order_id = $1 AND voided_at IS NULL),
		(SELECT count(*) FROM shipping.labels WHERE order_id = $1 AND voided_at IS NULL),
		(SELECT count(*) FILTER (WHERE kind = 'invoice') - count(*) FILTER (WHERE kind <> 'invoice') FROM invoicing.documents WHERE order_id = $1)`, order).
		Scan(&left[0], &left[1], &left[2], &left[3], &left[4])
	if err != nil {
		r.t.Fatal(err)
	}
	return left
}
