package saga

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAnEventThatIsNotUnderstoodIsAnErrorNeverSkipped(t *testing.T) {
	t.Parallel()
	const attempt = `"step": "charge", "direction": "action", "number": 1`
	for name, test := range map[string]struct {
		typ    string
		schema int
		data   string
		want   string
	}{
		"unknown type":           {"SagaTeleported", 1, `{}`, `"SagaTeleported"`},
		"unknown schema version": {"SagaStarted", 2, `{}`, "schema version 2"},
		"unknown need":           {"SagaCompleted", 1, `{"needs": {"Saga.finally": "2.1.0"}}`, "Saga.finally (since release 2.1.0)"},
		"unknown type with need": {"StepSkipped", 1, `{"needs": {"Step.when": "2.0.0"}}`, "Step.when (since release 2.0.0)"},
		"unknown field of a step": {"SagaStarted", 1, `{"definition": {"steps": [{"name": "a", "when": "${false}"}]}}`,
			`field "when" in the definition`},
		"unknown field of an effect":      {"SagaStarted", 1, `{"definition": {"steps": [{"name": "a", "do": {"onUnknown": "Settle"}}]}}`, `"onUnknown"`},
		"unknown field of a compensation": {"SagaStarted", 1, `{"definition": {"steps": [{"name": "a", "compensation": {"retry": {"until": "1h"}}}]}}`, `"until"`},
		"unknown field with need": {"SagaStarted", 1, `{"needs": {"Step.when": "2.0.0"}, "definition": {"steps": [{"when": "${false}"}]}}`,
			"Step.when (since release 2.0.0)"},
		"unknown direction":     {"AttemptStarted", 1, `{"step": "charge", "direction": "sideways", "number": 1}`, `"sideways"`},
		"item of a list":        {"AttemptSucceeded", 1, `{"step": "charge", "item": "3", "direction": "action", "number": 1}`, `"charge[3]"`},
		"resent in a direction": {"AttemptResent", 1, `{"step": "charge", "direction": "sideways"}`, `"sideways"`},
		"accepted item":         {"AttemptAccepted", 1, `{"step": "charge", "item": "3", "direction": "action"}`, `"charge[3]"`},
		"unknown next":          {"AttemptFailed", 1, `{` + attempt + `, "outcome": "Unknown", "next": "Pray"}`, `"Pray"`},
		"unknown outcome":       {"AttemptFailed", 1, `{` + attempt + `, "outcome": "Perhaps", "next": "Retry"}`, `"Perhaps"`},
		"unknown author":        {"AttemptFailed", 1, `{` + attempt + `, "outcome": "Rejected", "author": "Oracle", "next": "Retry"}`, `"Oracle"`},
		"unknown verdict":       {"DecisionMade", 1, `{"verdict": "Replay"}`, `"Replay"`},
	} {
		_, err := Unmarshal(test.typ, test.schema, json.RawMessage(test.data))
		if unknown := new(NewerError); !errors.As(err, &unknown) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.typ) {
			t.Errorf("%s: error %v, want a NewerError with %s", name, err, test.want)
		}
	}
}

func TestABrokenEventIsNoNewerOne(t *testing.T) {
	t.Parallel()
	for _, data := range []string{`{"at": 7}`, `{"definition": {"steps": 7}}`, `{"definition": {"steps": [`, ``} {
		_, err := Unmarshal("SagaStarted", 1, json.RawMessage(data))
		if unknown := new(NewerError); err == nil || errors.As(err, &unknown) || !strings.Contains(err.Error(), "SagaStarted") {
			t.Errorf("%s: error %v", data, err)
		}
	}
}

func TestFieldsThatInformAreAddedToEventsFreely(t *testing.T) {
	t.Parallel()
	data := json.RawMessage(`{"step": "charge", "direction": "action", "number": 1, "carriedOutBy": "replica-2"}`)
	if _, err := Unmarshal("AttemptStarted", 1, data); err != nil {
		t.Error(err)
	}
	data = json.RawMessage(`{"uid": "u", "color": "blue", "definition": {"steps": [{"name": "a", "do": {"kind": "http", "with": {"any": 1}}}]}}`)
	e, err := Unmarshal("SagaStarted", 1, data)
	if s, _ := e.(SagaStarted); err != nil || s.UID != "u" || len(s.Definition.Steps) != 1 || s.Definition.Steps[0].Do.Kind != "http" {
		t.Errorf("read %+v, %v", e, err)
	}
}

