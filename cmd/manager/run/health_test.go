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
	began := time.Now()
	code, body := get(t, h.handler(), "/readyz")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "[+] caches: ok") || !strings.Contains(body, "[-] database: connection refused") ||
		!strings.Contains(body, "[-] schema: context deadline exceeded") {
		t.Errorf("code %d, body:\n%s", code, body)
	}
	if took := time.Since(began); took > 10*checkTimeout {
		t.Errorf("readiness took %s", took)
	}
	if code, _ := get(t, h.handler(), "/healthz"); code != http.StatusOK {
		t.Errorf("a process that waits for its database is not alive: %d", code)
	}
	down = nil
	if code, body := get(t, h.handler(), "/readyz"); code != http.StatusOK {
		t.Errorf("code %d, body:\n%s", code, body)
	}
}
