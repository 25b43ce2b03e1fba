package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/cqrs"
)

// exchange is what is noted of one request.
type exchange struct {
	id, operation, user string
	follows             bool // it asks for a stream, where there is one
	header              http.Header
	// place gives back the request's place among those that are served at once. One who follows a saga does so early.
	place func()
	// memory is what the request and everything that is read for it take of the server's memory.
	memory *budget.Account
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find what it needs.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// ServeHTTP implements http.Handler: what is done for every request, whatever becomes of it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	x := &exchange{id: uuid.NewString(), operation: noOperation, header: r.Header, place: func() {}, memory: s.memory.Open("")}
	defer x.memory.Close()
	rec := &recorder{ResponseWriter: w}
	for name, value := range map[string]string{
		"X-Request-Id": x.id, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Strict-Transport-Security": "max-age=31536000",
	} {
		w.Header().Set(name, value)
	}
	ctx := cqrs.WithTraceParent(context.WithValue(r.Context(), exchangeKey{}, x), r.Header.Get("Traceparent"))
	s.metrics.inFlight.Inc()
	defer func() {
		s.metrics.inFlight.Dec()
		p := recover()
		s.panicked(ctx, rec, x, p)
		took := time.Since(began)
		s.metrics.observe(x.operation, rec.status, took)
		// The path is not logged: that of a callback is a credential.
		s.log.DebugContext(ctx, "request", "request", x.id, "method", r.Method, "operation", x.operation, "status", rec.status, "took", took, "user", x.user, "remote", r.RemoteAddr)
		if p != nil && (p == http.ErrAbortHandler || rec.status != http.StatusInternalServerError) { //nolint:errorlint // it is a value that panics carry, not a chain
			panic(http.ErrAbortHandler) // the answer has begun: it must not look complete
		}
	}()
	s.admit(rec, r.WithContext(ctx), x)
}

// panicked answers for a handler that has panicked, where that is still possible.
func (s *Server) panicked(ctx context.Context, rec *recorder, x *exchange, p any) {
	if p == nil || p == http.ErrAbortHandler { //nolint:errorlint // it is a value that panics carry, not a chain
		return
	}
	s.log.ErrorContext(ctx, "a request has panicked", "request", x.id, "operation", x.operation, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	if rec.status == 0 {
		internalError().write(rec)
	}
}

// admit refuses a request that has too many header fields, and routes any other.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, x *exchange) {
	fields := 0
	for _, values := range r.Header {
		fields += len(values)
	}
	if fields > s.limits.Headers {
		newProblem(http.StatusRequestHeaderFieldsTooLarge, "TooLarge", "the request has %d header fields; the limit is %d", fields, s.limits.Headers).write(w)
		return
	}
	s.route(w, r, x)
}

// noOperation is the operation of a request that is for none.
const noOperation = "none"

// route hands a request to its operation.
func (s *Server) route(w http.ResponseWriter, r *http.Request, x *exchange) {
	clean := strings.HasPrefix(r.URL.Path, "/") && (path.Clean(r.URL.Path) == r.URL.Path)
	var allowed []string
	if clean {
		for _, method := range s.methods {
			as := r.Clone(r.Context())
			as.Method = method
			_, pattern := s.mux.Handler(as)
			op := s.operations[pattern]
			switch {
			case op == nil:
			case method == r.Method:
				x.operation = op.id
				op.serve(w, r, x)
				return
			default:
				allowed = append(allowed, method)
			}
		}
	}
	if p := s.limitAddress(r); p != nil {
		p.write(w)
		return
	}
	if len(allowed) > 0 {
		slices.Sort(allowed)
		newProblem(http.StatusMethodNotAllowed, "MethodNotAllowed", "%.16q is not possible here", r.Method).with("Allow", strings.Join(allowed, ", ")).write(w)
		return
	}
	newProblem(http.StatusNotFound, "NoSuchPath", "there is nothing under this path; /openapi.json says what there is").write(w)
}

// failure makes the answer of an error, and logs what a client is not told.
func (s *Server) failure(ctx context.Context, err error) *Problem {
	x := exchangeOf(ctx)
	if errors.Is(err, budget.ErrExhausted) {
		return s.busy()
	}
	if p := problemOf(err); p != nil {
		if p.Status >= http.StatusInternalServerError && !errors.Is(err, p) { // a limit that was met is counted, not logged
			s.log.WarnContext(ctx, "a request could not be served", "request", x.id, "operation", x.operation, "error", err)
		}
		return p
	}
	if cause := ctx.Err(); cause != nil { // its time is over, or the client is gone
		return newProblem(http.StatusServiceUnavailable, "Timeout", "this took too long; whether it was done is not known: ask again").later(soon)
	}
	s.log.LogAttrs(ctx, slog.LevelError, "a request has failed", slog.String("request", x.id), slog.String("operation", x.operation), slog.Any("error", err))
	return internalError()
}
