package idempotency

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"
)

// MiddlewareOptions are those of Middleware. The zero value is usable.
type MiddlewareOptions struct {
	// Realm tells on whose behalf a request comes; nil is one realm for all. Requests of different clients have to be told apart, or one reads another's answers. Its error is answered
	// with 401.
	Realm func(*http.Request) (string, error)
	// Required says whether a request has to have a key; nil is POST and PATCH. GET, HEAD, OPTIONS and TRACE change nothing and pass through, whatever it says.
	Required func(*http.Request) bool
	// Busy is the status for a request whose first is being carried out; 0 is 409. A participant of a saga may leave it so: the operator asks again after either.
	Busy int
	// Keep says whether an answer is kept for repetitions; nil is KeepAnswer. One that is not kept gives the key back.
	Keep func(status int) bool
	// Headers are those of an answer that are kept with it; nil is DefaultHeaders.
	Headers []string
	// MaxBody is the largest body of a request, in bytes; 0 is 1 MiB.
	MaxBody int64
	// MaxAnswer is the largest body of an answer that is kept, in bytes; 0 is 1 MiB, and MaxResponse the most. Of a larger one all but the body is kept.
	MaxAnswer int
	// Timeout bounds the handler, whose context ends then; 0 is DefaultLease. It should not be longer than the store's lease.
	Timeout time.Duration
	// Logger is told when an answer could not be kept; nil is nobody.
	Logger *slog.Logger
}

// DefaultHeaders are the headers of an answer that are kept.
var DefaultHeaders = []string{"Content-Type", "Content-Language", "Content-Location", "Location", "Etag", "Last-Modified", "Retry-After"}

// KeepAnswer says which answers are kept: successes, redirections, and a definite no. These are not, because they say nothing of the effect, or because another try may come to something
// else: 400, 413, 415 and 422 (the request was not valid), 401 and 403 (who may, changes), 408, 425 and 429, and every 5xx.
func KeepAnswer(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status >= 200 && status < 500
}

// storeTimeout bounds what is asked of the store when the client may be gone already.
const storeTimeout = 5 * time.Second

// Middleware returns what is put before a handler whose requests are to act once each.
//
// The first request with a key goes to the handler; its answer is kept and then sent. A repetition gets the same status, the same body byte for byte, the headers of the options, and
// Idempotency-Replayed: true. A response of 400 and above that is kept carries [HeaderOutcome] if it is the first request's, and no earlier
// one with the key can have acted: not one that took longer than its lease, that panicked or whose response was not kept. No other response
// does. Where a key is needed and missing, or malformed, the answer is 400; while the first request is being carried out 409 with Retry-After; for another request with the same
// key 422; for a body that is too large 413; and 503 where the store cannot be reached. All of these are problem+json.
//
// What was begun is finished although the client goes away: the handler's context ends by Timeout only. The answer is collected first and sent at once, so Flush and Hijack are not there for
// the handler. An answer larger than MaxAnswer is sent on as it comes; a repetition gets its status and headers without the body, and Idempotency-Body-Omitted: true. A panic of the handler gives the key back and goes on.
//
// Whether a process that was killed had acted is not known: its key stays claimed until the lease is over, and is then carried out again. Where that must not be, use Once.
func Middleware(store Store, o MiddlewareOptions) func(http.Handler) http.Handler {
	m := &middleware{MiddlewareOptions: o, store: store}
	if m.Required == nil {
		m.Required = func(r *http.Request) bool { return r.Method == http.MethodPost || r.Method == http.MethodPatch }
	}
	if m.Busy == 0 {
		m.Busy = http.StatusConflict
	}
	if m.Keep == nil {
		m.Keep = KeepAnswer
	}
	if m.Headers == nil {
		m.Headers = DefaultHeaders
	}
	if m.MaxBody <= 0 {
		m.MaxBody = 1 << 20
	}
	if m.MaxAnswer <= 0 || m.MaxAnswer > MaxResponse {
		m.MaxAnswer = 1 << 20
	}
	if m.Timeout <= 0 {
		m.Timeout = DefaultLease
	}
	if m.Logger == nil {
		m.Logger = slog.New(slog.DiscardHandler)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, next) })
	}
}

