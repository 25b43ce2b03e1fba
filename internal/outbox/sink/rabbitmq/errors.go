package rabbitmq

import (
	"context"
	"errors"
	"net"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/outbox"
)

// errNack says that the broker could not keep a message.
var errNack = errors.New("the broker did not take it (basic.nack)")

// refused says whether a broker may have refused a message for what it is.
func refused(err error) bool {
	var e *outbox.Error
	return errors.As(err, &e) && e.Kind == outbox.Rejected
}

// explain says whose fault an error is.
func (s *session) explain(doing string, err error) *outbox.Error {
	fault := func(kind outbox.Kind, reason string) *outbox.Error {
		return outbox.Errorf(kind, reason, "%s at %s: %w", doing, s.target, err)
	}
	var network net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.As(err, &network) && network.Timeout():
		if s.blocked.Load() {
			return outbox.Errorf(outbox.Unavailable, outbox.ReasonBusy, "%s at %s: the broker takes nothing until it has more memory or disk: %w", doing, s.target, err)
		}
		return fault(outbox.Failed, outbox.ReasonTimeout)
	case errors.Is(err, errNack):
		return fault(outbox.Failed, outbox.ReasonRefused)
	case errors.Is(err, amqp.ErrSASL), errors.Is(err, amqp.ErrCredentials), errors.Is(err, amqp.ErrVhost):
		// A broker that refuses a login does not say so: it ends the connection, and the library draws the conclusion.
		return fault(outbox.Unavailable, outbox.ReasonUnauthorized)
	}
	var said *amqp.Error
	if !errors.As(err, &said) || !said.Server {
		return fault(outbox.Failed, outbox.ReasonConnectionFailed)
	}
	switch said.Code {
	case amqp.NotFound:
		return fault(outbox.Unavailable, outbox.ReasonNotFound)
	case amqp.AccessRefused:
		return fault(outbox.Unavailable, outbox.ReasonUnauthorized)
	case amqp.NotAllowed: // about virtual hosts
		if strings.Contains(said.Reason, "not found") {
			return fault(outbox.Unavailable, outbox.ReasonNotFound)
		}
		return fault(outbox.Unavailable, outbox.ReasonUnauthorized)
	case amqp.ConnectionForced:
		return fault(outbox.Unavailable, outbox.ReasonConnectionFailed)
	case amqp.ResourceError, amqp.InternalError:
		return fault(outbox.Unavailable, outbox.ReasonBusy)
	case amqp.ContentTooLarge:
		return fault(outbox.Rejected, outbox.ReasonTooLarge)
	case amqp.PreconditionFailed:
		if strings.Contains(said.Reason, "size") {
			return fault(outbox.Rejected, outbox.ReasonTooLarge)
		}
		return fault(outbox.Rejected, outbox.ReasonRefused)
	}
	return fault(outbox.Failed, outbox.ReasonConnectionFailed)
}

// unavailable makes of whatever went wrong before anything was sent an error of kind Unavailable.
func unavailable(err error) error {
	var e *outbox.Error
	if !errors.As(err, &e) {
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "%w", err)
	}
	if e.Kind == outbox.Unavailable {
		return err
	}
	return &outbox.Error{Kind: outbox.Unavailable, Reason: e.Reason, RetryAfter: e.RetryAfter, Err: e.Err}
}
