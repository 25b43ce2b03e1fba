package saga

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestAnEventThatNobodyKnowsIsAnErrorNeverSkipped(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		typ    string
		schema int
		data   string
		want   string
	}{
		"unknown type":           {"SagaTeleported", 1, `{}`, `"SagaTeleported"`},
		"unknown schema version": {"SagaStarted", 2, `{}`, "schema version 2"},
		"unknown next":           {"AttemptFailed", 1, `{"next": "Pray"}`, `"Pray"`},
		"broken data":            {"SagaStarted", 1, `{"at": 7}`, "SagaStarted"},
	} {
		if _, err := Unmarshal(test.typ, test.schema, json.RawMessage(test.data)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
}
