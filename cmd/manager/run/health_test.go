package run

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestReadinessSaysWhichCheckFailsAndWhy(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	h := &health{log: slog.New(slog.DiscardHandler), checks: []check{
		{"caches", func(context.Context) error { return nil }},
		{"database", func(context.Context) error { return down }},
		{"schema", func(ctx context.Context) error { // one that hangs must not take the others' answers with it
			if down == nil {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}},
	}}
	code, body := get(t, h.handler(), "/readyz")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "[+] caches: ok") || !strings.Contains(body, "[-] database: connection refused") ||
		!strings.Contains(body, "[-] schema: context deadline exceeded") {
		t.Errorf("code %d, body:\n%s", code, body)
	}
	if code, _ := get(t, h.handler(), "/healthz"); code != http.StatusOK {
		t.Errorf("a process that waits for its database is not alive: %d", code)
	}
	down = nil
	if code, body := get(t, h.handler(), "/readyz"); code != http.StatusOK {
		t.Errorf("code %d, body:\n%s", code, body)
	}
}

func TestAnAnswerThatCostsARequestIsRememberedForAMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	asked, away := 0, errors.New("connection refused")
	r := &remembered{clock: func() time.Time { return now }, ask: func(context.Context) error {
		asked++
		return away
	}}
	for range 3 {
		if err := r.why(t.Context()); !errors.Is(err, away) {
			t.Errorf("it says %v", err)
		}
	}
	away, now = nil, now.Add(rememberFor)
	if err := r.why(t.Context()); err != nil || asked != 2 {
		t.Errorf("it was asked %d times and says %v, want twice and nil", asked, err)
	}
	given, giveUp := context.WithCancel(t.Context())
	giveUp()
	now = now.Add(rememberFor)
	for range 2 {
		_ = r.why(given)
	}
	if asked != 4 {
		t.Errorf("what was asked for by a probe that gave up is remembered")
	}
}
