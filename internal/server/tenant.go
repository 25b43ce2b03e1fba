package server

import (
	"net/http"
	"strings"
)

// callbackTenant is whom the memory of callbacks belongs to: participants are not told apart, but they leave half to all others.
const callbackTenant = "callbacks"

// tenantOf is with whom a user shares: whoever may make ServiceAccounts in a namespace can be as many users as they like, so all of a
// namespace are one.
func tenantOf(user string) string {
	if rest, ok := strings.CutPrefix(user, "system:serviceaccount:"); ok {
		namespace, _, _ := strings.Cut(rest, ":")
		return "namespace " + namespace
	}
	return "user " + user
}

// busy is what somebody is told whose request does not fit at the moment.
func busy() *Problem {
	return newProblem(http.StatusServiceUnavailable, "Busy",
		"the operator has no room for this request at the moment; ask again, and for less at once where that is possible (limit)").later(soon)
}
