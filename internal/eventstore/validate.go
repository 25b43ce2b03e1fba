package eventstore

import (
	"encoding/json"
	"fmt"
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
	for i := range a.Events {
		if err := a.Events[i].check(); err != "" {
			return invalid("event %d: %s", i+1, err)
		}
	}
	for i, m := range a.Messages {
		switch {
		case m.ID == uuid.Nil || m.Type == "" || m.Key == "" || !text(m.Type) || !text(m.Key) || !text(m.Destination):
			return invalid("message %d: it needs an id, a type and a key, all text without NUL", i+1)
		case len(m.Data) > MaxEventBytes || !json.Valid(m.Data):
			return invalid("message %d: its data is not one JSON value of at most %d bytes", i+1, MaxEventBytes)
		}
	}
	if s := a.State; s != nil {
		switch {
		case s.UID == uuid.Nil || !text(s.Namespace) || !text(s.Name) || !text(s.Phase):
			return invalid("the state row needs a uid, and text without NUL")
		case len(s.State) > MaxEventBytes || !json.Valid(s.State):
			return invalid("the state is not one JSON value of at most %d bytes", MaxEventBytes)
		}
	}
	return nil
}

func (e *Event) check() string {
	switch {
	case e.ID == uuid.Nil:
		return "it has no id"
	case e.Type == "" || !text(e.Type):
		return "its type is not text"
	case len(e.Data) > MaxEventBytes:
		return fmt.Sprintf("its data is %d bytes long, more than the limit of %d", len(e.Data), MaxEventBytes)
	case !json.Valid(e.Data):
		return "its data is not one JSON value"
	default:
		return ""
	}
}

// text reports whether PostgreSQL can keep s as text.
func text(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
