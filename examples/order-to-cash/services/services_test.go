package services_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// all are the names of the steps of an order.
var all = []string{"place", "accept", "reserve", "authorize", "print", "commit", "capture", "invoice", "confirm", "pick-up", "fulfil"}

func TestEveryStepIsAnsweredAsBeforeHoweverLateItComesAgain(t *testing.T) {
	t.Parallel()
	r := start(t)
	for _, name := range all {
		first := r.act("1", r.step("1", name))
		for _, service := range services.Names {
			if _, err := r.Pool().Exec(t.Context(), `DELETE FROM `+pgx.Identifier{service, "idempotency_keys"}.Sanitize()); err != nil {
				t.Fatal(err)
			}
		}
		if again := r.act("1", r.step("1", name)); again != first || first.Status >= 300 {
			t.Errorf("%s was answered with %v, and again with %v", name, first, again)
		}
	}
	r.addsUp()
}

func TestAFulfilledOrderHasEverythingExactlyOnce(t *testing.T) {
	t.Parallel()
	r := start(t)
	for _, s := range r.steps("1042") {
		first := r.act("1042", s)
		if first.Status >= 300 {
			t.Fatalf("%s was answered with %v", s.name, first)
		}
		r.check(r.act("1042", s), first)
	}
	r.balances()
	r.check(r.ledger().Orders, []ledger.Order{
		{Order: "1042", Status: "fulfilled", Gone: 2, Promised: "0", Taken: "129.90", Currency: "EUR", Labels: 1, PickedUp: 1, Invoiced: "129.90"},
	})
	r.check(r.stock("B-1"), ledger.Stock{SKU: "B-1", Delivered: 100_000, Available: 99_998, Gone: 2})

	at := r.URLs()
	for url, want := range map[string]string{
		at.Orders + "/orders/1042":          `"status":"fulfilled"`,
		at.Orders + "/orders":               `"amount":"129.90"`,
		at.Inventory + "/reservations/1042": `"lines":[{"sku":"B-1","quantity":2}]`,
		at.Inventory + "/stock":             `"available":99998`,
		at.Payments + "/payments/1042":      `"captured":"129.90","refunded":"0"`,
		at.Shipping + "/labels/1042":        `"tracking":"TRK000000001"`,
		at.Shipping + "/calls":              `"deliveries":2,"effects":1`,
		at.Invoicing + "/invoices/1042":     `"number":"INV-000001"`,
	} {
		if got := r.send("GET", url, "", ""); got.Status != http.StatusOK || !strings.Contains(strings.ReplaceAll(got.Body, " ", ""), want) {
			t.Errorf("%s shows %v, not %s", url, got, want)
		}
	}
	r.check(r.send("GET", at.Orders+"/orders/7", "", ""), reply{404, `{"message":"there is no such order"}`})
	r.check(r.send("GET", at.Invoicing+"/invoices/7", "", ""), reply{404, `{"message":"there is none"}`})
}

// TestARolledBackOrderLeavesNothingBehind goes so far and back again, from every step before the parcel is on its way.
func TestARolledBackOrderLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	r := start(t)
	for done := 1; done <= slices.Index(all, "confirm")+1; done++ {
		order := fmt.Sprint("o", done)
		steps := r.steps(order)
		r.do(order, all[:done]...)
		for i := done - 1; i >= 0; i-- {
			for range 2 {
				if steps[i].undoURL == "" {
					continue
				}
				if got := r.undo(order, steps[i]); got.Status != http.StatusOK {
					t.Errorf("undoing %s was answered with %v", steps[i].name, got)
				}
			}
		}
		if done == 1 { // nothing but placed: the saga's first step was never sent
			r.undo(order, r.step(order, "accept"))
		}
		// What comes too late changes nothing: it is undone first, or refused.
		for _, s := range steps[done:] {
			if s.undoURL != "" {
				r.undo(order, s)
			}
			if got := r.send(s.method, s.url, order+"/"+s.name+"/late", s.body); got.Status != http.StatusConflict {
				t.Errorf("%s, which is late, was answered with %v", s.name, got)
			}
		}
	}
	for _, o := range r.ledger().Orders {
		if o.Status != "cancelled" {
			t.Errorf("left behind: %+v", o)
		}
	}
	r.balances()
	r.check(r.stock("B-1"), ledger.Stock{SKU: "B-1", Delivered: 100_000, Available: 100_000})
}

func TestWhatIsRefusedLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	r := startWith(t, services.Options{DatabaseURL: throwaway.EmptyDatabase(t), PaymentsLimit: "99.99", Stock: map[string]services.Article{"B-1": {Delivered: 5}, "R-9": {Delivered: 1}}})
	at := r.URLs()
	for _, c := range []struct {
		name, method, url, body string
		status                  int
		says                    string
	}{
		{"too dear", "POST", at.Payments + "/authorizations", `{"order":"1","card":"card-1","amount":{"amount":"100","currency":"EUR"}}`, 402, "card declined"},
		{"a card that is declined", "POST", at.Payments + "/authorizations", `{"order":"1","card":"card-declined","amount":{"amount":"1","currency":"EUR"}}`, 402, "card declined"},
		{"exactly the limit", "POST", at.Payments + "/authorizations", `{"order":"2","card":"card-fails-later","amount":{"amount":"99.99","currency":"EUR"}}`, 201, "authorization-1"},
		{"declined in the end", "POST", at.Payments + "/captures", `{"order":"2"}`, 402, "the bank declined the capture"},
		{"capture nothing", "POST", at.Payments + "/captures", `{"order":"3"}`, 409, "nothing is authorized for order 3"},
		{"the last but one is missing", "POST", at.Inventory + "/reservations", `{"order":"1","lines":[{"sku":"B-1","quantity":5},{"sku":"R-9","quantity":2}]}`, 409, "out of stock: 2 of R-9 wanted, 1 there"},
		{"an article nobody knows", "POST", at.Inventory + "/reservations", `{"order":"1","lines":[{"sku":"X","quantity":1}]}`, 409, "out of stock: 1 of X wanted, 0 there"},
		{"all that is there", "POST", at.Inventory + "/reservations", `{"order":"2","lines":[{"sku":"B-1","quantity":5},{"sku":"R-9","quantity":1}]}`, 201, "reservation-1"},
		{"commit nothing", "POST", at.Inventory + "/reservations/3/commit", "", 409, "nothing is reserved for order 3"},
		{"nobody goes there", "POST", at.Shipping + "/labels", `{"order":"1","country":"AQ","pieces":1}`, 422, "no carrier goes to AQ"},
		{"a large parcel", "POST", at.Shipping + "/labels", `{"order":"2","country":"DE","pieces":41}`, 201, "label-1"},
		{"too large to carry", "POST", at.Shipping + "/labels/2/pick-up", "", 422, "the carrier takes no parcel of 41 pieces, at most 40"},
		{"pick nothing up", "POST", at.Shipping + "/labels/3/pick-up", "", 409, "there is no label for order 3"},
		{"a strange currency", "POST", at.Invoicing + "/invoices", `{"order":"1","amount":{"amount":"1","currency":"JPY"}}`, 422, "no books are kept in JPY, only in CHF, EUR, GBP, USD"},
		{"no order", "POST", at.Orders + "/orders/7/confirm", "", 404, "there is no order 7"},
	} {
		for range 2 {
			if got := r.send(c.method, c.url, strings.ReplaceAll(c.name, " ", "-"), c.body); got.Status != c.status || !strings.Contains(got.Body, c.says) {
				t.Errorf("%s: %v was answered, not %d %s", c.name, got, c.status, c.says)
			}
		}
	}
	for _, undo := range []string{at.Payments + "/authorizations/2", at.Inventory + "/reservations/2", at.Shipping + "/labels/2"} {
		r.check(r.send("DELETE", undo, "undo", "").Status, 200)
	}
	r.addsUp()
}

func TestAReservationThatExpiredCannotBeCommittedAndItsGoodsComeBack(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.do("1", "place", "accept", "reserve")
	r.do("2", "place", "accept", "reserve", "commit")
	r.do("3", "place", "accept", "reserve")
	if _, err := r.Pool().Exec(t.Context(), `UPDATE inventory.reservations SET expires_at = now() WHERE order_id <> '3'`); err != nil {
		t.Fatal(err)
	}
	// Whether or not the sweeper has come by.
	r.check(r.act("1", r.step("1", "commit")), reply{409, `{"message":"the reservation of order 1 has expired"}`})
	r.eventually("the goods of order 1 are back", func() bool {
		return r.stock("B-1") == ledger.Stock{SKU: "B-1", Delivered: 100_000, Available: 99_996, Held: 2, Gone: 2}
	})
	r.check(r.send("POST", r.URLs().Inventory+"/reservations/1/commit", "later", "").Status, 409)
	r.check(r.undo("1", r.step("1", "reserve")), reply{200, `{"order":"1","released":false}`})
	r.undo("1", r.step("1", "accept"))
	for _, name := range []string{"commit", "reserve", "accept"} {
		r.undo("2", r.step("2", name))
		r.undo("3", r.step("3", name))
	}
	r.addsUp()
	r.check(r.stock("B-1").Available, int64(100_000))
}

