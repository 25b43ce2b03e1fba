package server

import (
	"net/http"
	"strings"
)

// publicTenant is the tenant of all requests for operations that need no credentials.
const publicTenant = "public"

// tenantOf returns the tenant of a user. All ServiceAccounts of a namespace are one tenant, because
// a user who can create one can create any number of them.
func tenantOf(user string) string {
	if rest, ok := strings.CutPrefix(user, "system:serviceaccount:"); ok {
		namespace, _, _ := strings.Cut(rest, ":")
		return tenantOfNamespace(namespace)
	}
	return "user " + user
}

// tenantOfNamespace returns the tenant of the ServiceAccounts of a namespace, and of the callbacks
// of its sagas.
func tenantOfNamespace(namespace string) string { return "namespace " + namespace }

// busy counts a request for which there is no memory at the moment, and returns its problem.
func (s *Server) busy() *Problem {
	s.metrics.limited.WithLabelValues("memory").Inc()
	return newProblem(http.StatusServiceUnavailable, "Busy",
		"the operator has no memory for this request at the moment; retry, and ask for fewer items (limit) if the operation lists any").later(soon)
}
