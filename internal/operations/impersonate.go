package operations

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"k8s.io/client-go/transport"
)

// serviceAccountPrefix begins the names of ServiceAccounts.
const serviceAccountPrefix = "system:serviceaccount:"

type impersonatedKey struct{}

// onBehalf returns the context for a write to the API server. With Options.Impersonate the write has
// the identity and the rights of the caller. Otherwise it has the rights of the operator, and an annotation
// names the caller.
func (h *handlers) onBehalf(ctx context.Context) (context.Context, error) {
	if !h.Impersonate {
		return ctx, nil
	}
	who, ok := CallerOf(ctx)
	if !ok {
		return nil, errNobody // a write without an identity would have the operator's rights
	}
	config, err := impersonationOf(who)
	if err != nil {
		return nil, err
	}
	return context.WithValue(ctx, impersonatedKey{}, config), nil
}

// impersonationOf returns the identity of a caller as the API server accepts it under constrained
// impersonation (KEP-5284). The API server itself knows the groups of a ServiceAccount and takes only
// its name. Extra values of the caller are left out: each of their keys would need a rule of its own
// in the operator's role.
func impersonationOf(who Caller) (transport.ImpersonationConfig, error) {
	c := transport.ImpersonationConfig{UserName: who.Name}
	if !strings.HasPrefix(who.Name, serviceAccountPrefix) {
		c.UID, c.Groups = who.UID, who.Groups
	}
	for _, v := range append([]string{c.UserName, c.UID}, c.Groups...) {
		// A header loses the spaces around its value, and the API server would take another identity.
		if strings.TrimSpace(v) != v {
			return c, &RejectedError{Message: fmt.Sprintf("the operator cannot act in the name of user %q: %q begins or ends with a space", who.Name, v)}
		}
	}
	return c, nil
}

// writeError classifies the error of a write that onBehalf has prepared. If the cluster does not let the
// operator impersonate the caller, the error says what to do.
func (h *handlers) writeError(doing string, err error) error {
	err = fromAPIServer(doing, err)
	var rejected *RejectedError
	if h.Impersonate && errors.As(err, &rejected) && strings.Contains(rejected.Message, "impersonat") {
		return &RejectedError{Message: rejected.Message +
			"; the administrator of the operator has to bind the ClusterRole saga-impersonator to it; members of system:masters have to use kubectl"}
	}
	return err
}

// impersonatingTransport sends requests with the identity that onBehalf has put into their context.
type impersonatingTransport struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t impersonatingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	config, ok := r.Context().Value(impersonatedKey{}).(transport.ImpersonationConfig)
	if !ok {
		return t.next.RoundTrip(r)
	}
	return transport.NewImpersonatingRoundTripper(config, t.next).RoundTrip(r)
}
