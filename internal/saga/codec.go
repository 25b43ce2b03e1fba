package saga

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// SchemaVersion is the version of the stored form of every event so far.
const SchemaVersion = 1

// decoders knows every type of event that was ever stored.
var decoders = map[string]func(json.RawMessage) (Event, error){
	SagaStarted{}.EventType():      decode[SagaStarted],
	AttemptStarted{}.EventType():   decode[AttemptStarted],
	AttemptResent{}.EventType():    decode[AttemptResent],
	AttemptSucceeded{}.EventType(): decode[AttemptSucceeded],
	AttemptAccepted{}.EventType():  decode[AttemptAccepted],
	AttemptFailed{}.EventType():    decodeFailed,
	SagaCompensating{}.EventType(): decode[SagaCompensating],
	SagaCompleted{}.EventType():    decode[SagaCompleted],
	SagaCompensated{}.EventType():  decode[SagaCompensated],
	SagaParked{}.EventType():       decode[SagaParked],
	DecisionMade{}.EventType():     decode[DecisionMade],
	SagaSuspended{}.EventType():    decode[SagaSuspended],
	SagaResumed{}.EventType():      decode[SagaResumed],
}

// EventTypes returns the names of all events, for whoever has to know them all.
func EventTypes() []string { return slices.Sorted(maps.Keys(decoders)) }

// Marshal returns the stored form of an event.
func Marshal(e Event) (typ string, schemaVersion int, data json.RawMessage, err error) {
	data, err = json.Marshal(e)
	if err != nil {
		return "", 0, nil, fmt.Errorf("encoding a %s event: %w", e.EventType(), err)
	}
	return e.EventType(), SchemaVersion, data, nil
}

// Unmarshal reads the stored form of an event. An unknown type or version is an error, never skipped: a fold that leaves out a fact is
// a wrong fold.
func Unmarshal(typ string, schemaVersion int, data json.RawMessage) (Event, error) {
	dec, ok := decoders[typ]
	switch {
	case !ok:
		return nil, fmt.Errorf("decoding an event: this version of the operator does not know the type %q; a newer one has written it", typ)
	case schemaVersion != SchemaVersion:
		return nil, fmt.Errorf("decoding a %s event: this version of the operator does not know its schema version %d; a newer one has written it", typ, schemaVersion)
	}
	e, err := dec(data)
	if err != nil {
		return nil, fmt.Errorf("decoding a %s event: %w", typ, err)
	}
	return e, nil
}

func decode[E Event](data json.RawMessage) (Event, error) {
	var e E
	err := json.Unmarshal(data, &e)
	return e, err
}

// decodeFailed reads an AttemptFailed. What follows the attempt has to be known: a fold must not
// guess it.
func decodeFailed(data json.RawMessage) (Event, error) {
	var e AttemptFailed
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, err
	}
	if _, known := statusAfter[e.Next]; !known {
		return nil, fmt.Errorf("this version of the operator does not know what follows the attempt: %.80q", e.Next)
	}
	return e, nil
}
