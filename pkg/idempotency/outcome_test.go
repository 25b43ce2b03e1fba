package idempotency_test

import (
	"context"
	"net/http"
	"strconv"
	"testing"

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
