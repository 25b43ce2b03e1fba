package idempotency_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// TestMiddlewareVouchesOnlyForStoredNos has a handler answer every status, and repeats each request: a no that carries the header is one that stays.
func TestMiddlewareVouchesOnlyForStoredNos(t *testing.T) {
	stored := map[int]bool{402: true, 404: true, 405: true, 409: true, 410: true, 412: true}
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		for _, status := range []int{200, 202, 400, 401, 402, 403, 404, 405, 408, 409, 410, 412, 413, 415, 422, 425, 429, 500, 502, 503, 504} {
			f.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
			key := strconv.Itoa(status)
			for range 2 {
				got := f.send("POST", key, "{}")
				if vouched := got.header.Get(idempotency.HeaderOutcome) == idempotency.OutcomeRejected; vouched != stored[status] {
					t.Errorf("%d: vouched for: %t (replayed: %q)", status, vouched, got.header.Get(idempotency.HeaderReplayed))
				}
			}
		}
	})
}

// TestMiddlewareVouchesForNoNoThatComesAfterADoubt has an earlier request with the key act, or perhaps act, without its response being stored. A handler that looks
// whether it has acted says no then: that is not the word that nothing has happened.
func TestMiddlewareVouchesForNoNoThatComesAfterADoubt(t *testing.T) {
	t.Parallel()
	status := func(status int) func(*clock, http.ResponseWriter, func()) {
		return func(_ *clock, w http.ResponseWriter, _ func()) { w.WriteHeader(status) }
	}
	for name, first := range map[string]func(c *clock, w http.ResponseWriter, again func()){
		"it takes longer than its lease": func(c *clock, _ http.ResponseWriter, again func()) {
			c.forward(idempotency.DefaultLease)
			again()
		},
		"it panics":               func(*clock, http.ResponseWriter, func()) { panic(http.ErrAbortHandler) },
		"it fails":                status(http.StatusInternalServerError),
		"its time is over":        status(http.StatusRequestTimeout),
		"its success is not kept": status(http.StatusOK),
	} {
		for kind, open := range stores {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				c := newClock()
				store := unhurried{open(t, idempotency.Options{Clock: c.Now})}
				var handle http.HandlerFunc
				handler := idempotency.Middleware(store, idempotency.MiddlewareOptions{
					Timeout: patience, Keep: func(status int) bool { return status == http.StatusConflict },
				})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handle(w, r) }))
				again := func() {
					for range 2 {
						if got := serve(t, handler); got.Code != http.StatusConflict || got.Header().Get(idempotency.HeaderOutcome) != "" {
							t.Errorf("%d %v", got.Code, got.Header())
						}
					}
				}
				acts := 0
				handle = func(w http.ResponseWriter, _ *http.Request) {
					if acts++; acts == 1 {
						first(c, w, again)
					} else {
						w.WriteHeader(http.StatusConflict)
					}
				}
				serve(t, handler)
				again()
				if acts != 2 {
					t.Errorf("the handler was called %d times", acts)
				}
			})
		}
	}
}

// serve serves one request, whose handler may panic.
func serve(t *testing.T, handler http.Handler) *httptest.ResponseRecorder {
	t.Helper()
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/orders", http.NoBody)
	r.Header.Set(idempotency.HeaderKey, "k")
	defer func() { _ = recover() }()
	handler.ServeHTTP(w, r)
	return w
}

// forgetful is a store that cannot keep a no.
type forgetful struct{ idempotency.Store }

func (forgetful) Fail(context.Context, idempotency.Claim, idempotency.Response) error {
	return errors.New("the disk is full")
}

func TestMiddlewareDoesNotVouchForANoThatCouldNotBeStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // it tries for a while
		handler := idempotency.Middleware(forgetful{idempotency.NewMemory(idempotency.Options{})}, idempotency.MiddlewareOptions{})(
			http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) }))
		if got := serve(t, handler); got.Code != http.StatusConflict || got.Header().Get(idempotency.HeaderOutcome) != "" {
			t.Errorf("%d %v", got.Code, got.Header())
		}
	})
}

func TestMiddlewareDoesNotVouchForItsOwnNos(t *testing.T) {
	onEveryStore(t, idempotency.MiddlewareOptions{}, func(f *front) {
		f.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }
		f.send("POST", "k", "{}")
		for name, got := range map[string]answer{"another body under the key": f.send("POST", "k", `{"a":1}`), "no key": f.send("POST", "", "{}")} {
			if got.status < 400 || got.header.Get(idempotency.HeaderOutcome) != "" {
				t.Errorf("%s: %d %v", name, got.status, got.header)
			}
		}
	})
}

func TestOnceVouchesForAStoredRefusal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	no := func(context.Context, pgx.Tx) (idempotency.Response, error) {
		return idempotency.Response{}, &idempotency.Refusal{Response: idempotency.Response{Status: http.StatusPaymentRequired}}
	}
	for range 2 {
		got, _, err := idempotency.Once(t.Context(), r.pool, idempotency.Key{Key: "k"}, idempotency.FingerprintOf("POST", "/", nil), no)
		if err != nil || got.Header.Get(idempotency.HeaderOutcome) != idempotency.OutcomeRejected {
			t.Errorf("%+v, %v", got, err)
		}
	}
}
