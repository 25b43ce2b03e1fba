package eventstore

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Validate reports, as an ErrInvalid, what is wrong with an append before anything is sent. Every implementation calls it first.
func (a *Append) Validate() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("appending to stream %q: %w: %s", a.Stream, ErrInvalid, fmt.Sprintf(format, args...))
	}
	switch {
	case a.Stream == "" || len(a.Stream) > MaxStreamIDBytes || !text(a.Stream):
		return invalid("a stream's name is 1 to %d bytes of text without NUL", MaxStreamIDBytes)
	case a.Expected < 0:
		return invalid("the expected version %d is negative", a.Expected)
	case len(a.Events) == 0:
		return invalid("it has no events")
	case len(a.Events) > MaxEventsPerAppend:
		return invalid("%d events are more than the limit of %d", len(a.Events), MaxEventsPerAppend)
	}
	size := 0
	for i := range a.Events {
		if err := a.Events[i].check(); err != "" {
			return invalid("event %d: %s", i+1, err)
		}
		size += len(a.Events[i].Data)
	}
	if len(a.Messages) > MaxMessagesPerAppend {
		return invalid("%d messages are more than the limit of %d", len(a.Messages), MaxMessagesPerAppend)
	}
	for i := range a.Messages {
		if err := a.Messages[i].check(); err != "" {
			return invalid("message %d: %s", i+1, err)
		}
		size += len(a.Messages[i].Data)
	}
	if s := a.State; s != nil {
		if err := s.check(); err != "" {
			return invalid("the state row: %s", err)
		}
		size += len(s.State)
	}
	if size > MaxAppendBytes {
		return invalid("its data is %d bytes long in all, more than the limit of %d", size, MaxAppendBytes)
	}
	return nil
}

func (e *Event) check() string {
	switch {
	case e.ID == uuid.Nil:
		return "it has no id"
	case e.Type == "" || !text(e.Type):
		return "its type is not text"
	case e.SchemaVersion < 1 || e.SchemaVersion > math.MaxInt32:
		return fmt.Sprintf("its schema version %d is not between 1 and %d", e.SchemaVersion, math.MaxInt32)
	case !e.Metadata.valid():
		return "its metadata is not UTF-8"
	default:
		return checkJSON(e.Data)
	}
}

func (m *Message) check() string {
	switch {
	case m.ID == uuid.Nil || m.Type == "" || m.Key == "" || !text(m.Type) || !text(m.Key) || !text(m.Destination):
		return "it needs an id, a type and a key, all text without NUL"
	case !m.Metadata.valid():
		return "its metadata is not UTF-8"
	default:
		return checkJSON(m.Data)
	}
}

func (s *SagaState) check() string {
	if s.UID == uuid.Nil || !text(s.Namespace) || !text(s.Name) || !text(s.Phase) {
		return "it needs a uid, and text without NUL"
	}
	return checkJSON(s.State)
}

// checkJSON says what is wrong with data. JSON's own check lets bytes through, inside strings, that are not UTF-8, and PostgreSQL does not.
func checkJSON(data json.RawMessage) string {
	switch {
	case len(data) > MaxEventBytes:
		return fmt.Sprintf("its data is %d bytes long, more than the limit of %d", len(data), MaxEventBytes)
	case !json.Valid(data) || !utf8.Valid(data):
		return "its data is not one JSON value in UTF-8"
	default:
		return ""
	}
}

// valid reports whether the metadata comes back as it is: encoding it would replace what is not UTF-8.
func (m *Metadata) valid() bool {
	return utf8.ValidString(m.CorrelationID) && utf8.ValidString(m.CausationID) && utf8.ValidString(m.TraceParent) && utf8.ValidString(m.Actor)
}

// text reports whether PostgreSQL can keep s as text.
func text(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
