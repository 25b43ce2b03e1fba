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
	case a.Expected < AnyVersion:
		return invalid("the expected version %d is negative", a.Expected)
	case len(a.Events) == 0:
		return invalid("it has no events")
	case len(a.Events) > MaxEventsPerAppend:
		return invalid("%d events are more than the limit of %d", len(a.Events), MaxEventsPerAppend)
	}
	for i := range a.Events {
		if err := a.Events[i].check(a.Encoded); err != "" {
			return invalid("event %d: %s", i+1, err)
		}
	}
	if len(a.Messages) > MaxMessagesPerAppend {
		return invalid("%d messages are more than the limit of %d", len(a.Messages), MaxMessagesPerAppend)
	}
	for i := range a.Messages {
		if err := a.Messages[i].check(a.Encoded); err != "" {
			return invalid("message %d: %s", i+1, err)
		}
	}
	if s := a.State; s != nil {
		if err := s.check(a.Encoded); err != "" {
			return invalid("the state row: %s", err)
		}
	}
	if size := a.Size(); size > MaxAppendBytes {
		return invalid("it is %d bytes long in all, more than the limit of %d", size, MaxAppendBytes)
	}
	return nil
}

// ValidateAll does the same for appends that are one transaction.
func ValidateAll(all []Append) error {
	if len(all) == 0 || len(all) > MaxStreamsPerAppend {
		return fmt.Errorf("appending to %d streams: %w: one transaction has 1 to %d", len(all), ErrInvalid, MaxStreamsPerAppend)
	}
	streams, size := make(map[string]bool, len(all)), 0
	for i := range all {
		if err := all[i].Validate(); err != nil {
			return err
		}
		if streams[all[i].Stream] {
			return fmt.Errorf("appending to stream %q: %w: it is named twice in one transaction", all[i].Stream, ErrInvalid)
		}
		streams[all[i].Stream] = true
		size += all[i].Size()
	}
	if size > MaxAppendBytes {
		return fmt.Errorf("appending to %d streams: %w: they are %d bytes long in all, more than the limit of %d", len(all), ErrInvalid, size, MaxAppendBytes)
	}
	return nil
}

// Size is how many bytes an append brings: data, names and metadata.
func (a *Append) Size() int {
	n := len(a.Stream)
	for i := range a.Events {
		e := &a.Events[i]
		n += len(e.Type) + len(e.Data) + e.Metadata.size()
	}
	for i := range a.Messages {
		m := &a.Messages[i]
		n += len(m.Data) + m.metadataSize()
		for _, name := range m.names() {
			n += len(name)
		}
	}
	if s := a.State; s != nil {
		n += len(s.Namespace) + len(s.Name) + len(s.Phase) + len(s.State)
	}
	return n
}

func (m *Metadata) size() int {
	return len(m.CorrelationID) + len(m.CausationID) + len(m.TraceParent) + len(m.Actor)
}

// metadataSize is that of a message's metadata and labels.
func (m *Message) metadataSize() int {
	n := m.Metadata.size()
	for k, v := range m.Labels {
		n += len(k) + len(v)
	}
	return n
}

// names are the texts of a message that MaxNameBytes bounds.
func (m *Message) names() [6]string {
	return [6]string{m.Type, m.Key, m.Destination, m.Source, m.Subject, m.Namespace}
}

// Validate reports, as an ErrInvalid, what is wrong with an answer.
func (a *Answer) Validate() error {
	invalid := func(what string) error {
		return fmt.Errorf("keeping an answer to the %s of step %q of saga %s: %w: %s", a.Direction, a.Step, a.UID, ErrInvalid, what)
	}
	switch {
	case a.UID == uuid.Nil || a.Step == "" || a.Direction == "" || !text(a.Step) || !text(a.Direction):
		return invalid("it needs a saga, a step and a direction")
	case len(a.Reason) > MaxAnswerTextBytes || len(a.Message) > MaxAnswerTextBytes || !text(a.Reason) || !text(a.Message):
		return invalid(fmt.Sprintf("reason and message are text without NUL, of %d bytes at most", MaxAnswerTextBytes))
	case len(a.Response) > MaxAnswerBytes:
		return invalid(fmt.Sprintf("its response is %d bytes long, more than the limit of %d", len(a.Response), MaxAnswerBytes))
	}
	if what := checkJSON(a.Response); what != "" {
		return invalid(what)
	}
	return nil
}

