package outbox

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// Limits of a message that comes back from a broker. Its sender is not trusted: they are checked on
// its bytes, before anything is decoded.
const (
	// MaxIncomingBytes bounds the body: 1 MiB of data, also in base64 and with its attributes.
	MaxIncomingBytes       = 3 << 19
	maxIncomingHeaders     = 128
	maxIncomingHeaderBytes = 64 << 10
	// maxEnvelopeFields bounds the attributes of a CloudEvent in structured mode.
	maxEnvelopeFields = 128
)

// checkSize returns an error if a message is larger than any reply may be.
func (in *Incoming) checkSize() error {
	size := 0
	for name, value := range in.Headers {
		size += len(name) + len(value)
	}
	switch {
	case len(in.Body) > MaxIncomingBytes:
		return fmt.Errorf("reading a CloudEvent: its body is %d bytes long, and the limit is %d", len(in.Body), MaxIncomingBytes)
	case len(in.Headers) > maxIncomingHeaders:
		return fmt.Errorf("reading a CloudEvent: it has %d headers, and the limit is %d", len(in.Headers), maxIncomingHeaders)
	case size > maxIncomingHeaderBytes:
		return fmt.Errorf("reading a CloudEvent: its headers are %d bytes long, and the limit is %d", size, maxIncomingHeaderBytes)
	}
	return nil
}

// checkEnvelope returns an error if the JSON of a CloudEvent in structured mode has attributes that
// cost more than text to decode. It builds nothing. The data stay JSON when the event is decoded.
func checkEnvelope(body []byte) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.PeekKind() != '{' {
		return errors.New("reading a CloudEvent in structured mode: it is not a JSON object")
	}
	_, err := d.ReadToken()
	for fields := 0; err == nil && d.PeekKind() != '}'; fields++ {
		var t jsontext.Token
		if t, err = d.ReadToken(); err != nil {
			break
		}
		name := t.String()
		switch kind := d.PeekKind(); {
		case fields >= maxEnvelopeFields:
			return fmt.Errorf("reading a CloudEvent in structured mode: it has more than %d attributes", maxEnvelopeFields)
		case name != "data" && (kind == '{' || kind == '['):
			return fmt.Errorf("reading a CloudEvent in structured mode: its attribute %.64q is not text, a number or a boolean", name)
		}
		err = d.SkipValue()
	}
	if err == nil {
		_, err = d.ReadToken()
	}
	if err != nil {
		return fmt.Errorf("reading a CloudEvent in structured mode: %w", err)
	}
	return nil
}
