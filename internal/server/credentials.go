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

// limitAddress applies the rate of the address to a request that needs no credentials.
func (s *Server) limitAddress(r *http.Request) *Problem {
	if wait := s.addresses.take(network(r.RemoteAddr)); wait > 0 {
		s.metrics.limited.WithLabelValues("address").Inc()
		return newProblem(http.StatusTooManyRequests, "TooManyRequests", "too many requests come from this address").later(wait)
	}
	return nil
}

// admitUnverified admits a check of credentials that are not known to be valid, within the rate of
// the address and the number of concurrent checks. The caller must call free after the check. It
// must call spend if the credentials are invalid. Valid credentials do not count for the rate of
// the address, because all users behind an ingress share one.
func (s *Server) admitUnverified(r *http.Request) (free, spend func(), _ *Problem) {
	address := network(r.RemoteAddr)
	if wait := s.addresses.wait(address); wait > 0 {
		s.metrics.limited.WithLabelValues("address").Inc()
		return nil, nil, newProblem(http.StatusTooManyRequests, "TooManyRequests", "too many requests come from this address").later(wait)
	}
	free, ok := s.checks.take(address)
	if !ok {
		s.metrics.limited.WithLabelValues("credentials").Inc()
		return nil, nil, newProblem(http.StatusServiceUnavailable, "Busy", "the operator is checking as many credentials as it can at the moment; retry").later(soon)
	}
	return free, func() { s.addresses.spend(address) }, nil
}

// caller authenticates a request by its bearer token.
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
		free, _, p := s.admitUnverified(r)
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

// authorizeCallback checks that the token of a callback was issued, and applies the rate of the
// token. It returns the tenant of the saga.
func (s *Server) authorizeCallback(ctx context.Context, r *http.Request) (tenant string, _ *Problem) {
	free, spend, p := s.admitUnverified(r)
	if p != nil {
		return "", p
	}
	defer free()
	token := path.Base(r.URL.Path)
	found, err := cqrs.Ask(ctx, s.commands.Queries, operations.FindCallback{Token: operations.Token(token)})
	var missing *operations.NotFoundError
	switch {
	case errors.As(err, &missing):
		spend()
		return "", s.failure(ctx, err)
	case err != nil:
		return "", s.failure(ctx, err)
	}
	sum := sha256.Sum256([]byte(token))
	if wait := s.users.take("callback " + string(sum[:])); wait > 0 {
		s.metrics.limited.WithLabelValues("callback").Inc()
		return "", newProblem(http.StatusTooManyRequests, "TooManyRequests", "too many requests use this callback token").later(wait)
	}
	return tenantOfNamespace(found.Namespace), nil
}
