// Package httpheader says which headers of a request its author may give: those of actions and of
// HTTP sinks. An author who gave another's headers could speak for another saga, smuggle a request,
// or tell a service that the client is someone else.
package httpheader

import (
	"errors"
	"fmt"
	"strings"
)

// connection are the headers of the connection and of the message's form.
var connection = names{
	"host", "content-length", "content-encoding", "transfer-encoding", "connection", "keep-alive", "proxy", "proxy-*",
	"te", "trailer", "upgrade", "expect", "accept-encoding", "http2-settings",
}

// own are the headers that the operator sets.
var own = names{"idempotency-key", "x-idempotency-key", "saga-*", "traceparent", "tracestate"}

// trusted are the headers by which gateways, proxies and API servers tell a service who the client
// is, what certificate it has, and which path it wants.
var trusted = names{
	"forwarded", "forwarded-*", "x-forwarded", "x-forwarded-*", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip",
	"remote-*", "x-remote-*", "impersonate-*", "x-auth-request-*",
	"x-original-*", "x-rewrite-url", "x-envoy-original-*", "x-envoy-external-address", "x-envoy-internal",
	"client-cert", "client-cert-*", "x-client-cert*", "ssl-client-*", "x-ssl-*", "x-arr-clientcert", "x-amzn-mtls-*",
}

// spelled are headers that may be given, or that a sink refuses itself, in this spelling alone.
var spelled = names{"content-*", "user-agent", "set-cookie", "ce-*", "www-authenticate"}

// names are folded names of headers. One that ends in * stands for every name that begins so.
type names []string

// has reports whether a folded name is among them.
func (n names) has(folded string) bool {
	for _, name := range n {
		if prefix, begins := strings.CutSuffix(name, "*"); name == folded || begins && strings.HasPrefix(folded, prefix) {
			return true
		}
	}
	return false
}

// Fold returns the name under which many servers know a header: in lower case, with - for every
// character that is neither a letter nor a digit. CGI and its heirs do so (RFC 3875, section
// 4.1.18), and could not tell Idempotency_Key from Idempotency-Key.
func Fold(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, name)
}

// Check returns what is wrong with a header of this name in a request, or nil.
func Check(name string) error {
	if !IsToken(name) {
		return errors.New("is not a valid name of a header")
	}
	folded := Fold(name)
	respelled := folded != strings.ToLower(name)
	switch {
	case (connection.has(folded) || own.has(folded)) && respelled:
		return fmt.Errorf("is the same as %s to many servers, which is set by the operator or by the connection, and cannot be set here", folded)
	case connection.has(folded) || own.has(folded):
		return errors.New("is set by the operator or by the connection, and cannot be set here")
	case trusted.has(folded):
		return errors.New("tells a server who the client is or which path it wants, as only gateways and proxies may, and cannot be set here; use a header of your own")
	case spelled.has(folded) && respelled:
		return fmt.Errorf("is the same as %s to many servers, and cannot be set here; use letters, digits and - alone", folded)
	}
	return nil
}

// IsToken reports whether a text can be the name of a header (RFC 9110, section 5.6.2).
func IsToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}
