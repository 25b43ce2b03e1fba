package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/vextrus/saga-operator/internal/panics"
)

// checkTimeout bounds one readiness check: less than a probe's own patience, so that the probe hears the reason.
const checkTimeout = 800 * time.Millisecond

// check is one thing that has to be so for the operator to be ready.
type check struct {
	name string
	// why returns nil or the reason why it is not so.
	why func(context.Context) error
}

// rememberFor is how long an answer is good for that somebody else had to be asked for.
const rememberFor = 2 * time.Second

// remembered asks for something that costs somebody else a request, and remembers the answer for a moment: probes may come as often as they like.
type remembered struct {
	ask   func(context.Context) error
	clock func() time.Time

	mu    sync.Mutex
	at    time.Time
	heard error
}

// why is a check's. What was asked for by a probe that did not wait for the answer is not remembered.
func (r *remembered) why(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.at.IsZero() && r.clock().Sub(r.at) < rememberFor {
		return r.heard
	}
	err := r.ask(ctx)
	if !errors.Is(ctx.Err(), context.Canceled) {
		r.at, r.heard = r.clock(), err
	}
	return err
}

// health serves /healthz and /readyz. It is served before anything else works, so that it can say what does not.
type health struct {
	checks []check
	log    *slog.Logger

	mu   sync.Mutex
	last string // what was logged last
}

// serve answers until ctx is done.
func (h *health) serve(ctx context.Context, address string) error {
	if address == "0" || address == "" {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listening for health probes: %w", err)
	}
	srv := &http.Server{Handler: h.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	go func() {
		defer panics.Recover(h.log, "serving health probes")
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			h.log.Error("health probes are not answered any more", "error", err)
		}
	}()
	return nil
}

func (h *health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", h.ready)
	return mux
}

// ready runs all checks side by side and writes a line for each.
func (h *health) ready(w http.ResponseWriter, req *http.Request) {
	ctx, cancel := context.WithTimeout(req.Context(), checkTimeout)
	defer cancel()
	why := make([]error, len(h.checks))
	var wg sync.WaitGroup
	for i, c := range h.checks {
		wg.Go(func() {
			why[i] = panics.Catch(h.log, "checking whether the operator is ready", func() error { return c.why(ctx) })
		})
	}
	wg.Wait()
	var body strings.Builder
	code := http.StatusOK
	for i, c := range h.checks {
		if why[i] == nil {
			fmt.Fprintf(&body, "[+] %s: ok\n", c.name)
			continue
		}
		code = http.StatusServiceUnavailable
		fmt.Fprintf(&body, "[-] %s: %v\n", c.name, why[i])
	}
	h.note(code, body.String())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body.String()))
}

// note logs what readiness says when it has changed.
func (h *health) note(code int, body string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if body == h.last {
		return
	}
	h.last = body
	if code == http.StatusOK {
		h.log.Info("ready")
		return
	}
	h.log.Warn("not ready", "checks", strings.Split(strings.TrimSpace(body), "\n"))
}