// Validate reports, as an ErrInvalid, what is wrong with a callback.
func (c *Callback) Validate() error {
	if c.UID == uuid.Nil || c.Step == "" || c.Direction == "" || !text(c.Step) || !text(c.Direction) || c.ExpiresAt.IsZero() {
		return fmt.Errorf("keeping a callback of the %s of step %q of saga %s: %w: it needs a saga, a step, a direction and an end", c.Direction, c.Step, c.UID, ErrInvalid)
	}
	return nil
}

// Validate reports, as an ErrInvalid, what is wrong with a snapshot.
func (s *Snapshot) Validate() error {
	invalid := func(what string) error {
		return fmt.Errorf("saving a snapshot of stream %q: %w: %s", s.Stream, ErrInvalid, what)
	}
	if s.Stream == "" || len(s.Stream) > MaxStreamIDBytes || !text(s.Stream) || s.Version < 1 || s.SchemaVersion < 1 || s.SchemaVersion > math.MaxInt32 {
		return invalid("it needs a stream, and versions from 1 on")
	}
	if what := checkJSON(s.Data); what != "" {
		return invalid(what)
	}
	return nil
}

func (e *Event) check(encoded bool) string {
	switch {
	case e.ID == uuid.Nil:
		return "it has no id"
	case e.Type == "" || !text(e.Type):
		return "its type is not text"
	case len(e.Type) > MaxNameBytes:
		return fmt.Sprintf("its type is %d bytes long, more than the limit of %d", len(e.Type), MaxNameBytes)
	case e.SchemaVersion < 1 || e.SchemaVersion > math.MaxInt32:
		return fmt.Sprintf("its schema version %d is not between 1 and %d", e.SchemaVersion, math.MaxInt32)
	case !e.Metadata.valid():
		return "its metadata is not UTF-8"
	case e.Metadata.size() > MaxMetadataBytes:
		return fmt.Sprintf("its metadata is %d bytes long, more than the limit of %d", e.Metadata.size(), MaxMetadataBytes)
	default:
		return checkData(e.Data, encoded)
	}
}

func (m *Message) check(encoded bool) string {
	for i, name := range m.names() {
		if len(name) > MaxNameBytes {
			return fmt.Sprintf("its %s is %d bytes long, more than the limit of %d", [6]string{"type", "key", "destination", "source", "subject", "namespace"}[i], len(name), MaxNameBytes)
		}
	}
	switch {
	case m.ID == uuid.Nil || m.Type == "" || m.Key == "" || !text(m.Type) || !text(m.Key) || !text(m.Destination):
		return "it needs an id, a type and a key, all text without NUL"
	case !m.Metadata.valid() || !utf8.ValidString(m.Source+m.Subject+m.Namespace):
		return "its metadata is not UTF-8"
	case m.metadataSize() > MaxMetadataBytes:
		return fmt.Sprintf("its metadata and labels are %d bytes long, more than the limit of %d", m.metadataSize(), MaxMetadataBytes)
	default:
		return checkData(m.Data, encoded)
	}
}

func (s *SagaState) check(encoded bool) string {
	if s.UID == uuid.Nil || !text(s.Namespace) || !text(s.Name) || !text(s.Phase) {
		return "it needs a uid, and text without NUL"
	}
	for what, name := range map[string]string{"namespace": s.Namespace, "name": s.Name, "phase": s.Phase} {
		if len(name) > MaxNameBytes {
			return fmt.Sprintf("its %s is %d bytes long, more than the limit of %d", what, len(name), MaxNameBytes)
		}
	}
	return checkData(s.State, encoded)
}

// checkJSON says what is wrong with data. JSON's own check lets bytes through, inside strings, that are not UTF-8, and PostgreSQL does not.
func checkJSON(data json.RawMessage) string { return checkData(data, false) }

// checkData does the same for data of which encoding/json may have said already that it is JSON.
func checkData(data json.RawMessage, encoded bool) string {
	switch {
	case len(data) > MaxEventBytes:
		return fmt.Sprintf("its data is %d bytes long, more than the limit of %d", len(data), MaxEventBytes)
	case !encoded && !json.Valid(data), !utf8.Valid(data):
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
