package manifest

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTwoKindsOfActionAreNotOne(t *testing.T) {
	t.Parallel()
	given := map[string]json.RawMessage{"job": json.RawMessage(`{}`), "http": json.RawMessage(`{}`)}
	if kind, _, err := only(given); err == nil || kind != "" || !strings.Contains(err.Error(), "http and job are given") {
		t.Errorf("%q, %v", kind, err)
	}
	delete(given, "http")
	if kind, with, err := only(given); err != nil || kind != "job" || string(with) != "{}" {
		t.Errorf("%q, %s, %v", kind, with, err)
	}
}
