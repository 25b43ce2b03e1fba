package saga

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// full is a definition in which everything is set.
func full() *Definition {
	e := Effect{Kind: "http", With: json.RawMessage(`{"a":1}`), Retry: Retry{MaxAttempts: 3, InitialBackoff: time.Second, MaxBackoff: time.Minute}, AttemptTimeout: time.Second}
	undo := e
	return &Definition{Deadline: time.Hour, Steps: []Step{{Name: "a", DependsOn: []string{"b", "c"}, Do: e, Output: map[string]string{"x": "1", "y": "2"}, Compensation: &undo}}}
}

// A field that is added to the definition and not to its fingerprint makes this fail: sagas would go by the plan of another definition.
func TestEveryFieldOfADefinitionIsInItsFingerprint(t *testing.T) {
	t.Parallel()
	want := full().Fingerprint()
	if full().Fingerprint() != want {
		t.Fatal("the same definition has two fingerprints")
	}
	d := full()
	fields := 0
	changeEach(t, reflect.ValueOf(d).Elem(), "definition", func(path string) {
		fields++
		if d.Fingerprint() == want {
			t.Errorf("%s is not in the fingerprint", path)
		}
	})
	if d.Fingerprint() != want {
		t.Fatal("the changes were not taken back")
	}
	if fields < 20 {
		t.Errorf("only %d fields were changed", fields)
	}
}

func TestTwoDefinitionsThatReadTheSameWhenRunTogetherHaveTwoFingerprints(t *testing.T) {
	t.Parallel()
	a, b := full(), full()
	a.Steps[0].DependsOn, b.Steps[0].DependsOn = []string{"bc", "d"}, []string{"b", "cd"}
	if a.Fingerprint() == b.Fingerprint() {
		t.Error("two lists of dependencies have one fingerprint")
	}
}

// changeEach changes one thing after the other in a value, and takes each change back.
func changeEach(t *testing.T, v reflect.Value, path string, changed func(string)) {
	t.Helper()
	was := reflect.ValueOf(v.Interface())
	try := func(to reflect.Value, what string) {
		v.Set(to)
		changed(path + what)
		v.Set(was)
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			changeEach(t, v.Field(i), path+"."+v.Type().Field(i).Name, changed)
		}
	case reflect.Pointer:
		try(reflect.Zero(v.Type()), " (absent)")
		changeEach(t, v.Elem(), path, changed)
	case reflect.Slice:
		try(v.Slice(0, v.Len()-1), " (shorter)")
		for i := range v.Len() {
			changeEach(t, v.Index(i), path+"[]", changed)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			value := v.MapIndex(k)
			v.SetMapIndex(k, reflect.Value{})
			changed(path + " (without " + k.String() + ")")
			v.SetMapIndex(k, reflect.ValueOf("other"))
			changed(path + " (another " + k.String() + ")")
			v.SetMapIndex(k, value)
		}
	case reflect.String:
		try(reflect.ValueOf(v.String()+"x").Convert(v.Type()), "")
	case reflect.Int, reflect.Int64:
		try(reflect.ValueOf(v.Int()+1).Convert(v.Type()), "")
	case reflect.Uint8:
		try(reflect.ValueOf(v.Uint()+1).Convert(v.Type()), "")
	default:
		t.Fatalf("%s is a %s, which this test does not know how to change", path, v.Kind())
	}
}

// The stored event must not depend on whether the plan had encoded the definition already.
func TestADefinitionThatWasEncodedBeforeIsStoredTheSame(t *testing.T) {
	t.Parallel()
	def := *full()
	def.Steps[0].DependsOn = nil
	plan, wrong := Compile(def)
	if len(wrong) > 0 {
		t.Fatal(wrong)
	}
	started := SagaStarted{
		At: At{At: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}, UID: "u", Namespace: "n", Name: "s", CreatedBy: `"definition":{}`, Labels: map[string]string{"definition": "x"}, Definition: def,
		Input: json.RawMessage(`{"definition":{"steps":null}}`), DeadlineAt: time.Date(2030, 1, 3, 0, 0, 0, 0, time.UTC),
	}
	_, _, want, err := Marshal(started)
	if err != nil {
		t.Fatal(err)
	}
	started.Encoded = plan.EncodedDefinition()
	typ, schema, data, err := Marshal(started)
	if err != nil {
		t.Fatal(err)
	}
	var a, b map[string]any
	if err := errors.Join(json.Unmarshal(want, &a), json.Unmarshal(data, &b)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a, b); diff != "" || len(want) != len(data) {
		t.Errorf("it is stored in another way (-not encoded before +encoded before):\n%s", diff)
	}
	started.Encoded = nil
	if e, err := Unmarshal(typ, schema, data); err != nil || !cmp.Equal(e, Event(started)) {
		t.Errorf("%v: %s", err, cmp.Diff(Event(started), e))
	}
}
