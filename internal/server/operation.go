package server

import (
	"bytes"
	"context"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/vextrus/saga-operator/internal/operations"
)

// operation is what stands before the handler of one operation of the document.
type operation struct {
	server *Server
	id     string
	// public operations need no bearer token. A callback operation has a callback token in its
	// path.
	public, callback bool
	// stream can be followed.
	stream bool
	// body is how large the body may be; 0 is for none.
	body    int64
	handler http.Handler
}

const challenge = `Bearer realm="saga-operator"`

func (o *operation) serve(w http.ResponseWriter, r *http.Request, x *exchange) {
	ctx := r.Context()
	if x.follows = o.stream && wantsStream(r); !x.follows {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.server.limits.Timeout)
		defer cancel()
	}
	ctx, tenant, p := o.identify(ctx, r, x)
	if p != nil {
		writeAndClose(w, p)
		return
	}
	x.memory.SetTenant(tenant)
	body, p := o.server.takeBody(r, o.body, x.memory)
	if p != nil {
		writeAndClose(w, p)
		return
	}
	// The request takes a place after its body has been read, so that a slow client does not hold
	// one.
	places := o.server.served
	if o.callback {
		places = o.server.callbacks
	}
	free, ok := places.take(tenant)
	if !ok {
		o.server.metrics.limited.WithLabelValues("concurrency").Inc()
		newProblem(http.StatusServiceUnavailable, "Busy", "the operator serves as many requests as it can at the moment; ask again").later(soon).write(w)
		return
	}
	x.place = free
	defer free()
	r = r.WithContext(operations.WithMemory(ctx, x.memory.Take))
	r.Body = io.NopCloser(bytes.NewReader(body))
	o.handler.ServeHTTP(w, r)
}

// writeAndClose writes a problem and closes the connection, because the body of the request may not
// have been read.
func writeAndClose(w http.ResponseWriter, p *Problem) {
	w.Header().Set("Connection", "close")
	p.write(w)
}

// identify authenticates a request before its body is read, and applies the rate of its user,
// callback token or address. It returns a context with the caller, and the tenant of the request.
func (o *operation) identify(ctx context.Context, r *http.Request, x *exchange) (_ context.Context, tenant string, _ *Problem) {
	s := o.server
	switch {
	case o.callback:
		tenant, p := s.authorizeCallback(ctx, r)
		return ctx, tenant, p
	case o.public:
		return ctx, publicTenant, s.limitAddress(r)
	}
	caller, p := s.caller(ctx, r)
	if p != nil {
		return ctx, "", p
	}
	x.user = caller.Name
	if wait := s.users.take(caller.Name); wait > 0 {
		s.metrics.limited.WithLabelValues("user").Inc()
		return ctx, "", newProblem(http.StatusTooManyRequests, "TooManyRequests", "user %q makes too many requests", caller.Name).later(wait)
	}
	return operations.WithCaller(ctx, caller), tenantOf(caller.Name), nil
}

const eventStream = "text/event-stream"

// wantsStream reports whether a client wants to follow.
func wantsStream(r *http.Request) bool {
	for _, accept := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(accept, ",") {
			if media, _, err := mime.ParseMediaType(part); err == nil && media == eventStream {
				return true
			}
		}
	}
	return false
}
