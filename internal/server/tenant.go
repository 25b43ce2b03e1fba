package server

import (
	"net/http"
	"strings"
)

const (
	// callbackTenant is the tenant of all callbacks. Callbacks of different participants are not
	// distinguished.
	callbackTenant = "callbacks"
	// publicTenant is the tenant of all requests for operations that need no credentials.
	publicTenant = "public"
)

// tenantOf returns the tenant of a user. All ServiceAccounts of a namespace are one tenant, because
// a user who can create one can create any number of them.
func tenantOf(user string) string {
	if rest, ok := strings.CutPrefix(user, "system:serviceaccount:"); ok {
		namespace, _, _ := strings.Cut(rest, ":")
		return "namespace " + namespace
	}
	return "user " + user
}

// busy counts a request for which there is no memory at the moment, and returns its problem.
func (s *Server) busy() *Problem {
	s.metrics.limited.WithLabelValues("memory").Inc()
	return newProblem(http.StatusServiceUnavailable, "Busy",
		"the operator has no memory for this request at the moment; retry, and ask for fewer items (limit) if the operation lists any").later(soon)
}