type middleware struct {
	MiddlewareOptions
	store Store
}

// safe methods change nothing.
var safe = []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace}

func (m *middleware) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if slices.Contains(safe, r.Method) {
		next.ServeHTTP(w, r)
		return
	}
	value, err := KeyOf(r.Header)
	switch {
	case err != nil:
		newProblem(http.StatusBadRequest, fmt.Sprintf("the header %s: %v", HeaderKey, err)).write(w)
	case value != "":
		m.keyed(w, r, next, value)
	case m.Required(r):
		newProblem(http.StatusBadRequest, fmt.Sprintf("the header %s is missing: name what you want done with a key that is yours alone, such as a UUID, and send the same one again when you repeat the request", HeaderKey)).write(w)
	default:
		next.ServeHTTP(w, r)
	}
}

// keyed serves a request that has a key.
func (m *middleware) keyed(w http.ResponseWriter, r *http.Request, next http.Handler, value string) {
	key := Key{Key: value}
	if m.Realm != nil {
		var err error
		if key.Realm, err = m.Realm(r); err != nil {
			newProblem(http.StatusUnauthorized, err.Error()).write(w)
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, m.MaxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		newProblem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", m.MaxBody)).write(w)
		return
	}
	if err != nil {
		newProblem(http.StatusBadRequest, "the body cannot be read to its end").write(w)
		return
	}
	begun, err := m.store.Begin(r.Context(), key, FingerprintOf(r.Method, r.URL.RequestURI(), body))
	switch {
	case err != nil:
		m.refused(key, err).write(w)
	case begun.Response != nil:
		w.Header().Set(HeaderReplayed, "true")
		begun.Response.write(w)
	default:
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), m.Timeout)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = io.NopCloser(bytes.NewReader(body))
		m.first(w, r, next, *begun.Claim)
	}
}

// refused is the answer to a request that is not carried out.
func (m *middleware) refused(key Key, err error) Response {
	busy := (*InProgressError)(nil)
	switch {
	case errors.As(err, &busy):
		const soon = time.Second // most requests take no longer, whatever their lease
		return newProblem(m.Busy, "a request with this key is being carried out; ask again").retryAfter(min(busy.RetryAfter, soon))
	case errors.Is(err, ErrQuota):
		return newProblem(http.StatusTooManyRequests, err.Error()).retryAfter(time.Minute)
	case errors.Is(err, ErrMismatch):
		return newProblem(http.StatusUnprocessableEntity, "this key was used for another request: a new request needs a new key, and a repetition the same method, path and body")
	case errors.Is(err, ErrInvalidKey):
		return newProblem(http.StatusBadRequest, err.Error())
	}
	m.Logger.Error("an idempotency key could not be claimed", "key", key.String(), "error", err)
	return newProblem(http.StatusServiceUnavailable, "whether this was done before cannot be found out at the moment; nothing was done").retryAfter(time.Second)
}

