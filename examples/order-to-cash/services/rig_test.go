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
	s, err := services.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
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
type step struct{ name, method, url, body, undoMethod, undoURL, undoBody string }

// steps are the steps of place-order.
func (r rig) steps(order, lines, amount string) []step {
	at := r.URLs()
	return []step{
		{"create", "POST", at.Orders + "/orders", `{"order":"` + order + `","customer":"c","lines":` + lines + `,"total":{"amount":"` + amount + `","currency":"EUR"}}`,
			"POST", at.Orders + "/orders/" + order + "/cancel", ""},
		{"reserve", "POST", at.Inventory + "/reservations", `{"order":"` + order + `","lines":` + lines + `}`, "DELETE", at.Inventory + "/reservations/" + order, ""},
		{"charge", "POST", at.Payments + "/charges", `{"order":"` + order + `","amount":{"amount":"` + amount + `","currency":"EUR"}}`,
			"POST", at.Payments + "/refunds", `{"order":"` + order + `"}`},
		{"ship", "POST", at.Shipping + "/labels", `{"order":"` + order + `","charge":"charge-1"}`, "DELETE", at.Shipping + "/labels/" + order, ""},
		{"confirm", "POST", at.Orders + "/orders/" + order + "/confirm", "", "", "", ""},
	}
}

func (r rig) act(order string, s step) reply {
	r.t.Helper()
	return r.send(s.method, s.url, order+"/"+s.name+"/action", s.body)
}

func (r rig) undo(order string, s step) reply {
	r.t.Helper()
	return r.send(s.undoMethod, s.undoURL, order+"/"+s.name+"/compensation", s.undoBody)
}

func (r rig) ledger() ledger.Ledger {
	r.t.Helper()
	l, err := ledger.Read(r.t.Context(), r.Pool())
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// balances checks that nothing is wrong in the ledger or in the log of calls.
func (r rig) balances() {
	r.t.Helper()
	if problems := r.ledger().Problems(); problems != nil {
		r.t.Errorf("the ledger does not balance: %q", problems)
	}
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
