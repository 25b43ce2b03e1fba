// Package message is the participant that listens to a broker: an effect is one message, published to a sink, and, where an answer is asked for, ends with that.
//
// # Settings
//
//	sink: events                      # a Sink in the saga's namespace
//	type: com.example.charge.requested
//	subject: ${input.orderId}         # optional; the saga's name by default
//	key: ${input.orderId}             # optional; the saga's uid by default
//	data: {order: "${input.orderId}"} # optional, any JSON
//	reply: {timeout: 10m}             # optional: wait for the answer
//
// Every attempt of an effect publishes the same CloudEvent, but for the extension sagaattempt, the number of the attempt, if an
// answer is asked for. Its id is
// derived from the idempotency key, so brokers that know duplicates drop them, and its correlationid is the idempotency key.
//
// # Outcomes
//
//	the broker has taken it                     Succeeded, or accepted where an answer is asked for
//	it cannot be reached, refuses who we are,
//	or there is no such sink (yet)              Retryable, where it is sure that nothing was taken
//	a definite no to this message, or an answer
//	is asked for and the sink has no replies    Rejected
//	anything else                               Unknown
//
// # Answers
//
// An answer is a CloudEvent with the same correlationid, and should have the same sagaattempt, that comes to the sink's reply address. It says that the effect happened, unless its extension sagarejected is
// true: that is the participant's own no, which settles any doubt, whose reason and message are the fields of that name in its data. Output expressions see its data as response.body.
package message

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Kind is the name under which the participant is registered.
const Kind = "message"

// MaxDataBytes bounds the data of a message.
const MaxDataBytes = 256 << 10

// reservedTypes begin the types of what the operator itself tells of sagas.
const reservedTypes = "io.vextrus.saga."

// reasonNoSink is the reason where the sink of a step is not there.
const reasonNoSink = "SinkNotFound"

// Sinks finds the sink of a name, namespace/name.
type Sinks interface {
	Sink(name string) (outbox.Sink, bool)
}

// Participant carries out effects of kind message. It is safe for concurrent use.
type Participant struct {
	sinks  Sinks
	source func(namespace string) string
}

var _ participant.Participant = (*Participant)(nil)

// New makes a participant. Source is the CloudEvents source of the messages of a namespace's sagas.
func New(sinks Sinks, source func(namespace string) string) *Participant {
	return &Participant{sinks: sinks, source: source}
}

// settings are those of one effect, rendered.
type settings struct {
	sink, typ, subject, key string
	data                    any
	replyWithin             time.Duration
}

var sinkName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// Check implements participant.Participant.
func (*Participant) Check(with map[string]any) []saga.FieldError {
	_, errs := read(with)
	return errs
}

