package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
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

// Encoded is a message in the form in which it travels.
type Encoded struct {
	// Headers are the CloudEvents attributes, each with the prefix of the protocol; none in structured mode.
	Headers     map[string]string
	ContentType string
	Body        []byte
}

// CloudEvent returns a message as a CloudEvent 1.0.
func (m *Message) CloudEvent() (cloudevents.Event, error) {
	e := cloudevents.New(cloudevents.CloudEventsVersionV1)
	e.SetID(m.ID.String())
	e.SetType(m.Type)
	e.SetSource(m.Source)
	if m.Subject != "" {
		e.SetSubject(m.Subject)
	}
	e.SetTime(m.RecordedAt)
	set := func(name, value string) {
		if value != "" {
			e.SetExtension(name, value)
		}
	}
	set("partitionkey", m.Key)
	set("traceparent", m.Metadata.TraceParent)
	set("correlationid", m.Metadata.CorrelationID)
	set("causationid", m.Metadata.CausationID)
	if m.Sequence > 0 {
		set("sequence", fmt.Sprintf("%0*d", sequenceDigits, m.Sequence))
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
	e, err := m.CloudEvent()
	if err != nil {
		return Encoded{}, &Error{Kind: Rejected, Reason: ReasonRefused, Err: err}
	}
	if mode == Structured {
		body, err := json.Marshal(e)
		if err != nil {
			return Encoded{}, Errorf(Rejected, ReasonRefused, "encoding message %s: %w", m.ID, err)
		}
		return Encoded{ContentType: contentTypeStructured, Body: body}, nil
	}
	headers := map[string]string{
		prefix + "specversion": e.SpecVersion(), prefix + "id": e.ID(), prefix + "type": e.Type(), prefix + "source": e.Source(),
		prefix + "time": e.Time().UTC().Format(time.RFC3339Nano),
	}
	if e.Subject() != "" {
		headers[prefix+"subject"] = e.Subject()
	}
	for name, value := range e.Extensions() {
		if text, ok := value.(string); ok { // CloudEvent sets no others
			headers[prefix+name] = text
		}
	}
	return Encoded{Headers: headers, ContentType: e.DataContentType(), Body: e.Data()}, nil
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
		name, ok := attribute(header)
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

func attribute(header string) (string, bool) {
	for _, prefix := range []string{"ce-", "ce_", "cloudevents:", "cloudevents_"} {
		if name, ok := strings.CutPrefix(header, prefix); ok {
			return name, true
		}
	}
	return "", false
}
