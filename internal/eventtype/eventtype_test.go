package eventtype_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	. "github.com/vextrus/saga-operator/internal/eventtype"
)

// moved was {"km":"3"} at first, {"km":3} later, and {"meters":3000} is what it is now.
type moved struct {
	Meters int    `json:"meters"`
	Note   string `json:"note,omitempty"`
}

type stopped struct {
	At time.Time `json:"at"`
}

func kmAsNumber(data json.RawMessage) (json.RawMessage, error) {
	var v struct {
		KM json.Number `json:"km"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	if v.KM == "" {
		return nil, errors.New("it has no km")
	}
	return json.RawMessage(`{"km":` + v.KM.String() + `}`), nil
}

func kmToMeters(data json.RawMessage) (json.RawMessage, error) {
	var v struct {
		KM int `json:"km"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	return json.Marshal(moved{Meters: 1000 * v.KM})
}

var events = MustNewRegistry(Of[moved]("Moved", 3, kmAsNumber, kmToMeters), Of[stopped]("Stopped", 1))

func recorded(name string, version int, data string) eventstore.Recorded {
	return eventstore.Recorded{Event: eventstore.Event{ID: uuid.New(), Type: name, SchemaVersion: version, Data: json.RawMessage(data)}, Stream: "robot-7", Version: 12}
}

func TestAnEventComesBackAsItWasEncoded(t *testing.T) {
	t.Parallel()
	meta := eventstore.Metadata{CorrelationID: "c", CausationID: "d", TraceParent: "t", Actor: "a"}
	for _, want := range []any{moved{Meters: 3, Note: "ü"}, moved{}, stopped{At: time.Date(2024, 2, 29, 12, 0, 0, 1, time.UTC)}} {
		e, err := events.Encode(want, meta)
		if err != nil {
			t.Fatal(err)
		}
		if e.ID.Version() != 7 || e.Metadata != meta {
			t.Errorf("the id is of UUID version %d, the metadata %v", e.ID.Version(), e.Metadata)
		}
		got, err := events.Decode(eventstore.Recorded{Event: e})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestEncodeWritesTheNewestSchemaVersion(t *testing.T) {
	t.Parallel()
	e, err := events.Encode(moved{Meters: 3}, eventstore.Metadata{})
	if err != nil || e.Type != "Moved" || e.SchemaVersion != 3 || string(e.Data) != `{"meters":3}` {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestOldVersionsAreRaised(t *testing.T) {
	t.Parallel()
	for _, r := range []eventstore.Recorded{recorded("Moved", 1, `{"km":"3"}`), recorded("Moved", 2, `{"km":3}`), recorded("Moved", 3, `{"meters":3000}`)} {
		got, err := events.Decode(r)
		if err != nil || got != any(moved{Meters: 3000}) {
			t.Errorf("schema version %d: %#v, %v", r.SchemaVersion, got, err)
		}
	}
}

func TestAnUpcasterCannotChangeTheRecordedEvent(t *testing.T) {
	t.Parallel()
	inPlace := func(data json.RawMessage) (json.RawMessage, error) {
		copy(data, `{"meters":9}`)
		return data, nil
	}
	r := MustNewRegistry(Of[moved]("Moved", 2, inPlace))
	old := recorded("Moved", 1, `{"meters":1}`)
	if got, err := r.Decode(old); err != nil || got != any(moved{Meters: 9}) {
		t.Errorf("%v, %v", got, err)
	}
	if string(old.Data) != `{"meters":1}` {
		t.Errorf("the recorded data is now %s", old.Data)
	}
}

func TestUnknownFieldsAreAccepted(t *testing.T) {
	t.Parallel()
	got, err := events.Decode(recorded("Moved", 3, `{"meters":1,"color":{"of":"the future"}}`))
	if err != nil || got != any(moved{Meters: 1}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAnUnknownTypeIsAnErrorThatSaysWhere(t *testing.T) {
	t.Parallel()
	_, err := events.Decode(recorded("Flown", 2, `{}`))
	want := &UnknownTypeError{Type: "Flown", SchemaVersion: 2, Stream: "robot-7", Version: 12}
	var got *UnknownTypeError
	if !errors.As(err, &got) || *got != *want {
		t.Fatalf("got %#v", err)
	}
	for _, word := range []string{`"Flown"`, "robot-7", "12", "newer program", "Nothing is skipped"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestANewerSchemaVersionIsAnError(t *testing.T) {
	t.Parallel()
	_, err := events.Decode(recorded("Moved", 4, `{"meters":1}`))
	want := &NewerSchemaError{Type: "Moved", SchemaVersion: 4, Known: 3, Stream: "robot-7", Version: 12}
	var got *NewerSchemaError
	if !errors.As(err, &got) || *got != *want {
		t.Fatalf("got %#v", err)
	}
}

func TestDamagedDataIsAnErrorThatSaysWhere(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]eventstore.Recorded{
		"not JSON":                     recorded("Moved", 3, `{"meters":`),
		"empty":                        recorded("Moved", 3, ``),
		"another form":                 recorded("Moved", 3, `{"meters":"far"}`),
		"null":                         recorded("Moved", 3, ` null `),
		"not JSON and to be raised":    recorded("Moved", 1, `{"km"`),
		"not what the upcaster raises": recorded("Moved", 1, `{}`),
		"schema version 0":             recorded("Moved", 0, `{}`),
	} {
		got, err := events.Decode(r)
		if err == nil || got != nil || !strings.Contains(err.Error(), "version 12 of stream robot-7") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestAFailingUpcasterIsAnErrorThatNamesItsVersions(t *testing.T) {
	t.Parallel()
	_, err := events.Decode(recorded("Moved", 1, `{}`))
	if err == nil || !strings.Contains(err.Error(), "from schema version 1 to 2: it has no km") {
		t.Error(err)
	}
}

type explosive struct{ At string }

func (explosive) MarshalJSON() ([]byte, error) { panic("boom") }
func (*explosive) UnmarshalJSON([]byte) error  { panic("boom") }

func TestAPanicOfATypeIsAnError(t *testing.T) {
	t.Parallel()
	r := MustNewRegistry(Of[explosive]("Explosive", 1), Of[moved]("Moved", 2, func(json.RawMessage) (json.RawMessage, error) { panic("boom") }))
	_, decoding := r.Decode(recorded("Explosive", 1, `{}`))
	_, raising := r.Decode(recorded("Moved", 1, `{}`))
	_, encoding := r.Encode(explosive{}, eventstore.Metadata{})
	for _, err := range []error{decoding, raising, encoding} {
		var p *PanicError
		if !errors.As(err, &p) || p.Value != "boom" || len(p.Stack) == 0 {
			t.Errorf("got %v", err)
		}
	}
}

func TestWhatIsNotRegisteredIsNotEncoded(t *testing.T) {
	t.Parallel()
	for _, e := range []any{nil, 1, "Moved", struct{}{}, &moved{}} {
		if _, err := events.Encode(e, eventstore.Metadata{}); err == nil {
			t.Errorf("%T was encoded", e)
		}
		if name, ok := events.Name(e); ok {
			t.Errorf("%T has the name %s", e, name)
		}
		if events.Check(e) == nil {
			t.Errorf("%T passes the check", e)
		}
	}
	if err := events.Check(&moved{}); !strings.Contains(err.Error(), "pointer") {
		t.Errorf("of a pointer it says: %v", err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	if got := events.Names(); !slices.Equal(got, []string{"Moved", "Stopped"}) {
		t.Error(got)
	}
	if name, ok := events.Name(stopped{}); !ok || name != "Stopped" {
		t.Error(name, ok)
	}
}

func TestARegistryRefusesWhatIsNotComplete(t *testing.T) {
	t.Parallel()
	same := func(d json.RawMessage) (json.RawMessage, error) { return d, nil }
	for name, types := range map[string][]Type{
		"one name twice":             {Of[moved]("Moved", 1), Of[stopped]("Moved", 1)},
		"one Go type twice":          {Of[moved]("Moved", 1), Of[moved]("Gone", 1)},
		"too few upcasters":          {Of[moved]("Moved", 3, same)},
		"too many upcasters":         {Of[moved]("Moved", 1, same)},
		"a missing upcaster":         {Of[moved]("Moved", 3, same, nil)},
		"version 0":                  {Of[moved]("Moved", 0)},
		"no name":                    {Of[moved]("", 1)},
		"a name that is not text":    {Of[moved]("a\x00", 1)},
		"a pointer":                  {Of[*moved]("Moved", 1)},
		"not a struct":               {Of[string]("Moved", 1)},
		"an interface":               {Of[any]("Moved", 1)},
		"a type not made with Of":    {{}},
		"a type that JSON would cut": {Of[struct{ secret int }]("Moved", 1)},
	} {
		if r, err := NewRegistry(types...); err == nil || r != nil {
			t.Errorf("%s: was accepted", name)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: MustNewRegistry does not panic", name)
				}
			}()
			MustNewRegistry(types...)
		}()
	}
}

type tree struct {
	Children []tree
	Parent   *tree
	By       map[string]time.Time
}

type (
	inner struct{ X int }
	outer struct{ X int }
)

type writesByPointer struct{ x int }

func (p *writesByPointer) MarshalJSON() ([]byte, error) { return json.Marshal(p.x) }
func (p *writesByPointer) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &p.x) }

func TestATypeThatJSONWouldCutIsRefused(t *testing.T) {
	t.Parallel()
	kept := []Type{
		Of[tree]("a", 1), Of[struct{ inner }]("b", 1), Of[struct {
			X int `json:"x"`
			inner
		}]("c", 1), Of[struct{ _ int }]("d", 1), Of[struct {
			A *big.Int
			B uuid.UUID
			C json.RawMessage
			D json.Number
		}]("e", 1),
	}
	if _, err := NewRegistry(kept...); err != nil {
		t.Error(err)
	}
	for _, cut := range []Type{
		Of[struct{ x int }]("x", 1), Of[struct{ X []struct{ y int } }]("x", 1), Of[struct{ X map[string]*struct{ y int } }]("x", 1),
		Of[struct {
			X int `json:"-"`
		}]("x", 1),
		Of[struct{ X fmt.Stringer }]("x", 1), Of[struct{ X func() }]("x", 1), Of[struct{ X complex128 }]("x", 1), Of[struct{ *inner }]("x", 1),
		Of[struct{ X writesByPointer }]("x", 1), Of[struct{ X big.Rat }]("x", 1),
		Of[struct{ V any }]("x", 1), Of[struct{ V map[string]any }]("x", 1), Of[struct{ V []any }]("x", 1),
		Of[struct {
			N int
			B int `json:"N,omitempty"`
		}]("x", 1),
		Of[struct {
			X int
			inner
		}]("x", 1), Of[struct {
			inner
			outer
		}]("x", 1),
	} {
		if _, err := NewRegistry(cut); err == nil {
			t.Errorf("%+v was accepted", cut)
		} else if !strings.Contains(err.Error(), ".") {
			t.Errorf("%v does not name the field", err)
		}
	}
}

func FuzzDecodeEvent(f *testing.F) {
	for _, seed := range []string{`{"km":"3"}`, `{"km":3}`, `{"meters":3000,"note":"x"}`, `null`, `[]`, `{"meters":1e400}`, "{\"note\":\"\xff\"}"} {
		for version := range 5 {
			f.Add("Moved", version, []byte(seed))
		}
	}
	f.Add("Stopped", 1, []byte(`{"at":"2024-02-29T12:00:00Z"}`))
	f.Add("Flown", 1, []byte(`{}`))
	f.Fuzz(func(t *testing.T, name string, version int, data []byte) {
		got, err := events.Decode(recorded(name, version, string(data)))
		if (err == nil) == (got == nil) {
			t.Fatalf("%v and %v", got, err)
		}
		if err != nil {
			if !strings.Contains(err.Error(), "version 12 of stream robot-7") {
				t.Fatalf("the error does not say where: %v", err)
			}
			return
		}
		e, err := events.Encode(got, eventstore.Metadata{})
		if err != nil {
			t.Fatalf("%#v decodes and does not encode: %v", got, err)
		}
		again, err := events.Decode(eventstore.Recorded{Event: e})
		if err != nil || !cmp.Equal(got, again) {
			t.Fatalf("%#v came back as %#v, %v", got, again, err)
		}
	})
}