// read takes the settings apart and says what is wrong with them.
func read(with map[string]any) (s settings, errs []saga.FieldError) {
	fail := func(field, format string, args ...any) {
		errs = append(errs, saga.FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
	}
	text := func(field string, to *string, required bool) {
		switch v := with[field].(type) {
		case string:
			*to = v
		case nil:
			if required {
				fail(field, "is required")
			}
		default:
			fail(field, "%v is not text", v)
		}
	}
	for field := range with {
		switch field {
		case "sink", "type", "subject", "key", "data", "reply":
		default:
			fail(field, "there is no such setting")
		}
	}
	text("sink", &s.sink, true)
	text("type", &s.typ, true)
	text("subject", &s.subject, false)
	text("key", &s.key, false)
	if strings.Contains(s.sink+s.typ, "${") {
		fail("sink", "sink and type are not made of expressions: what a saga publishes is known before it starts")
	} else if s.sink != "" && !sinkName.MatchString(s.sink) {
		fail("sink", "%q is not the name of a Sink in the saga's namespace", s.sink)
	}
	if strings.HasPrefix(s.typ, reservedTypes) {
		fail("type", "types that begin with %s are the operator's own: nobody else says what has become of a saga", reservedTypes)
	}
	s.data = with["data"]
	if reply, asked := with["reply"]; asked {
		fields, _ := reply.(map[string]any)
		timeout, _ := fields["timeout"].(string)
		within, err := time.ParseDuration(timeout)
		if err != nil || within < time.Second || within > participant.MaxAnswerWithin || len(fields) != 1 {
			fail("reply.timeout", "a duration from 1s to %s is needed, such as 10m", participant.MaxAnswerWithin)
		}
		s.replyWithin = within
	}
	return s, errs
}

// Do implements participant.Participant.
func (p *Participant) Do(ctx context.Context, call participant.Call) participant.Result {
	s, errs := read(call.With)
	if len(errs) > 0 {
		return participant.Result{Kind: saga.Rejected, Author: saga.AuthorOperator, Reason: "InvalidMessage", Message: "publishing: " + errs[0].Error()}
	}
	m, err := p.message(&s, call)
	if err != nil {
		return participant.Result{Kind: saga.Rejected, Author: saga.AuthorOperator, Reason: "InvalidMessage", Message: err.Error()}
	}
	to, ok := p.sinks.Sink(m.Destination)
	if !ok {
		return participant.Result{
			Kind: saga.Retryable, Reason: reasonNoSink,
			Message: fmt.Sprintf("there is no sink %q in namespace %s, or it is not ready: see `kubectl get sinks`", s.sink, call.Saga.Namespace),
		}
	}
	if s.replyWithin > 0 && to.Replies == "" {
		return participant.Result{
			Kind: saga.Rejected, Author: saga.AuthorOperator, Reason: "InvalidMessage",
			Message: fmt.Sprintf("reply: sink %q listens nowhere, so no answer could come: name the address in its spec.replies, or leave reply out", s.sink),
		}
	}
	return result(to.Publisher.Publish(ctx, []outbox.Message{m}), &s)
}

// message makes the message of an effect: the same for each of its attempts.
func (p *Participant) message(s *settings, call participant.Call) (outbox.Message, error) {
	data, err := json.Marshal(s.data)
	if err != nil {
		return outbox.Message{}, fmt.Errorf("encoding the data of the message: %w", err)
	}
	if len(data) > MaxDataBytes {
		return outbox.Message{}, fmt.Errorf("the data of the message is %d bytes long, more than the limit of %d", len(data), MaxDataBytes)
	}
	m := eventstore.Message{
		ID: uuid.NewSHA1(uuid.NameSpaceOID, []byte(call.Key)), Type: s.typ, Key: s.key, Destination: call.Saga.Namespace + "/" + s.sink,
		Source: p.source(call.Saga.Namespace), Subject: s.subject, Namespace: call.Saga.Namespace, Data: data,
		Metadata: eventstore.Metadata{CorrelationID: call.Key, TraceParent: call.TraceParent},
	}
	if m.Key == "" {
		m.Key = call.Saga.UID
	}
	if m.Subject == "" {
		m.Subject = call.Saga.Name
	}
	out := outbox.Message{RecordedMessage: eventstore.RecordedMessage{Message: m}}
	if s.replyWithin > 0 {
		out.Attempt = call.Attempt.Number // the reply says which attempt it is to
	}
	return out, nil
}

// result says what publishing came to.
func result(errs []error, s *settings) participant.Result {
	if len(errs) == 1 && errs[0] == nil {
		if s.replyWithin > 0 {
			return participant.Result{Accepted: true, AnswerWithin: s.replyWithin}
		}
		return participant.Result{Kind: saga.Succeeded, Response: map[string]any{}}
	}
	err := errors.Join(errs...)
	failed, ok := errors.AsType[*outbox.Error](err)
	if !ok {
		return participant.Result{Kind: saga.Unknown, Reason: outbox.ReasonRefused, Message: fmt.Sprintf("publishing to sink %s: %v", s.sink, err)}
	}
	r := participant.Result{Kind: saga.Unknown, Reason: failed.Reason, RetryAfter: failed.RetryAfter, Message: fmt.Sprintf("publishing to sink %s: %v", s.sink, failed)}
	switch failed.Kind {
	case outbox.Unavailable:
		if !failed.Open {
			r.Kind = saga.Retryable
		}
	case outbox.Rejected:
		r.Kind, r.Author = saga.Rejected, saga.AuthorOperator // a broker does not know what became of earlier attempts
	case outbox.Failed:
	}
	return r
}
