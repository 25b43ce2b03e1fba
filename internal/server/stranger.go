package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"path"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/operations"
)

// anybody holds an address to its rate for what needs no credentials.
func (s *Server) anybody(r *http.Request) *Problem {
	if wait := s.addresses.take(network(r.RemoteAddr)); wait > 0 {
		s.metrics.limited.WithLabelValues("address").Inc()
		return newProblem(http.StatusTooManyRequests, "TooManyRequests", "too many requests come from this address").later(wait)
	}
	return nil
}

// stranger lets somebody be looked up who is not known yet. Only credentials that turn out to be good for nothing count for the rate of the
// address, because many users share one behind an ingress: whoever calls it has to call spend then, and free in any case.
func (s *Server) stranger(r *http.Request) (free, spend func(), _ *Problem) {
	address := network(r.RemoteAddr)
	if wait := s.addresses.wait(address); wait > 0 {
		s.metrics.limited.WithLabelValues("address").Inc()
		return nil, nil, newProblem(http.StatusTooManyRequests, "TooManyRequests", "too many requests come from this address").later(wait)
	}
	free, mine, full := s.strangers.take(address)
	if mine || full {
		s.metrics.limited.WithLabelValues("strangers").Inc()
		return nil, nil, newProblem(http.StatusServiceUnavailable, "Busy", "the operator looks up as many credentials as it can at the moment; ask again").later(soon)
	}
	return free, func() { s.addresses.spend(address) }, nil
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
	spend := func() { s.addresses.spend(network(r.RemoteAddr)) }
	if err != nil || !s.authenticator.trusts(token) {
		free, _, p := s.stranger(r)
		if p != nil {
			return operations.Caller{}, p
		}
		defer free()
	}
	if err == nil && token == "" {
		spend()
		return operations.Caller{}, unauthorized("", "a bearer token of the cluster is needed: Authorization: Bearer …")
	}
	var caller operations.Caller
	if err == nil {
		caller, err = s.authenticator.Authenticate(ctx, token)
	}
	switch {
	case errors.Is(err, errUnauthenticated):
		spend()
		return caller, unauthorized("invalid_token", "the bearer token is not valid: it is none of this cluster's, it is made for another audience, or it has expired")
	case err != nil:
		return caller, s.failure(ctx, err)
	}
	return caller, nil
}

// bearerOfCallback lets a callback in whose token somebody was given.
func (s *Server) bearerOfCallback(ctx context.Context, r *http.Request) *Problem {
	free, spend, p := s.stranger(r)
	if p != nil {
		return p
	}
	defer free()
	token := path.Base(r.URL.Path)
	_, err := cqrs.Ask(ctx, s.commands.Queries, operations.FindCallback{Token: operations.Token(token)})
	var missing *operations.NotFoundError
	switch {
	case errors.As(err, &missing):
		spend()
		return s.failure(ctx, err)
	case err != nil:
		return s.failure(ctx, err)
	}
	sum := sha256.Sum256([]byte(token))
	if wait := s.users.take("callback " + string(sum[:])); wait > 0 {
		s.metrics.limited.WithLabelValues("callback").Inc()
		return newProblem(http.StatusTooManyRequests, "TooManyRequests", "too many requests come with this token").later(wait)
	}
	return nil
}
