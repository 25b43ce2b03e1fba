package server

import (
	"bytes"
	"context"
	"errors"
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
	// public needs no bearer token.
	public bool
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
	if !o.public {
		caller, p := o.server.caller(ctx, r)
		if p != nil {
			p.write(w)
			return
		}
		x.user = caller.Name
		ctx = operations.WithCaller(ctx, caller)
		if wait := o.server.users.take(caller.Name); wait > 0 {
			o.server.metrics.limited.WithLabelValues("user").Inc()
			newProblem(http.StatusTooManyRequests, "TooManyRequests", "user %q makes too many requests", caller.Name).later(wait).write(w)
			return
		}
	}
	body, p := takeBody(r, o.body)
	if p != nil {
		w.Header().Set("Connection", "close") // what is left of the body is not read
		p.write(w)
		return
	}
	r = r.WithContext(ctx)
	r.Body = io.NopCloser(bytes.NewReader(body))
	o.handler.ServeHTTP(w, r)
}

// caller is who sends a request.
func (s *Server) caller(ctx context.Context, r *http.Request) (operations.Caller, *Problem) {
	unauthorized := func(code, detail string) *Problem {
		header := challenge
		if code != "" {
			header += `, error="` + code + `"`
		}
		return newProblem(http.StatusUnauthorized, "Unauthorized", "%s", detail).with("WWW-Authenticate", header)
	}
	token, err := bearerToken(r.Header)
	if err == nil && token == "" {
		return operations.Caller{}, unauthorized("", "a bearer token of the cluster is needed: Authorization: Bearer …")
	}
	var caller operations.Caller
	if err == nil {
		caller, err = s.authenticator.Authenticate(ctx, token)
	}
	switch {
	case errors.Is(err, errUnauthenticated):
		return caller, unauthorized("invalid_token", "the bearer token is not valid: it is none of this cluster's, it is made for another audience, or it has expired")
	case err != nil:
		return caller, s.failure(ctx, err)
	}
	return caller, nil
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