func TestWhoOnlyShowsAnEventReadsWhatANewerVersionWrote(t *testing.T) {
	t.Parallel()
	e, err := UnmarshalToShow("SagaStarted", 1, json.RawMessage(`{"uid": "u", "needs": {"Step.when": "2.0.0"}, "definition": {"steps": [{"name": "a", "when": "${false}"}]}}`))
	if s, _ := e.(SagaStarted); err != nil || s.UID != "u" || len(s.Definition.Steps) != 1 {
		t.Errorf("read %+v, %v", e, err)
	}
	if _, err := UnmarshalToShow("StepSkipped", 1, json.RawMessage(`{}`)); err == nil {
		t.Error("a type that is not known is shown as nothing")
	}
}

func TestAStateThatIsNotUnderstoodIsAnError(t *testing.T) {
	t.Parallel()
	s := Fold(State{}, SagaStarted{At: At{Needs: Needs{"Step.when": "2.0.0"}}, UID: "u"}, SagaSuspended{At: At{Needs: Needs{"Saga.pause": "3.0.0"}}})
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	_, err = UnmarshalState(data)
	if unknown := new(NewerError); !errors.As(err, &unknown) || !maps.Equal(unknown.Needs, Needs{"Step.when": "2.0.0", "Saga.pause": "3.0.0"}) {
		t.Errorf("error %v", err)
	}
	if s, err := UnmarshalState(json.RawMessage(`{"uid": "u", "color": "blue"}`)); err != nil || s.UID != "u" {
		t.Errorf("read %+v, %v", s, err)
	}
}

func TestADefinitionNeedsTheFeaturesThatItUsesAndNoOthers(t *testing.T) {
	t.Parallel()
	features := []feature{
		{"Saga.deadline", "2.0.0", func(d *Definition) bool { return d.Deadline > 0 }},
		{"Step.output", "2.1.0", func(d *Definition) bool { return len(d.Steps[0].Output) > 0 }},
	}
	def := Definition{Steps: []Step{{Name: "a"}}, Deadline: 1}
	if got := needsOf(&def, features); !maps.Equal(got, Needs{"Saga.deadline": "2.0.0"}) {
		t.Errorf("it needs %v", got)
	}
	all := Needs{"Saga.deadline": "2.0.0", "Step.output": "2.1.0", "Step.when": "3.0.0"}
	if got := all.missing(features); !maps.Equal(got, Needs{"Step.when": "3.0.0"}) {
		t.Errorf("%v are missing", got)
	}
}

// TestASagaThatUsesAFeatureSaysSoFromItsFirstEventOn is not parallel: it changes the table of features.
func TestASagaThatUsesAFeatureSaysSoFromItsFirstEventOn(t *testing.T) {
	before := features
	defer func() { features = before }()
	features = []feature{{"Saga.deadline", "2.0.0", func(d *Definition) bool { return d.Deadline > 0 }}}
	for deadline, want := range map[time.Duration]Needs{0: nil, time.Hour: {"Saga.deadline": "2.0.0"}} {
		h := begin(t, Definition{Steps: []Step{step("a")}, Deadline: deadline})
		typ, schema, data, err := Marshal(h.events[0])
		if err != nil {
			t.Fatal(err)
		}
		e, err := Unmarshal(typ, schema, data)
		if err != nil || !maps.Equal(e.Requires(), want) || !maps.Equal(h.state.Needs, want) {
			t.Errorf("with deadline %s the first event needs %v, the state %v, want %v, %v", deadline, e.Requires(), h.state.Needs, want, err)
		}
	}
}

// TestAFieldThatAnOlderVersionDoesNotKnowIsAFeature: an older version must learn from the record which
// version it takes, so a field that comes later has a row in the table of features.
func TestAFieldThatAnOlderVersionDoesNotKnowIsAFeature(t *testing.T) {
	t.Parallel()
	first := []string{ // the fields of the first release; never add to them
		"Definition.deadline", "Definition.steps",
		"Effect.attemptTimeout", "Effect.kind", "Effect.retry", "Effect.with",
		"Retry.initialBackoff", "Retry.maxAttempts", "Retry.maxBackoff",
		"Step.compensation", "Step.dependsOn", "Step.do", "Step.name", "Step.output",
	}
	var fields []string
	for _, typ := range []reflect.Type{reflect.TypeFor[Definition](), reflect.TypeFor[Effect](), reflect.TypeFor[Retry](), reflect.TypeFor[Step]()} {
		for i := range typ.NumField() {
			name, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			field := typ.Name() + "." + name
			fields = append(fields, field)
			if slices.Contains(first, field) {
				continue
			}
			if !slices.ContainsFunc(features, func(f feature) bool { return f.name == field }) {
				t.Errorf("%s is no field of the first release: give it a row in the table of features", field)
			}
			if !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero") {
				t.Errorf("%s is written where it is not used, and no older version can read that", field)
			}
		}
	}
	for _, field := range first {
		if !slices.Contains(fields, field) {
			t.Errorf("%s is gone: definitions that are recorded have it", field)
		}
	}
}
