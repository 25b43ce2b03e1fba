package orders_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/projection"
)

// patience bounds every wait, and the work for each request: nobody waits that long where all is well.
const patience = 10 * time.Minute

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

type rig struct {
	*testing.T
	pool    *pgxpool.Pool
	service *orders.Service
}

func start(t *testing.T) *rig {
	t.Helper()
	pool, err := effect.Connect(context.Background(), throwaway.EmptyDatabase(t), "orders", 4, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s, err := orders.New(t.Context(), pool, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.SetTimeout(patience)
	return &rig{t, pool, s}
}

// post sends a request for an effect and returns its status and body.
func (r *rig) post(key, path, body string) (int, string) {
	r.Helper()
	return r.send(http.MethodPost, key, path, body)
}

func (r *rig) send(method, key, path, body string) (int, string) {
	r.Helper()
	req := httptest.NewRequestWithContext(r.Context(), method, path, strings.NewReader(body))
	req.Header.Set("Idempotency-Key", key)
	if saga, _, ok := strings.Cut(key, "/"); ok {
		req.Header.Set("Saga-Id", saga)
	}
	w := httptest.NewRecorder()
	r.service.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

func (r *rig) get(path string) string {
	r.Helper()
	w := httptest.NewRecorder()
	r.service.ServeHTTP(w, httptest.NewRequestWithContext(r.Context(), http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Body)
	if err != nil || w.Code != http.StatusOK {
		r.Fatalf("GET %s: %d %s %v", path, w.Code, body, err)
	}
	return string(body)
}

func (r *rig) value(sql string) (s string) {
	r.Helper()
	if err := r.pool.QueryRow(context.Background(), sql).Scan(&s); err != nil {
		r.Fatal(err)
	}
	return s
}

func order(id string) string {
	return fmt.Sprintf(`{"order":%q,"customer":"c-7","lines":[{"sku":"B-1","quantity":2}],"total":{"amount":"129.9","currency":"EUR"},"card":"card-1","country":"DE"}`, id)
}

func TestAnOrderGoesItsWayThroughTheAPI(t *testing.T) {
	t.Parallel()
	r := start(t)
	for _, c := range []struct {
		key, path, body string
		status          int
	}{
		{"customer", "/orders", order("1"), 201}, {"s-1/confirm-early", "/orders/1/confirm", "", 409}, {"s-1/accept", "/orders/1/accept", "", 200},
		{"s-2/accept", "/orders/1/accept", "", 409}, {"customer-withdraws", "/orders/1/withdraw", "", 409}, {"s-2/cancel", "/orders/1/cancel", "", 200},
		{"s-1/fulfil-early", "/orders/1/fulfil", `{"tracking":"TRK1"}`, 409}, {"s-1/confirm", "/orders/1/confirm", "", 200}, {"s-1/confirm-again", "/orders/1/confirm", "", 409},
		{"s-1/fulfil-nothing", "/orders/1/fulfil", `{"tracking":""}`, 422}, {"s-1/fulfil", "/orders/1/fulfil", `{"tracking":"TRK1"}`, 200}, {"s-1/cancel", "/orders/1/cancel", "", 409},
		{"s-3/confirm", "/orders/2/confirm", "", 404}, {"s-3/cancel", "/orders/4/cancel", "", 200}, {"late", "/orders", order("4"), 409},
		{"other-customer", "/orders", order("5"), 201}, {"other-withdraws", "/orders/5/withdraw", "", 200}, {"s-5/accept", "/orders/5/accept", "", 409},
	} {
		if status, body := r.post(c.key, c.path, c.body); status != c.status {
			t.Errorf("%s: %s %s: %d %s, want %d", c.key, c.path, c.body, status, body, c.status)
		}
	}
	if got := r.get("/orders/1"); !strings.Contains(got, `"status":"fulfilled"`) || !strings.Contains(got, `"tracking":"TRK1"`) || !strings.Contains(got, `"amount":"129.90"`) || !strings.Contains(got, `"saga":"s-1"`) {
		t.Errorf("it shows %s", got)
	}
	events := r.get("/orders/1/events")
	for _, want := range []string{`"OrderPlaced"`, `"OrderAccepted"`, `"OrderConfirmed"`, `"OrderFulfilled"`} {
		if strings.Count(events, want) != 1 {
			t.Errorf("its events are %s, want %s once", events, want)
		}
	}
	if strings.Contains(events, "OrderCancelled") {
		t.Errorf("another saga has cancelled it: %s", events)
	}
	if got := r.value(`SELECT metadata->>'causationId' FROM event_store WHERE stream = 'order-1' AND version = 1`); got != "customer" {
		t.Errorf("the order was caused by %s", got)
	}
}

// TestAnOrderThatHasSeenThreeEventsHasASnapshot tries several orders: a snapshot that takes long is not waited for, and saved another time.
func TestAnOrderThatHasSeenThreeEventsHasASnapshot(t *testing.T) {
	t.Parallel()
	r := start(t)
	for n, deadline := 1, time.Now().Add(patience); ; n++ {
		id := fmt.Sprint(n)
		for _, step := range [][2]string{{"/orders", order(id)}, {"/orders/" + id + "/accept", ""}, {"/orders/" + id + "/confirm", ""}} {
			if status, body := r.post("s-"+id+step[0], step[0], step[1]); status >= 300 {
				t.Fatalf("%s: %d %s", step[0], status, body)
			}
		}
		if r.value(`SELECT count(*)::text FROM snapshots WHERE stream = 'order-`+id+`' AND version = 3`) == "1" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("of %d orders none has a snapshot", n)
		}
	}
}

func TestASagaThatAsksAgainAfterDaysIsAnsweredAsBefore(t *testing.T) {
	t.Parallel()
	r := start(t)
	steps := []struct {
		method, key, path, body string
		status                  int
	}{
		{http.MethodPut, "s-1/place", "/orders/1", order("1"), 201}, {http.MethodPost, "s-1/confirm", "/orders/1/confirm", "", 200},
		{http.MethodPost, "s-1/fulfil", "/orders/1/fulfil", `{"tracking":"TRK1"}`, 200},
	}
	for _, c := range steps {
		_, first := r.send(c.method, c.key, c.path, c.body)
		if _, err := r.pool.Exec(t.Context(), `DELETE FROM idempotency_keys`); err != nil {
			t.Fatal(err)
		}
		if status, again := r.send(c.method, c.key, c.path, c.body); status != c.status || again != first {
			t.Errorf("%s: %d %s, want %d %s", c.key, status, again, c.status, first)
		}
	}
}

func TestACancellationThatIsRefusedIsNotKept(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.send(http.MethodPut, "s-1/place", "/orders/1", order("1"))
	r.post("s-1/confirm", "/orders/1/confirm", "")
	r.post("s-1/fulfil", "/orders/1/fulfil", `{"tracking":"TRK1"}`)
	if status, body := r.post("s-1/cancel", "/orders/1/cancel", ""); status != http.StatusConflict {
		t.Errorf("%d %s", status, body)
	}
	if got := r.value(`SELECT count(*)::text FROM idempotency_keys WHERE key = 's-1/cancel'`); got != "0" {
		t.Error("it is kept")
	}
}

func TestARequestThatCannotBecomeAnOrderIsNotStored(t *testing.T) {
	t.Parallel()
	r := start(t)
	for name, c := range map[string][2]string{
		"an amount of nothing": {`"129.9"`, `"0"`}, "an amount that is a number": {`"129.9"`, `129.9`}, "no card": {`"card-1"`, `""`}, "no country": {`"DE"`, `"de"`}, "no lines": {`[{"sku":"B-1","quantity":2}]`, `[]`},
		"an id that no saga can have": {`"9"`, `"A_9"`}, "a field that nobody knows": {`"card"`, `"cart"`},
	} {
		if status, body := r.post("k", "/orders", strings.Replace(order("9"), c[0], c[1], 1)); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if status, body := r.post("k", "/orders", order("9")); status != http.StatusCreated || !strings.Contains(body, `"saga":"order-9"`) {
		t.Errorf("the key was used up: %d %s", status, body)
	}
}

func TestACustomerWithoutANumberIsGivenOneThatStays(t *testing.T) {
	t.Parallel()
	r := start(t)
	_, first := r.post("k", "/orders", order(""))
	_, again := r.post("k", "/orders", order(""))
	_, other := r.post("k-2", "/orders", order(""))
	if first != again || first == other || !strings.Contains(first, `"saga":"order-`) {
		t.Errorf("answered were\n%s%s%s", first, again, other)
	}
}

func TestASagaThatPlacesItsOrderItselfAcceptsItWithThat(t *testing.T) {
	t.Parallel()
	r := start(t)
	for _, c := range []struct {
		key, path string
		status    int
	}{{"nobody", "/orders/1", 400}, {"s-1/place", "/orders/2", 400}, {"s-1/place", "/orders/1", 201}, {"s-1/place", "/orders/1", 201}, {"s-2/place", "/orders/1", 409}} {
		if status, body := r.send(http.MethodPut, c.key, c.path, order("1")); status != c.status {
			t.Errorf("%s: %d %s, want %d", c.key, status, body, c.status)
		}
	}
	if got := r.get("/orders/1"); !strings.Contains(got, `"status":"accepted"`) || !strings.Contains(got, `"saga":"s-1"`) {
		t.Errorf("it shows %s", got)
	}
}

func TestTheReadModelOfOrdersEqualsItsRebuild(t *testing.T) {
	t.Parallel()
	r := start(t)
	for i := range 30 {
		id := fmt.Sprintf("o%02d", i)
		steps := [][2]string{{"/orders", order(id)}, {"/orders/" + id + "/accept", ""}, {"/orders/" + id + "/confirm", ""}, {"/orders/" + id + "/fulfil", `{"tracking":"T"}`}}
		if i%3 == 0 {
			steps[3] = [2]string{"/orders/" + id + "/cancel", ""}
		}
		for n, s := range steps[:1+i%len(steps)] {
			if status, body := r.post(fmt.Sprint(id, "/", n), s[0], s[1]); status >= 300 {
				t.Fatalf("%s: %d %s", s[0], status, body)
			}
		}
	}
	const all = `SELECT string_agg(o::text, E'\n' ORDER BY id) || (SELECT string_agg(l::text, E'\n' ORDER BY order_id) FROM orders.lines l) FROM orders.orders o`
	before := r.value(all)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.service.Run(ctx) })
	defer func() { cancel(); wg.Wait() }()
	if err := projection.Rebuild(t.Context(), r.pool, "orders"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for r.value(`SELECT string_agg(generation || status, ' ') FROM projections WHERE name = 'orders'`) != "2live" {
		if time.Now().After(deadline) {
			t.Fatal(r.value(`SELECT string_agg(p::text, ' ') FROM projections p`))
		}
		<-time.After(10 * time.Millisecond)
	}
	if after := r.value(all); after != before {
		t.Errorf("built anew it is\n%s\nbut it was\n%s", after, before)
	}
}

func TestAKeyThatIsSentAgainAppendsNothing(t *testing.T) {
	t.Parallel()
	r := start(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if status, body := r.post("same", "/orders", order("1")); status != http.StatusCreated {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	wg.Wait()
	if got := r.value(`SELECT count(*)::text FROM event_store WHERE stream = 'order-1'`); got != "1" {
		t.Errorf("%s events", got)
	}
}
