package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
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
	// sequenceDigits pads sequence numbers, so that they are ordered as the text that the specification has them be.
	sequenceDigits = 10
)

// DefaultSource is the CloudEvents source of a message whose sender has not given one. The specification asks for one.
const DefaultSource = "urn:vextrus:outbox"

// Encoded is a message in the form in which it travels.
type Encoded struct {
	// Headers are the CloudEvents attributes, each with the prefix of the protocol; none in structured mode.
	Headers     map[string]string
	ContentType string
	Body        []byte
}

// attribute is one that is text.
type attribute struct{ name, value string }

// extensions are the attributes of a message that are not the specification's own, those that it has.
func (m *Message) extensions() []attribute {
	all := make([]attribute, 0, 5) //nolint:mnd // those below
	set := func(name, value string) {
		if value != "" {
			all = append(all, attribute{name, value})
		}
	}
	set("partitionkey", m.Key)
	set("traceparent", m.Metadata.TraceParent)
	set("correlationid", m.Metadata.CorrelationID)
	set("causationid", m.Metadata.CausationID)
	if m.Sequence > 0 {
		set("sequence", fmt.Sprintf("%0*d", sequenceDigits, m.Sequence))
	}
	return all
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
	for _, a := range m.extensions() {
		e.SetExtension(a.name, a.value)
	}
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
	const most = 12
	headers := make(map[string]string, most)
	headers[prefix+"specversion"], headers[prefix+"id"], headers[prefix+"type"], headers[prefix+"source"] = cloudevents.CloudEventsVersionV1, m.ID.String(), m.Type, source
	if m.Subject != "" {
		headers[prefix+"subject"] = m.Subject
	}
	if !m.RecordedAt.IsZero() {
		headers[prefix+"time"] = m.RecordedAt.UTC().Format(time.RFC3339Nano)
	}
	for _, a := range m.extensions() {
		headers[prefix+a.name] = a.value
	}
	return Encoded{Headers: headers, ContentType: contentTypeJSON, Body: m.Data}, nil
}

// Decode reads a CloudEvent of either mode from what a broker brought. Attributes in headers may have any of the protocols' prefixes.
func Decode(in Incoming) (cloudevents.Event, error) {
	if strings.HasPrefix(in.Headers["content-type"], contentTypeStructured) {
		var e cloudevents.Event
		if err := json.Unmarshal(in.Body, &e); err != nil {
			return e, fmt.Errorf("reading a CloudEvent in structured mode: %w", err)
		}
		return e, e.Validate()
	}
	e := cloudevents.New(cloudevents.CloudEventsVersionV1)
	found := false
	for header, value := range in.Headers {
		name, ok := attributeOf(header)
		if !ok {
			continue
		}
		found = true
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
	if !found {
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
