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
// any order, in part at the same time, with answers lost.
func TestHoweverAnOrderIsDeliveredItsNetEffectIsZeroOrOne(t *testing.T) {
	t.Parallel()
	r := start(t)
	var orders atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		order := fmt.Sprint("o", orders.Add(1))
		steps := r.steps(order, twoBooks, "129.90")[:4]
		var acted, undone [4]bool
		var wg sync.WaitGroup
		for i, n := range rapid.SliceOfN(rapid.IntRange(0, 9), 1, 12).Draw(rt, "deliveries: step, plus 4 for its compensation, 8 and more waits for those before") {
			if n >= 8 {
				wg.Wait()
				continue
			}
			s, deliver := n%4, r.act
			if n >= 4 {
				// A person may undo by hand what the saga undoes, too: the keys differ.
				deliver, undone[s] = func(order string, s step) reply {
					return r.send(s.undoMethod, s.undoURL, fmt.Sprintf("%s/%s/compensation %d", order, s.name, i%3), s.undoBody)
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
		got := r.footprint(order)
		for s, name := range []string{"order", "reservation", "charge", "label"} {
			want := 0
			if acted[s] && !undone[s] {
				want = 1
			}
			if got[s] != want {
				rt.Fatalf("%s: %d are left, not %d", name, got[s], want)
			}
		}
	})
	l := r.ledger()
	for _, s := range l.Stock {
		if s.Problem != "" {
			t.Errorf("%+v", s)
		}
	}
}

// footprint counts what an order has left behind, refunds being less than nothing.
func (r rig) footprint(order string) (left [4]int) {
	r.t.Helper()
	err := r.Pool().QueryRow(r.t.Context(), `SELECT
		(SELECT count(*) FROM orders.orders WHERE id = $1 AND status <> 'cancelled'),
		(SELECT count(*) FROM inventory.reservations WHERE order_id = $1 AND released_at IS NULL),
		(SELECT count(*) FROM payments.charges WHERE order_id = $1)
			- (SELECT count(*) FROM payments.refunds JOIN payments.charges c ON c.id = charge WHERE order_id = $1),
		(SELECT count(*) FROM shipping.labels WHERE order_id = $1 AND voided_at IS NULL)`, order).
		Scan(&left[0], &left[1], &left[2], &left[3])
	if err != nil {
		r.t.Fatal(err)
	}
	return left
}
