package kafka

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink"
)

// errUnsettled says that a record was on its way when the call ended.
var errUnsettled = errors.New("no acknowledgement came in time, and the record may have been written")

// is says whether an error is one of some of the protocol's.
func is(err error, of ...*kerr.Error) bool {
	return slices.ContainsFunc(of, func(e *kerr.Error) bool { return errors.Is(err, e) })
}

// refusal returns the reason where a broker has refused records for what they are, and "" otherwise.
func refusal(err error) string {
	switch {
	case is(err, kerr.MessageTooLarge, kerr.RecordListTooLarge):
		return outbox.ReasonTooLarge
	case is(err, kerr.InvalidRecord, kerr.InvalidTimestamp):
		return outbox.ReasonRefused
	}
	return ""
}

func isUnauthorized(err error) bool {
	return is(err, kerr.SaslAuthenticationFailed, kerr.IllegalSaslState, kerr.UnsupportedSaslMechanism,
		kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed)
}

// explain says whose fault an error is.
func (s *session) explain(doing string, err error) *outbox.Error {
	fault := func(kind outbox.Kind, reason string) *outbox.Error {
		return outbox.Errorf(kind, reason, "%s at %s: %w", doing, s.where, err)
	}
	if reason := refusal(err); reason != "" {
		return fault(outbox.Rejected, reason)
	}
	switch {
	case is(err, kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InvalidTopicException):
		return fault(outbox.Unavailable, outbox.ReasonNotFound)
	case isUnauthorized(err), errors.Is(err, io.EOF) && s.hungUp.Load():
		return fault(outbox.Unavailable, outbox.ReasonUnauthorized)
	case is(err, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.LeaderNotAvailable, kerr.KafkaStorageError, kerr.ThrottlingQuotaExceeded):
		// The partition is not up to it at the moment, whatever the message.
		return fault(outbox.Unavailable, outbox.ReasonBusy)
	case isBroker(err):
		return fault(outbox.Failed, outbox.ReasonRefused)
	}
	// There was no answer. Where no connection came about either, that is why.
	if dial := s.unreachable.Load(); dial != nil && !errors.Is(*dial, context.Canceled) {
		return sink.Unreachable(s.where, *dial)
	}
	var network net.Error
	switch {
	case errors.Is(err, errUnsettled), errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return fault(outbox.Failed, outbox.ReasonTimeout)
	case errors.As(err, &network) && network.Timeout():
		return fault(outbox.Failed, outbox.ReasonTimeout)
	}
	return fault(outbox.Failed, outbox.ReasonConnectionFailed)
}

func isBroker(err error) bool {
	var e *kerr.Error
	return errors.As(err, &e)
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
