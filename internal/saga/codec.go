package saga

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// SchemaVersion is the version of the stored form of every event so far.
const SchemaVersion = 1

// decoder reads the stored form of one type of event.
type decoder struct {
	// decode reads the fields that this version knows, and passes over others.
	decode func(json.RawMessage) (Event, error)
	// strict refuses, with a *NewerError, what must be understood and is not.
	strict func(json.RawMessage) (Event, error)
}

// decoders knows every type of event that was ever stored.
var decoders = map[string]decoder{
	SagaStarted{}.EventType():      {decode[SagaStarted], decodeStarted},
	AttemptStarted{}.EventType():   strictly(func(e *AttemptStarted) error { return e.known() }),
	AttemptResent{}.EventType():    strictly(func(e *AttemptResent) error { return e.known() }),
	AttemptSucceeded{}.EventType(): strictly(func(e *AttemptSucceeded) error { return e.known() }),
	AttemptAccepted{}.EventType():  strictly(func(e *AttemptAccepted) error { return e.known() }),
	AttemptFailed{}.EventType():    strictly((*AttemptFailed).known),
	SagaCompensating{}.EventType(): strictly[SagaCompensating](nil),
	SagaCompleted{}.EventType():    strictly[SagaCompleted](nil),
	SagaCompensated{}.EventType():  strictly[SagaCompensated](nil),
	SagaParked{}.EventType():       strictly[SagaParked](nil),
	DecisionMade{}.EventType():     strictly((*DecisionMade).known),
	SagaAbandoned{}.EventType():    strictly[SagaAbandoned](nil),
	SagaSuspended{}.EventType():    strictly[SagaSuspended](nil),
	SagaResumed{}.EventType():      strictly[SagaResumed](nil),
}

// EventTypes returns the names of all events, for whoever has to know them all.
func EventTypes() []string { return slices.Sorted(maps.Keys(decoders)) }

// Marshal returns the stored form of an event.
func Marshal(e Event) (typ string, schemaVersion int, data json.RawMessage, err error) {
	if started, ok := e.(SagaStarted); ok && started.Encoded != nil {
		data, err = marshalStarted(&started)
	} else {
		data, err = json.Marshal(e)
	}
	if err != nil {
		return "", 0, nil, fmt.Errorf("encoding a %s event: %w", e.EventType(), err)
	}
	return e.EventType(), SchemaVersion, data, nil
}

// marshalStarted encodes a SagaStarted whose definition has been encoded before. Many sagas have the same, and it is most of the event.
func marshalStarted(e *SagaStarted) (json.RawMessage, error) {
	data, err := json.Marshal(struct {
		*SagaStarted
		Definition *Definition `json:"definition,omitempty"` // in the place of the one above, and left out
	}{SagaStarted: e})
	if err != nil {
		return nil, err
	}
	return slices.Concat(data[:len(data)-1], []byte(`,"definition":`), e.Encoded, []byte("}")), nil
}

// Unmarshal reads the stored form of an event for somebody who decides from it. What must be understood
// and is not is a *NewerError, never skipped: a fold that leaves out a fact is a wrong fold.
func Unmarshal(typ string, schemaVersion int, data json.RawMessage) (Event, error) {
	return unmarshal(typ, schemaVersion, data, func(d decoder) (Event, error) {
		e, err := d.strict(data)
		if err == nil {
			err = understood(e.Requires())
		}
		return e, err
	})
}

// UnmarshalToShow reads the stored form of an event for somebody who only shows it, such as a read
// model: what this version does not know in it is passed over. Nothing may be decided from the result.
func UnmarshalToShow(typ string, schemaVersion int, data json.RawMessage) (Event, error) {
	return unmarshal(typ, schemaVersion, data, func(d decoder) (Event, error) { return d.decode(data) })
}

func unmarshal(typ string, schemaVersion int, data json.RawMessage, read func(decoder) (Event, error)) (Event, error) {
	d, known := decoders[typ]
	var e Event
	var err error
	switch {
	case !known:
		err = newer("the event type %.80q", typ)
	case schemaVersion != SchemaVersion:
		err = newer("schema version %d", schemaVersion)
	default:
		e, err = read(d)
	}
	if err == nil {
		return e, nil
	}
	// What the record says that it needs tells more than the first thing that is not known.
	var header At
	if json.Unmarshal(data, &header) == nil {
		if missing := understood(header.Needs); missing != nil {
			err = missing
		}
	}
	return nil, fmt.Errorf("decoding a %s event: %w", typ, err)
}

// understood returns a *NewerError if this version lacks some of the features.
func understood(n Needs) error {
	if missing := n.missing(features); len(missing) > 0 {
		return &NewerError{Needs: missing}
	}
	return nil
}

// UnmarshalState reads the stored form of a state for somebody who decides from it; see Unmarshal.
func UnmarshalState(data json.RawMessage) (State, error) {
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("decoding the state of a saga: %w", err)
	}
	if err := understood(s.Needs); err != nil {
		return State{}, fmt.Errorf("decoding the state of a saga: %w", err)
	}
	return s, nil
}

func decode[E Event](data json.RawMessage) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}

// strictly makes the decoder of an event whose values have to be known; nil if it has none of these.
func strictly[E Event](known func(*E) error) decoder {
	return decoder{decode[E], func(data json.RawMessage) (Event, error) {
		var e E
		err := json.Unmarshal(data, &e)
		if err == nil && known != nil {
			err = known(&e)
		}
		return e, err
	}}
}

// decodeStarted reads a SagaStarted whose definition holds nothing that this version does not know.
func decodeStarted(data json.RawMessage) (Event, error) {
	var e struct {
		SagaStarted
		Definition strictDefinition `json:"definition"` // in the place of the one above
	}
	err := json.Unmarshal(data, &e)
	e.SagaStarted.Definition = Definition(e.Definition)
	return e.SagaStarted, err
}

// strictDefinition is a Definition that is read with nothing left over.
type strictDefinition Definition

// UnmarshalJSON implements json.Unmarshaler.
func (d *strictDefinition) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode((*Definition)(d))
	// encoding/json has no type for this error.
	if err != nil && strings.HasPrefix(err.Error(), "json: unknown field ") {
		return newer("the %s in the definition", strings.TrimPrefix(err.Error(), "json: unknown "))
	}
	return err
}

func (a Attempt) known() error {
	switch {
	case a.Direction != Action && a.Direction != Compensation:
		return newer("the direction %.80q", a.Direction)
	case a.Item != "":
		return newer("steps that run over a list, such as %.80q", a.Text())
	}
	return nil
}

func (e *AttemptFailed) known() error {
	err := e.Attempt.known()
	if _, known := statusAfter[e.Next]; !known {
		err = errors.Join(err, newer("what follows the attempt: %.80q", e.Next))
	}
	switch e.Outcome {
	case Rejected, Retryable, Unknown, NotSent:
	default:
		err = errors.Join(err, newer("the outcome %.80q", e.Outcome))
	}
	switch e.Author {
	case AuthorUnknown, AuthorParticipant, AuthorGateway, AuthorOperator:
	default:
		err = errors.Join(err, newer("the author %.80q of an outcome", e.Author))
	}
	return err
}

func (e *DecisionMade) known() error {
	if !slices.Contains(Verdicts, e.Verdict) {
		return newer("the verdict %.80q", e.Verdict)
	}
	return nil
}
