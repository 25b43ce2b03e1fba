package nats

import (
	"context"
	"errors"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

// unconnected says why no connection came about.
func (p *Publisher) unconnected(ctx context.Context, d *dialer, err error) *outbox.Error {
	if p.life.Err() != nil || errors.Is(ctx.Err(), context.Canceled) {
		return p.late(ctx)
	}
	switch {
	case errors.Is(err, natsgo.ErrAuthorization), errors.Is(err, natsgo.ErrAuthExpired), errors.Is(err, natsgo.ErrAuthRevoked), errors.Is(err, natsgo.ErrAccountAuthExpired):
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonUnauthorized, "connecting to %s: %w", p.where, err)
	case errors.Is(err, natsgo.ErrSecureConnWanted):
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonTLSFailed, "connecting to %s: %w", p.where, err)
	case d.last != nil: // of which the client only says that there are no servers
		return sink.Unreachable(p.where, d.last)
	case ctx.Err() != nil: // what broke then was broken by us
		return sink.Unreachable(p.where, ctx.Err())
	}
	return sink.Unreachable(p.where, err)
}

// explain says whose fault an error is.
func (p *Publisher) explain(s *session, doing string, err error) *outbox.Error {
	kind, reason := judge(err)
	if kind == outbox.Failed && s.conn.IsClosed() {
		reason = outbox.ReasonConnectionFailed
	}
	return outbox.Errorf(kind, reason, "%s at %s: %w", doing, p.where, err)
}

func judge(err error) (outbox.Kind, string) {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, natsgo.ErrMaxPayload):
		return outbox.Rejected, outbox.ReasonTooLarge
	case errors.Is(err, natsgo.ErrPermissionViolation), errors.Is(err, natsgo.ErrAuthorization):
		return outbox.Unavailable, outbox.ReasonUnauthorized
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, natsgo.ErrNoResponders),
		errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return outbox.Unavailable, outbox.ReasonNotFound
	case errors.As(err, &api):
		return refusal(api)
	case errors.Is(err, jetstream.ErrTooManyStalledMsgs):
		return outbox.Unavailable, outbox.ReasonBusy
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, jetstream.ErrAsyncPublishTimeout), errors.Is(err, natsgo.ErrTimeout):
		return outbox.Failed, outbox.ReasonTimeout
	case errors.Is(err, natsgo.ErrConnectionClosed), errors.Is(err, natsgo.ErrDisconnected):
		return outbox.Failed, outbox.ReasonConnectionFailed
	}
	return outbox.Failed, outbox.ReasonRefused
}

// refusal says what a stream's answer means. Only a message that is too large for it is the message's fault.
func refusal(e *jetstream.APIError) (outbox.Kind, string) {
	const insufficientResources, serviceUnavailable = 10023, 503
	switch {
	case e.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum:
		return outbox.Rejected, outbox.ReasonTooLarge
	case e.Code == serviceUnavailable, e.ErrorCode == insufficientResources:
		return outbox.Unavailable, outbox.ReasonBusy
	}
	return outbox.Failed, outbox.ReasonRefused
}
