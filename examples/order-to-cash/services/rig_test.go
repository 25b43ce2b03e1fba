package services_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// patience bounds every wait, and the work for each request: nobody waits that long where all is well.
const patience = 10 * time.Minute

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

type rig struct {
	*services.Services
	t *testing.T
}

func start(t *testing.T) rig {
	t.Helper()
	return startWith(t, services.Options{DatabaseURL: throwaway.EmptyDatabase(t)})
}

func startWith(t *testing.T, o services.Options) rig {
	t.Helper()
	o.Timeout = patience
	s, err := services.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return rig{s, t}
}

type reply struct {
	Status int
	Body   string
}

func (r rig) send(method, url, key, body string) reply {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Error(err) // not Fatal: this may be another goroutine
		return reply{}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Error(err)
	}
	return reply{res.StatusCode, strings.TrimSpace(string(b))}
}

// step is a step of the saga: its action, its compensation if any, and the keys that they come under.
type step struct{ name, method, url, body, undoMethod, undoURL string }

// steps are the steps of an order of two books, from placing it on, in an order in which they may follow each other.
func (r rig) steps(order string) []step {
	at := r.URLs()
	const lines, total = `[{"sku":"B-1","quantity":2}]`, `{"amount":"129.90","currency":"EUR"}`
	return []step{
		{"place", "POST", at.Orders + "/orders", `{"order":"` + order + `","customer":"c","lines":` + lines + `,"total":` + total + `,"card":"card-1","country":"DE"}`, "", ""},
		{"accept", "POST", at.Orders + "/orders/" + order + "/accept", "", "POST", at.Orders + "/orders/" + order + "/cancel"},
		{"reserve", "POST", at.Inventory + "/reservations", `{"order":"` + order + `","lines":` + lines + `}`, "DELETE", at.Inventory + "/reservations/" + order},
		{"authorize", "POST", at.Payments + "/authorizations", `{"order":"` + order + `","card":"card-1","amount":` + total + `}`, "DELETE", at.Payments + "/authorizations/" + order},
		{"print", "POST", at.Shipping + "/labels", `{"order":"` + order + `","country":"DE","pieces":2}`, "DELETE", at.Shipping + "/labels/" + order},
		{"commit", "POST", at.Inventory + "/reservations/" + order + "/commit", "", "DELETE", at.Inventory + "/reservations/" + order + "/commit"},
		{"capture", "POST", at.Payments + "/captures", `{"order":"` + order + `"}`, "DELETE", at.Payments + "/captures/" + order},
		{"invoice", "POST", at.Invoicing + "/invoices", `{"order":"` + order + `","amount":` + total + `}`, "DELETE", at.Invoicing + "/invoices/" + order},
		{"confirm", "POST", at.Orders + "/orders/" + order + "/confirm", "", "", ""},
		{"pick-up", "POST", at.Shipping + "/labels/" + order + "/pick-up", "", "", ""},
		{"fulfil", "POST", at.Orders + "/orders/" + order + "/fulfil", `{"tracking":"TRK"}`, "", ""},
	}
}

func (r rig) act(order string, s step) reply {
	r.t.Helper()
	return r.send(s.method, s.url, order+"/"+s.name+"/action", s.body)
}

func (r rig) undo(order string, s step) reply {
	r.t.Helper()
	return r.send(s.undoMethod, s.undoURL, order+"/"+s.name+"/compensation", "")
}

func (r rig) ledger() ledger.Ledger {
	r.t.Helper()
	l, err := ledger.Read(r.t.Context(), r.Pool())
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// stock is one article.
func (r rig) stock(sku string) ledger.Stock {
	r.t.Helper()
	for _, s := range r.ledger().Stock {
		if s.SKU == sku {
			return s
		}
	}
	r.t.Fatalf("there is no %s", sku)
	return ledger.Stock{}
}

// step is the step of an order of a name.
func (r rig) step(order, name string) step {
	for _, s := range r.steps(order) {
		if s.name == name {
			return s
		}
	}
	panic(name)
}

// do does some steps of an order, which have to succeed.
func (r rig) do(order string, names ...string) {
	r.t.Helper()
	for _, name := range names {
		if got := r.act(order, r.step(order, name)); got.Status >= 300 {
			r.t.Fatalf("%s was answered with %v", name, got)
		}
	}
}

// addsUp checks that nothing is wrong in the ledger.
func (r rig) addsUp() {
	r.t.Helper()
	if problems := r.ledger().Problems(); problems != nil {
		r.t.Errorf("the ledger does not balance: %q", problems)
	}
}

// balances checks that nothing is wrong in the ledger or in the log of calls.
func (r rig) balances() {
	r.t.Helper()
	r.addsUp()
	calls, err := ledger.Calls(r.t.Context(), r.Pool())
	if err != nil {
		r.t.Fatal(err)
	}
	if problems := ledger.CheckCalls(calls); problems != nil {
		r.t.Errorf("the calls are not right: %q", problems)
	}
}

func (r rig) check(got, want any) {
	r.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("(-want +got):\n%s", diff)
	}
}

// eventually polls until something holds.
func (r rig) eventually(what string, holds func() bool) {
	r.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("never: %s", what)
		}
	}
}
