package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
)

// Mode is how a CloudEvent stands in a message of the destination's protocol.
type Mode string

// The modes of the CloudEvents specification.
const (
	// Binary puts the attributes into headers and the data into the body.
	Binary Mode = "Binary"
	// Structured puts everything into the body, as JSON.
	Structured Mode = "Structured"
)

const (
	contentTypeJSON       = "application/json"
	contentTypeStructured = "application/cloudevents+json"
	// zeros pad sequence numbers, so that they are ordered as the text that the specification has them be.
	zeros = "0000000000"
)

// DefaultSource is the CloudEvents source of a message whose sender has not given one. The specification asks for one.
const DefaultSource = "urn:vextrus:outbox"

// Encoded is a message in the form in which it travels.
type Encoded struct {
	// Headers are the CloudEvents attributes, each with the prefix of the protocol; none in structured mode.
	Headers     []Header
	ContentType string
	Body        []byte
}

// Incoming is the message as a consumer gets it.
func (e *Encoded) Incoming() Incoming {
	in := Incoming{Headers: map[string]string{"content-type": e.ContentType}, Body: e.Body}
	for _, h := range e.Headers {
		in.Headers[strings.ToLower(h.Name)] = h.Value
	}
	return in
}

// Header is an attribute on its way.
type Header struct{ Name, Value string }

// The attributes of a message. CloudEvent and binary write the same ones.
const (
	specVersion = iota
	eventID
	eventType
	eventSource
	eventSubject
	eventTime
	partitionKey
	traceParent
	correlationID
	causationID
	sequence
	attempt
	attributes // how many there are
)

// names are those of the attributes, without the prefix of a protocol.
var names = [attributes]string{"specversion", "id", "type", "source", "subject", "time", "partitionkey", "traceparent", "correlationid", "causationid", "sequence", "sagaattempt"}

// prefixed keeps the names with the prefix of each protocol: made once, and not for each message.
var prefixed sync.Map

func namesWith(prefix string) *[attributes]string {
	if known, ok := prefixed.Load(prefix); ok {
		return known.(*[attributes]string) //nolint:forcetypeassert // nothing else is stored
	}
	all := names
	for i := range all {
		all[i] = prefix + all[i]
	}
	prefixed.Store(prefix, &all)
	return &all
}

// extensions calls set with the attributes of a message that are not the specification's own, those that it has.
func (m *Message) extensions(set func(attribute int, value string)) {
	for attribute, value := range [...]string{partitionKey: m.Key, traceParent: m.Metadata.TraceParent, correlationID: m.Metadata.CorrelationID, causationID: m.Metadata.CausationID} {
		if value != "" {
			set(attribute, value)
		}
	}
	if m.Sequence > 0 {
		text := strconv.FormatInt(m.Sequence, 10)
		set(sequence, zeros[:max(len(zeros)-len(text), 0)]+text)
	}
	if m.Attempt > 0 {
		set(attempt, strconv.Itoa(m.Attempt))
	}
}

// source is the message's, or the default.
func (m *Message) source() string {
	if m.Source == "" {
		return DefaultSource
	}
	return m.Source
}

// CloudEvent returns a message as a CloudEvent 1.0.
func (m *Message) CloudEvent() (cloudevents.Event, error) {
	e := cloudevents.New(cloudevents.CloudEventsVersionV1)
	e.SetID(m.ID.String())
	e.SetType(m.Type)
	e.SetSource(m.source())
	if m.Subject != "" {
		e.SetSubject(m.Subject)
	}
	if !m.RecordedAt.IsZero() {
		e.SetTime(m.RecordedAt)
	}
	m.extensions(func(attribute int, value string) { e.SetExtension(names[attribute], value) })
	e.SetDataContentType(contentTypeJSON)
	e.DataEncoded = m.Data // SetData would encode it anew
	if err := e.Validate(); err != nil {
		return e, fmt.Errorf("making a CloudEvent of message %s: %w", m.ID, err)
	}
	return e, nil
}

