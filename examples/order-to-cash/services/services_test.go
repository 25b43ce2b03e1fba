package services_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

const twoBooks = `[{"sku":"B-1","quantity":2}]`

func TestACompletedOrderHasEverythingExactlyOnce(t *testing.T) {
	t.Parallel()
	r := start(t)
	for _, s := range r.steps("1042", twoBooks, "129.90") {
		first := r.act("1042", s)
		if first.Status >= 300 {
			t.Fatalf("%s was answered with %v", s.name, first)
		}
		r.check(r.act("1042", s), first)
	}
	r.balances()
	l := r.ledger()
	r.check(l.Orders, []ledger.Order{{Order: "1042", Status: "confirmed", Reserved: 2, Charged: "129.90", Currency: "EUR", Labels: 1}})
	r.check(l.Stock[1], ledger.Stock{SKU: "B-1", Delivered: 100_000, Available: 99_998, Reserved: 2})

	at := r.URLs()
	for url, want := range map[string]string{
		at.Orders + "/orders/1042":          `"status":"confirmed"`,
		at.Orders + "/orders":               `"amount":"129.90"`,
		at.Inventory + "/reservations/1042": `"lines":[{"sku":"B-1","quantity":2}]`,
		at.Inventory + "/stock":             `"available":99998`,
		at.Payments + "/charges/1042":       `"refunded":"0"`,
		at.Shipping + "/labels/1042":        `"tracking":"TRK000000001"`,
		at.Shipping + "/calls":              `"deliveries":2,"effects":1`,
	} {
		if got := r.send("GET", url, "", ""); got.Status != http.StatusOK || !strings.Contains(got.Body, want) {
			t.Errorf("%s shows %v, not %s", url, got, want)
		}
	}
	r.check(r.send("GET", at.Orders+"/orders/7", "", ""), reply{404, `{"message":"there is none"}`})
}

func TestARolledBackOrderLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	r := start(t)
	steps := r.steps("1043", twoBooks, "129.90")
	for done := len(steps); done > 0; done-- { // 5 steps done, the last of them confirmed, and so on
		order := "o" + string(rune('0'+done))
		steps := r.steps(order, twoBooks, "129.90")
		for _, s := range steps[:done] {
			r.act(order, s)
		}
		for i := min(done, 4) - 1; i >= 0; i-- {
			for range 2 {
				if got := r.undo(order, steps[i]); got.Status != http.StatusOK {
					t.Errorf("undoing %s was answered with %v", steps[i].name, got)
				}
			}
		}
		// What comes too late changes nothing.
		for _, s := range steps[done:] {
			if got := r.send(s.method, s.url, order+"/"+s.name+"/compensation before", s.body); s.name == "confirm" && got.Status != http.StatusConflict {
				t.Errorf("confirming a cancelled order was answered with %v", got)
			}
			if s.undoURL != "" {
				r.undo(order, s)
			}
		}
	}
	for _, o := range r.ledger().Orders {
		if o.Status != "cancelled" || o.Reserved != 0 || strings.Trim(o.Charged, "0.") != "" || o.Labels != 0 || o.Problem != "" {
			t.Errorf("left behind: %+v", o)
		}
	}
	r.balances()
}

func TestDefiniteNos(t *testing.T) {
	t.Parallel()
	r := startWith(t, services.Options{DatabaseURL: throwaway.EmptyDatabase(t), PaymentsLimit: "99.99", Stock: map[string]int64{"R-9": 1, "B-1": 5}})
	at := r.URLs()
	for _, c := range []struct {
		name, method, url, body string
		want                    reply
	}{
		{"too much money", "POST", at.Payments + "/charges", `{"order":"1","amount":{"amount":"100.00","currency":"EUR"}}`, reply{402, `{"message":"card declined"}`}},
		{"exactly the limit", "POST", at.Payments + "/charges", `{"order":"2","amount":{"amount":"99.99","currency":"EUR"}}`, reply{201, `{"id":"charge-1"}`}},
		{"the last but one is missing", "POST", at.Inventory + "/reservations", `{"order":"1","lines":[{"sku":"B-1","quantity":5},{"sku":"R-9","quantity":2}]}`,
			reply{409, `{"message":"out of stock: 2 of R-9 wanted, 1 there"}`}},
		{"an article nobody knows", "POST", at.Inventory + "/reservations", `{"order":"1","lines":[{"sku":"X","quantity":1}]}`,
			reply{409, `{"message":"out of stock: 1 of X wanted, 0 there"}`}},
		{"all that is there", "POST", at.Inventory + "/reservations", `{"order":"2","lines":[{"sku":"B-1","quantity":5},{"sku":"R-9","quantity":1}]}`,
			reply{201, `{"id":"reservation-1"}`}},
		{"no order", "POST", at.Orders + "/orders/7/confirm", "", reply{404, `{"message":"there is no order 7"}`}},
	} {
		if got := r.send(c.method, c.url, c.name, c.body); got != c.want {
			t.Errorf("%s: %v was answered, not %v", c.name, got, c.want)
		}
	}
}

func TestRequestsThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	r := start(t)
	at := r.URLs()
	order := func(lines, total string) string {
		return `{"order":"1","customer":"c","lines":` + lines + `,"total":` + total + `}`
	}
	const euro = `{"amount":"1","currency":"EUR"}`
	for body, url := range map[string]string{
		order(`[]`, euro): at.Orders + "/orders",
		order(`[{"sku":"B-1","quantity":0}]`, euro):                                     at.Orders + "/orders",
		order(`[{"sku":"B-1","quantity":1.5}]`, euro):                                   at.Orders + "/orders",
		order(`[{"sku":"","quantity":1}]`, euro):                                        at.Orders + "/orders",
		order(twoBooks, `{"amount":1,"currency":"E"}`):                                  at.Orders + "/orders",
		order(twoBooks, `{"amount":"0","currency":""}`):                                 at.Orders + "/orders",
		`{"order":"1","lines":` + twoBooks + `}`:                                        at.Orders + "/orders",
		`{"order":"1","lines":[{"sku":"B-1","quantity":1},{"sku":"B-1","quantity":1}]}`: at.Inventory + "/reservations",
		`{"order":"../1","amount":` + euro + `}`:                                        at.Payments + "/charges",
		`{"order":""}`:                                                                  at.Payments + "/refunds",
		`{"order":"1"}`:                                                                 at.Shipping + "/labels",
	} {
		if got := r.send("POST", url, "k", body); got.Status != http.StatusBadRequest {
			t.Errorf("%s was answered with %v", body, got)
		}
	}
}

func TestShippingIsUnavailableForAsLongAsItWasTold(t *testing.T) {
	t.Parallel()
	r := start(t)
	at := r.URLs()
	if got := r.send("POST", at.Shipping+"/admin/outage", "", `{"order":"1044","requests":2}`); got.Status != http.StatusOK {
		t.Fatalf("the outage was answered with %v", got)
	}
	ship, other := r.steps("1044", twoBooks, "1")[3], r.steps("1045", twoBooks, "1")[3]
	for i, want := range []int{503, 503, 201, 201} {
		if got := r.act("1044", ship); got.Status != want {
			t.Errorf("request %d was answered with %v, not %d", i, got, want)
		}
	}
	if err := r.Outage(services.Outage{Requests: 1}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{503, 201} {
		if got := r.act("1045", other); got.Status != want {
			t.Errorf("request %d for any order was answered with %v, not %d", i, got, want)
		}
	}
	if err := r.Outage(services.Outage{Seconds: 3600}); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, at.Shipping+"/labels/1", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", "k")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	r.check(res.StatusCode, 503)
	r.check(res.Header.Get("Retry-After"), "3600")
	if err := r.Outage(services.Outage{}); err != nil {
		t.Fatal(err)
	}
	r.check(r.undo("1", r.steps("1", twoBooks, "1")[3]), reply{200, `{"order":"1","voided":false}`})
	for _, bad := range []string{`{"seconds":3601}`, `{"requests":-1}`, `{"order":"1","seconds":1}`, `{"order":"/","requests":1}`} {
		if got := r.send("POST", at.Shipping+"/admin/outage", "", bad); got.Status != http.StatusBadRequest {
			t.Errorf("%s was answered with %v", bad, got)
		}
	}
}

func TestServicesMayStartTogetherAndRememberAfterwards(t *testing.T) {
	t.Parallel()
	o := services.Options{DatabaseURL: throwaway.EmptyDatabase(t), MaxConns: 4}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := services.Start(t.Context(), o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	before := startWith(t, o)
	first := before.act("1", before.steps("1", twoBooks, "1")[2])
	after := startWith(t, o)
	again := after.act("1", after.steps("1", twoBooks, "1")[2])
	after.check(again, first)
	after.check(len(after.ledger().Orders), 1)
}

func TestAPortThatIsTakenIsReplacedOnlyWhenAllowed(t *testing.T) {
	t.Parallel()
	r := start(t)
	taken := services.Addresses{Payments: strings.TrimPrefix(r.URLs().Payments, "http://")}
	o := services.Options{DatabaseURL: throwaway.EmptyDatabase(t), Addresses: taken}
	if s, err := services.Start(t.Context(), o); err == nil {
		t.Error("two services listen at one address")
		_ = s.Stop(t.Context())
	}
	o.AnyPort = true
	other := startWith(t, o)
	if other.URLs().Payments == r.URLs().Payments {
		t.Error("two services listen at one address")
	}
	other.check(other.send("GET", other.URLs().Payments+"/healthz", "", ""), reply{200, `{"status":"ok"}`})
}

func TestStopDoesNotWaitForRequestsThatHang(t *testing.T) {
	t.Parallel()
	s, err := services.Start(t.Context(), services.Options{DatabaseURL: throwaway.EmptyDatabase(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetFaults("payments", services.Faults{Hang: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetFaults("payment", services.Faults{}); err == nil {
		t.Error("a service that does not exist was found")
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URLs().Payments+"/refunds", strings.NewReader(`{"order":"1"}`))
		if err != nil {
			t.Error(err)
			return
		}
		req.Close = true
		req.Header.Set("Idempotency-Key", "k")
		if res, err := http.DefaultClient.Do(req); err == nil {
			t.Errorf("%s was answered", res.Status)
			_ = res.Body.Close()
		}
	}()
	deadline, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for n := 0; n == 0; {
		if err := s.Pool().QueryRow(deadline, `SELECT count(*) FROM payments.calls`).Scan(&n); err != nil {
			t.Fatalf("waiting for the request: %v", err)
		}
	}
	if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	<-gone
}
