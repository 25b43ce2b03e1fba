package services_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// answering is whoever is called back.
type answering struct {
	url string

	mu     sync.Mutex
	status func(call int) int
	calls  []string // path and body
}

func answer(t *testing.T, status func(call int) int) *answering {
	t.Helper()
	a := &answering{status: status}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.calls = append(a.calls, r.URL.Path+" "+string(body))
		w.WriteHeader(a.status(len(a.calls)))
	}))
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

func always(status int) func(int) int { return func(int) int { return status } }

func (a *answering) called() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.calls...)
}

// later sends a capture whose caller can be called back.
func (r rig) later(order, key, callback string) reply {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.URLs().Payments+"/captures", strings.NewReader(`{"order":"`+order+`"}`))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", key)
	req.Header.Set("Saga-Callback", callback)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return reply{res.StatusCode, strings.TrimSpace(string(body))}
}

var accepted = reply{202, `{"accepted":true}`}

func TestACaptureThatTakesItsTimeIsAnsweredByCallback(t *testing.T) {
	t.Parallel()
	r := start(t)
	to := answer(t, always(204))
	r.do("1", "authorize")
	r.send("POST", r.URLs().Payments+"/authorizations", "k", `{"order":"2","card":"card-fails-later","amount":{"amount":"7","currency":"EUR"}}`)
	r.check(r.later("1", "c1", to.url+"/1"), accepted)
	r.check(r.later("2", "c2", to.url+"/2"), accepted)
	r.eventually("both are called back", func() bool { return len(to.called()) == 2 })
	got := to.called()
	if got[0] > got[1] {
		got[0], got[1] = got[1], got[0]
	}
	r.check(got, []string{
		`/1 {"outcome":"Succeeded","body":{"id":"capture-1"}}`,
		`/2 {"outcome":"Rejected","reason":"Declined","message":"the bank declined the capture"}`,
	})
	// Who asks again did not get the answer, and is told there.
	r.check(r.later("1", "c1", to.url+"/again"), accepted)
	r.eventually("it is told again", func() bool { return len(to.called()) == 3 })
	r.check(to.called()[2], `/again {"outcome":"Succeeded","body":{"id":"capture-1"}}`)
	r.check(r.later("2", "c1", to.url+"/again").Status, 422)
	r.check(r.footing("1"), "129.90 129.90 0")
}

// footing is what was authorized, captured and refunded for an order.
func (r rig) footing(order string) (sums string) {
	r.t.Helper()
	err := r.Pool().QueryRow(r.t.Context(), `SELECT concat_ws(' ', sum(a.amount), coalesce(sum(c.amount), 0), coalesce(sum(f.amount), 0)) FROM payments.authorizations a
		LEFT JOIN payments.captures c ON c.authorization_id = a.id LEFT JOIN payments.refunds f ON f.capture = c.id WHERE a.order_id = $1`, order).Scan(&sums)
	if err != nil {
		r.t.Fatal(err)
	}
	return sums
}

func TestACallbackIsMadeUntilItIsTaken(t *testing.T) {
	t.Parallel()
	r := start(t)
	to := answer(t, func(call int) int { return []int{500, 429, 503, 204}[min(call-1, 3)] })
	gone := answer(t, always(410))
	r.do("1", "authorize")
	r.do("2", "authorize")
	r.later("1", "c1", to.url+"/1")
	r.later("2", "c2", gone.url+"/2")
	over := func() (n int) {
		if err := r.Pool().QueryRow(t.Context(), `SELECT count(*) FROM payments.saga_work WHERE ended IS NOT NULL`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	r.eventually("both are over", func() bool { return over() == 2 })
	r.check(len(to.called()), 4)
	r.check(len(gone.called()), 1)
}

// hold keeps captures of an order from being done until what it returns is called.
func (r rig) hold(order string) (release func()) {
	r.t.Helper()
	tx, err := r.Pool().Begin(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := tx.Exec(r.t.Context(), `SELECT FROM payments.authorizations WHERE order_id = $1 FOR UPDATE`, order); err != nil {
		r.t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		if err := tx.Rollback(context.WithoutCancel(r.t.Context())); err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(release) // also when the test fails: before the services are stopped
	return release
}

func (r rig) exec(sql string) {
	r.t.Helper()
	if _, err := r.Pool().Exec(r.t.Context(), sql); err != nil {
		r.t.Fatal(err)
	}
}

// waiting counts those who wait for a lock.
func (r rig) waiting() (n int) {
	r.t.Helper()
	if err := r.Pool().QueryRow(r.t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

func TestWhatWasAcceptedIsDoneAfterTheServiceWasAway(t *testing.T) {
	t.Parallel()
	to := answer(t, always(204))
	o := services.Options{DatabaseURL: throwaway.EmptyDatabase(t)}
	before, other := startWith(t, o), startWith(t, services.Options{DatabaseURL: o.DatabaseURL, Only: []string{services.Orders}})
	before.do("1", "authorize")
	other.exec(`ALTER TABLE payments.saga_work ALTER due_at SET DEFAULT 'infinity'`) // nobody does it yet
	before.check(before.later("1", "c1", to.url+"/first"), accepted)
	before.check(before.later("1", "c1", to.url+"/second"), accepted) // the operator was killed before it knew of the first
	if err := before.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := startWith(t, o)
	other.exec(`UPDATE payments.saga_work SET due_at = now()`)
	after.eventually("it is called back", func() bool { return len(to.called()) == 1 })
	after.check(to.called(), []string{`/second {"outcome":"Succeeded","body":{"id":"capture-1"}}`})
}

func TestARefundWaitsForACaptureThatIsUnderWayAndPreventsALateOne(t *testing.T) {
	t.Parallel()
	r := start(t)
	to := answer(t, always(204))
	r.do("1", "authorize")
	r.do("2", "authorize")
	release := r.hold("1")
	r.check(r.later("1", "c1", to.url+"/1"), accepted)
	r.eventually("the capture is under way", func() bool { return r.waiting() == 1 })
	undone := make(chan reply, 1)
	go func() { undone <- r.undo("1", r.step("1", "capture")) }()
	r.eventually("the refund waits for it", func() bool { return r.waiting() == 2 })
	release()
	if got := <-undone; got.Status != http.StatusOK {
		t.Errorf("the refund was answered with %v", got)
	}
	r.check(r.footing("1"), "129.90 129.90 129.90")
	// One whose compensation comes first is never done.
	r.check(r.undo("2", r.step("2", "capture")), reply{200, `{"order":"2","refunded":false}`})
	r.check(r.later("2", "c2", to.url+"/2").Status, 409)
	r.undo("1", r.step("1", "authorize"))
	r.undo("2", r.step("2", "authorize"))
	r.addsUp()
}