// first carries the first request of a key out.
func (m *middleware) first(w http.ResponseWriter, r *http.Request, next http.Handler, claim Claim) {
	rec := &recorder{to: w, header: http.Header{}, limit: m.MaxAnswer}
	done := false
	defer func() {
		if !done { // a panic: nobody knows how far it came, and what it left undone is for a repetition
			m.abandon(r.Context(), claim)
		}
	}()
	next.ServeHTTP(rec, r)
	done = true
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	if !m.Keep(rec.status) {
		if no(rec.status) {
			m.release(r.Context(), claim)
		} else {
			m.abandon(r.Context(), claim)
		}
		rec.send()
		return
	}
	answer := m.answer(rec)
	vouched := claim.First && no(rec.status)
	if vouched {
		answer.Header.Set(HeaderOutcome, OutcomeRejected)
	}
	err := m.keep(r.Context(), claim, func(ctx context.Context) error {
		if rec.status >= http.StatusBadRequest {
			return m.store.Fail(ctx, claim, answer)
		}
		return m.store.Complete(ctx, claim, answer)
	})
	if errors.Is(err, ErrFenced) && !rec.streaming { // another's answer counts, and this one must not contradict it
		newProblem(m.Busy, "this took longer than its key was held, and another request with the key has taken over; ask again for its answer").retryAfter(time.Second).write(w)
		return
	}
	if vouched && err == nil && !rec.streaming { // what could not be kept may come to something else the next time
		rec.header.Set(HeaderOutcome, OutcomeRejected)
	}
	rec.send()
}

// no reports whether a handler says by a status that it has not acted. What says nothing of that is no no.
func no(status int) bool {
	return status >= http.StatusBadRequest && status < http.StatusInternalServerError && status != http.StatusRequestTimeout
}

// answer is what a repetition gets. Where the body was too large to be kept it is what the first answer said without it: a success must not become a refusal.
func (m *middleware) answer(rec *recorder) Response {
	a := Response{Status: rec.status, Header: http.Header{}, Body: rec.body.Bytes()}
	for _, name := range m.Headers {
		name = http.CanonicalHeaderKey(name)
		if rec.streaming && slices.Contains(ofBody, name) {
			continue
		}
		if values := rec.header.Values(name); len(values) > 0 {
			a.Header[name] = values
		}
	}
	if rec.streaming {
		a.Header.Set(HeaderBodyOmitted, "true")
	}
	return a
}

// ofBody are headers that say how a body is to be read, and nothing where there is none.
var ofBody = []string{"Content-Encoding", "Content-Language", "Content-Type"}

// release gives a key back. Where that does not succeed the lease ends by itself.
func (m *middleware) release(ctx context.Context, claim Claim) {
	_ = m.keep(ctx, claim, func(ctx context.Context) error { return m.store.Release(ctx, claim) })
}

// abandon lets the next request with a key take it over at once.
func (m *middleware) abandon(ctx context.Context, claim Claim) {
	_ = m.keep(ctx, claim, func(ctx context.Context) error { return m.store.Abandon(ctx, claim) })
}

// keep writes to the store, although the handler's time may be over, and more than once where it has to.
func (m *middleware) keep(ctx context.Context, claim Claim, write func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	const pause = 100 * time.Millisecond
	for {
		err := write(ctx)
		if err == nil || errors.Is(err, ErrFenced) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			m.Logger.Error("what became of a request could not be kept; it is carried out again if it is repeated after its lease", "key", claim.Key.String(), "error", err)
			return err
		}
	}
}

// recorder collects an answer until it is kept. One that is too large for that it sends on.
type recorder struct {
	to        http.ResponseWriter
	header    http.Header
	status    int
	body      bytes.Buffer
	limit     int
	streaming bool
}

// Header implements http.ResponseWriter.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= http.StatusOK { // what comes before an answer is not sent
		r.status = status
	}
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	if r.streaming {
		return r.to.Write(b)
	}
	if r.body.Len()+len(b) > r.limit {
		r.streaming = true
		r.head()
		if _, err := r.to.Write(r.body.Bytes()); err != nil {
			return 0, err
		}
		r.body = bytes.Buffer{}
		return r.to.Write(b)
	}
	return r.body.Write(b)
}

func (r *recorder) head() {
	for name, values := range r.header {
		r.to.Header()[name] = values
	}
	r.to.WriteHeader(r.status)
}

// send sends the answer, unless that has been done.
func (r *recorder) send() {
	if !r.streaming {
		r.head()
		_, _ = r.to.Write(r.body.Bytes()) // whoever is gone asks again
	}
}
