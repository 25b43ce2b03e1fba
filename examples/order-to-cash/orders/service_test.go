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

	"github.com/vextrus/saga-operator/examples/order-to-cash/orders"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/internal/projection"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

type rig struct {
	*testing.T
	pool    *pgxpool.Pool
	service *orders.Service
}

func start(t *testing.T) *rig {
	t.Helper()
	pool, err := pgxpool.New(context.Background(), throwaway.EmptyDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s, err := orders.New(t.Context(), pool, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t, pool, s}
}

// post sends a request for an effect and returns its status and body.
func (r *rig) post(key, path, body string) (int, string) {
	r.Helper()
	req := httptest.NewRequestWithContext(r.Context(), http.MethodPost, path, strings.NewReader(body))
	req.Header.Set("Idempotency-Key", key)
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
	return fmt.Sprintf(`{"order":%q,"customer":"c-7","lines":[{"sku":"B-1","quantity":2}],"total":{"amount":"129.9","currency":"EUR"}}`, id)
}

func TestAnOrderGoesItsWayThroughTheAPI(t *testing.T) {
	t.Parallel()
	r := start(t)
	for i, c := range []struct {
		path, body string
		status     int
	}{
		{"/orders", order("1"), 201}, {"/orders/1/fulfil", `{"tracking":"TRK1"}`, 409}, {"/orders/1/confirm", "", 200}, {"/orders/1/confirm", "", 409},
		{"/orders/1/fulfil", `{"tracking":""}`, 422}, {"/orders/1/fulfil", `{"tracking":"TRK1"}`, 200}, {"/orders/1/cancel", "", 409}, {"/orders/2/confirm", "", 404},
		{"/orders", strings.Replace(order("3"), `"129.9"`, `"0"`, 1), 400}, {"/orders", strings.Replace(order("3"), `"129.9"`, `129.9`, 1), 400}, {"/orders/4/cancel", "", 200},
	} {
		if status, body := r.post(fmt.Sprint("key-", i), c.path, c.body); status != c.status {
			t.Errorf("%s %s: %d %s, want %d", c.path, c.body, status, body, c.status)
		}
	}
	if got := r.get("/orders/1"); !strings.Contains(got, `"status":"fulfilled"`) || !strings.Contains(got, `"tracking":"TRK1"`) || !strings.Contains(got, `"amount":"129.90"`) {
		t.Errorf("it shows %s", got)
	}
	events := r.get("/orders/1/events")
	for _, want := range []string{`"OrderPlaced"`, `"OrderConfirmed"`, `"OrderFulfilled"`} {
		if strings.Count(events, want) != 1 {
			t.Errorf("its events are %s, want %s once", events, want)
		}
	}
	if got := r.value(`SELECT version::text FROM snapshots WHERE stream = 'order-1'`); got != "3" {
		t.Errorf("the snapshot is of version %s, want 3", got)
	}
	if got := r.value(`SELECT metadata->>'causationId' FROM event_store WHERE stream = 'order-1' AND version = 1`); got != "key-0" {
		t.Errorf("the order was caused by %s", got)
	}
}

func TestTheReadModelOfOrdersEqualsItsRebuild(t *testing.T) {
	t.Parallel()
	r := start(t)
	for i := range 30 {
		id := fmt.Sprintf("o%02d", i)
		steps := [][2]string{{"/orders", order(id)}, {"/orders/" + id + "/confirm", ""}, {"/orders/" + id + "/fulfil", `{"tracking":"T"}`}}
		if i%3 == 0 {
			steps[2] = [2]string{"/orders/" + id + "/cancel", ""}
		}
		for n, s := range steps[:1+i%len(steps)] {
			if status, body := r.post(fmt.Sprint(id, n), s[0], s[1]); status >= 300 {
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
	deadline := time.Now().Add(30 * time.Second)
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
