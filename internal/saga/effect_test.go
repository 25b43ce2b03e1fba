package saga

import (
	"encoding/json"
	"testing"
)

func TestEffectIDTextIsReadBack(t *testing.T) {
	t.Parallel()
	for text, id := range map[string]EffectID{
		"charge":     {Step: "charge", Direction: Action},
		"charge[0]":  {Step: "charge", Item: "0", Direction: Compensation},
		"charge[17]": {Step: "charge", Item: "17", Direction: Action},
	} {
		got, err := ParseEffectID(text, id.Direction)
		if err != nil || got != id || id.Text() != text {
			t.Errorf("%q reads as %+v, %v, and %+v has the text %q", text, got, err, id, id.Text())
		}
	}
	for _, text := range []string{"", "[1]", "a[", "a[]", "a[x]", "a[01]", "a[-1]", "a[1", "a[1]]", "a[1][2]"} {
		if got, err := ParseEffectID(text, Action); err == nil {
			t.Errorf("%q reads as %+v", text, got)
		}
	}
	if got, err := ParseEffectID("a", "sideways"); err == nil {
		t.Errorf("an unknown direction reads as %+v", got)
	}
}

// TestEffectIDIsFlatInEvents keeps the stored form: an event names its effect without nesting.
func TestEffectIDIsFlatInEvents(t *testing.T) {
	t.Parallel()
	id := EffectID{Step: "charge", Item: "3", Direction: Action}
	data, err := json.Marshal(AttemptStarted{At: At{At: t0}, Attempt: Attempt{EffectID: id, Number: 2}})
	want := `{"at":"2030-01-02T03:04:05Z","step":"charge","item":"3","direction":"action","number":2}`
	if err != nil || string(data) != want {
		t.Errorf("%s, %v", data, err)
	}
	if got := id.Key("u"); got != "u/charge[3]/action" {
		t.Errorf("its key is %s", got)
	}
}

func TestStateEffectOfAnotherItemIsEmpty(t *testing.T) {
	t.Parallel()
	h := begin(t, Definition{Steps: []Step{step("a")}})
	for _, id := range []EffectID{{Step: "a", Item: "0", Direction: Action}, {Step: "b", Direction: Action}} {
		if f := h.state.effect(id); *f != (EffectState{}) {
			t.Errorf("%s is %+v", id, f)
		}
	}
}