func TestAnArticleIsHeldNoLongerThanItsTime(t *testing.T) {
	t.Parallel()
	r := start(t)
	at := r.URLs()
	r.check(r.send("POST", at.Inventory+"/reservations", "k", `{"order":"1","lines":[{"sku":"B-1","quantity":1},{"sku":"T-1","quantity":1}]}`).Status, 201)
	r.eventually("it expires", func() bool { return r.stock("B-1").Held == 0 && r.stock("T-1").Held == 0 })
	r.check(r.stock("T-1"), ledger.Stock{SKU: "T-1", Delivered: 1000, Available: 1000})
	r.check(r.send("POST", at.Inventory+"/reservations/1/commit", "k-2", "").Status, 409)
}

func TestManyWhoWantTheSameGoodsGetNoMoreThanThereAre(t *testing.T) {
	t.Parallel()
	const there, want = 5, 12
	r := startWith(t, services.Options{DatabaseURL: throwaway.EmptyDatabase(t), Stock: map[string]services.Article{"B-1": {Delivered: there}, "A-7": {Delivered: 100}}})
	lines := []string{`[{"sku":"A-7","quantity":1},{"sku":"B-1","quantity":1}]`, `[{"sku":"B-1","quantity":1},{"sku":"A-7","quantity":1}]`}
	var wg sync.WaitGroup
	var taken atomic.Int64
	for i := range want {
		wg.Go(func() {
			if got := r.send("POST", r.URLs().Inventory+"/reservations", fmt.Sprint(i), fmt.Sprintf(`{"order":"o%d","lines":%s}`, i, lines[i%2])); got.Status == http.StatusCreated {
				taken.Add(1)
			} else if got.Status != http.StatusConflict {
				t.Errorf("answered was %v", got)
			}
		})
	}
	wg.Wait()
	r.check(taken.Load(), int64(there))
	r.check(r.stock("B-1"), ledger.Stock{SKU: "B-1", Delivered: there, Held: there})
}

func TestALabelCannotBeVoidedWhenItsParcelIsOnItsWay(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.do("1", "place", "accept", "print")
	r.check(r.send("POST", r.URLs().Shipping+"/labels/1/pick-up", "k", "").Status, 200)
	r.check(r.undo("1", r.step("1", "print")), reply{409, `{"message":"the parcel of order 1 is on its way, and cannot be called back"}`})
	r.do("2", "place", "accept", "print")
	r.check(r.undo("2", r.step("2", "print")).Status, 200)
	r.check(r.act("2", r.step("2", "pick-up")), reply{409, `{"message":"the label of order 2 has been voided"}`})
}

func TestMoneyThatWasTakenIsRefundedAndNotVoided(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.do("1", "authorize", "capture")
	r.check(r.send("DELETE", r.URLs().Payments+"/authorizations/1", "k", ""), reply{409, `{"message":"the money for order 1 has been taken: refund it instead"}`})
	r.check(r.undo("1", r.step("1", "capture")), reply{200, `{"order":"1","refunded":true}`})
	r.check(r.undo("1", r.step("1", "authorize")), reply{200, `{"order":"1","voided":false}`})
	r.addsUp()
}

func TestInvoiceNumbersHaveNoGapsWhateverIsRefusedOrRolledBack(t *testing.T) {
	t.Parallel()
	r := start(t)
	var wg sync.WaitGroup
	for i := range 30 {
		order, currency := fmt.Sprint("o", i), []string{"EUR", "JPY", "USD"}[i%3]
		wg.Go(func() {
			r.send("POST", r.URLs().Invoicing+"/invoices", "i"+order, `{"order":"`+order+`","amount":{"amount":"7","currency":"`+currency+`"}}`)
			r.send("DELETE", r.URLs().Invoicing+"/invoices/"+order, "c"+order, "")
		})
	}
	wg.Wait()
	r.balances()
	var last int64
	if err := r.Pool().QueryRow(t.Context(), `SELECT sum(last) FROM invoicing.numbers`).Scan(&last); err != nil {
		t.Fatal(err)
	}
	r.check(last, int64(40))
}

func TestRequestsThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	r := start(t)
	at := r.URLs()
	order := func(lines, total string) string {
		return `{"order":"1","customer":"c","lines":` + lines + `,"total":` + total + `,"card":"card-1","country":"DE"}`
	}
	const euro, twoBooks = `{"amount":"1","currency":"EUR"}`, `[{"sku":"B-1","quantity":2}]`
	for body, url := range map[string]string{
		order(`[]`, euro): at.Orders + "/orders",
		order(`[{"sku":"B-1","quantity":0}]`, euro):                                     at.Orders + "/orders",
		order(`[{"sku":"B-1","quantity":1.5}]`, euro):                                   at.Orders + "/orders",
		order(`[{"sku":"","quantity":1}]`, euro):                                        at.Orders + "/orders",
		order(twoBooks, `{"amount":1,"currency":"E"}`):                                  at.Orders + "/orders",
		order(twoBooks, `{"amount":"0","currency":""}`):                                 at.Orders + "/orders",
		`{"order":"1","lines":` + twoBooks + `}`:                                        at.Orders + "/orders",
		`{"order":"1","lines":[{"sku":"B-1","quantity":1},{"sku":"B-1","quantity":1}]}`: at.Inventory + "/reservations",
		`{"order":"../1","card":"c","amount":` + euro + `}`:                             at.Payments + "/authorizations",
		`{"order":"1","card":"","amount":` + euro + `}`:                                 at.Payments + "/authorizations",
		`{"order":""}`: at.Payments + "/captures",
		`{"order":"1","country":"Germany","pieces":1}`: at.Shipping + "/labels",
		`{"order":"1","country":"DE"}`:                 at.Shipping + "/labels",
		`{"order":"1"}`:                                at.Invoicing + "/invoices",
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
	ship, other := r.step("1044", "print"), r.step("1045", "print")
	for i, want := range []int{429, 429, 201, 201} {
		if got := r.act("1044", ship); got.Status != want {
			t.Errorf("request %d was answered with %v, not %d", i, got, want)
		}
	}
	if err := r.Outage(services.Outage{Requests: 1}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{429, 201} {
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
	r.check(res.StatusCode, 429)
	r.check(res.Header.Get("Retry-After"), "3600")
	if err := r.Outage(services.Outage{}); err != nil {
		t.Fatal(err)
	}
	r.check(r.undo("1", r.step("1", "print")), reply{200, `{"order":"1","voided":false}`})
	for _, bad := range []string{`{"seconds":3601}`, `{"requests":-1}`, `{"order":"1","seconds":1}`, `{"order":"/","requests":1}`} {
		if got := r.send("POST", at.Shipping+"/admin/outage", "", bad); got.Status != http.StatusBadRequest {
			t.Errorf("%s was answered with %v", bad, got)
		}
	}
}

func TestWhoIsTurnedAwayByAnOutageIsToldSoWhateverFaultsTheServiceCommits(t *testing.T) {
	t.Parallel()
	r := start(t)
	if err := r.SetFaults("shipping", services.Faults{Lose: 1, Error: 1}); err != nil {
		t.Fatal(err)
	}
	if err := r.Outage(services.Outage{Order: "1044", Requests: 1}); err != nil {
		t.Fatal(err)
	}
	r.check(r.act("1044", r.step("1044", "print")).Status, http.StatusTooManyRequests)
}

func TestServicesMayStartTogetherAndRememberAfterwards(t *testing.T) {
	t.Parallel()
	o := services.Options{DatabaseURL: throwaway.EmptyDatabase(t), MaxConns: 4, Timeout: patience}
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
	first := before.act("1", before.step("1", "authorize"))
	after := startWith(t, o)
	again := after.act("1", after.step("1", "authorize"))
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
	other.eventually("the one at another address is well", func() bool {
		return other.send("GET", other.URLs().Payments+"/healthz", "", "") == reply{200, `{"status":"ok"}`}
	})
}

func TestStopDoesNotWaitForRequestsThatHang(t *testing.T) {
	t.Parallel()
	s, err := services.Start(t.Context(), services.Options{DatabaseURL: throwaway.EmptyDatabase(t), Timeout: patience})
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
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URLs().Payments+"/captures", strings.NewReader(`{"order":"1"}`))
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
	deadline, cancel := context.WithTimeout(t.Context(), patience)
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
