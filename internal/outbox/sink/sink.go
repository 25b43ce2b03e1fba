// Package sink has what the publishers of all kinds share. Each kind has a package of its own below this one, and all are held to the suite in sinktest.
package sink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// Secret is a text that shows itself to nobody by accident: not in logs, not in JSON, not in errors.
type Secret string

const redacted = "[redacted]"

// String implements fmt.Stringer.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return s.String() }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements encoding.TextMarshaler.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Credentials are what a destination knows us by. All fields may be empty.
type Credentials struct {
	Username string
	Password Secret
	// Token is a bearer token for HTTP, an authorization token for NATS.
	Token Secret
}

// Connection is how a destination is reached, whatever its kind.
type Connection struct {
	// Dial makes connections; it is where the egress policy is asked. Required: no publisher connects by any other way.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TLS is set where the connection is encrypted.
	TLS         *tls.Config
	Credentials Credentials
	// Timeout bounds connecting, and the wait for an acknowledgement where the call has no earlier deadline; 10 s by default.
	Timeout time.Duration
	Mode    outbox.Mode
}

// Wait returns the timeout or its default.
func (c *Connection) Wait() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	const usual = 10 * time.Second
	return usual
}

// Unreachable says why no connection came about: an Error of kind Unavailable, with the reason that fits.
func Unreachable(where string, err error) *outbox.Error {
	var denied *egress.Error
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var verify *tls.CertificateVerificationError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var network net.Error
	reason := outbox.ReasonConnectionFailed
	switch {
	case errors.As(err, &denied):
		reason = outbox.ReasonEgressDenied
	case errors.As(err, &authority), errors.As(err, &host), errors.As(err, &verify), errors.As(err, &alert), errors.As(err, &record):
		reason = outbox.ReasonTLSFailed
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		reason = outbox.ReasonTimeout
	}
	return outbox.Errorf(outbox.Unavailable, reason, "connecting to %s: %w", where, err)
}

// Fill puts what a message says of itself into a subject or a routing key: {type}, {namespace} and {subject}.
func Fill(template string, m *outbox.Message) string {
	if !strings.Contains(template, "{") {
		return template
	}
	return strings.NewReplacer("{type}", m.Type, "{namespace}", m.Namespace, "{subject}", m.Subject).Replace(template)
}