// Encode returns a message as it travels. The prefix of attributes in headers is the protocol's: "ce-" for HTTP and NATS, "ce_" for Kafka, "cloudEvents:" for AMQP. What
// cannot be encoded is an *Error of kind Rejected.
func (m *Message) Encode(mode Mode, prefix string) (Encoded, error) {
	if mode != Structured {
		return m.binary(prefix)
	}
	e, err := m.CloudEvent()
	if err != nil {
		return Encoded{}, &Error{Kind: Rejected, Reason: ReasonRefused, Err: err}
	}
	body, err := json.Marshal(e)
	if err != nil {
		return Encoded{}, Errorf(Rejected, ReasonRefused, "encoding message %s: %w", m.ID, err)
	}
	return Encoded{ContentType: contentTypeStructured, Body: body}, nil
}

// binary writes the attributes without the detour over an Event, which costs as much as everything else that the relay does with a message.
func (m *Message) binary(prefix string) (Encoded, error) {
	source := m.source()
	if _, err := url.Parse(source); err != nil || m.Type == "" {
		return Encoded{}, Errorf(Rejected, ReasonRefused, "making a CloudEvent of message %s: it needs a type, and the source %q has to be a URI reference", m.ID, source)
	}
	called := namesWith(prefix)
	headers := make([]Header, 0, attributes)
	set := func(attribute int, value string) { headers = append(headers, Header{called[attribute], value}) }
	set(specVersion, cloudevents.CloudEventsVersionV1)
	set(eventID, m.ID.String())
	set(eventType, m.Type)
	set(eventSource, source)
	if m.Subject != "" {
		set(eventSubject, m.Subject)
	}
	if !m.RecordedAt.IsZero() {
		set(eventTime, m.RecordedAt.UTC().Format(time.RFC3339Nano))
	}
	m.extensions(set)
	return Encoded{Headers: headers, ContentType: contentTypeJSON, Body: m.Data}, nil
}

// Decode reads a CloudEvent of either mode from what a broker brought. Attributes in headers may have any of the protocols' prefixes.
// Its sender is not trusted: a message beyond the limits is not decoded.
func Decode(in Incoming) (cloudevents.Event, error) {
	if err := in.checkSize(); err != nil {
		return cloudevents.Event{}, err
	}
	if strings.HasPrefix(in.Headers["content-type"], contentTypeStructured) {
		var e cloudevents.Event
		if err := checkEnvelope(in.Body); err != nil {
			return e, err
		}
		if err := json.Unmarshal(in.Body, &e); err != nil {
			return e, fmt.Errorf("reading a CloudEvent in structured mode: %w", err)
		}
		return e, e.Validate()
	}
	e := cloudevents.New(cloudevents.CloudEventsVersionV1)
	found := map[string]bool{}
	for header, value := range in.Headers {
		name, ok := attributeOf(header)
		if !ok {
			continue
		}
		if found[name] { // with two prefixes, and each of them may be what another program reads
			return e, fmt.Errorf("reading a CloudEvent: it has the attribute %.64q twice", name)
		}
		found[name] = true
		switch name {
		case "specversion":
		case "id":
			e.SetID(value)
		case "type":
			e.SetType(value)
		case "source":
			e.SetSource(value)
		case "subject":
			e.SetSubject(value)
		case "time":
			if at, err := time.Parse(time.RFC3339Nano, value); err == nil {
				e.SetTime(at)
			}
		default:
			e.SetExtension(name, value)
		}
	}
	if len(found) == 0 {
		return e, errors.New("reading a CloudEvent: there are no attributes in the headers, and the content type is not " + contentTypeStructured)
	}
	contentType := in.Headers["content-type"]
	if contentType == "" {
		contentType = contentTypeJSON
	}
	e.SetDataContentType(contentType)
	e.DataEncoded = in.Body
	return e, e.Validate()
}

func attributeOf(header string) (string, bool) {
	for _, prefix := range []string{"ce-", "ce_", "cloudevents:", "cloudevents_"} {
		if name, ok := strings.CutPrefix(header, prefix); ok {
			return name, true
		}
	}
	return "", false
}
