package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"sigs.k8s.io/yaml"
)

func TestTheDocumentIsValidOpenAPI(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.do(call{method: "GET", path: "/openapi.json"})
	if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("Content-Type"), "application/vnd.oai.openapi+json") {
		t.Fatalf("%d %v", a.status, a.header)
	}
	document, err := libopenapi.NewDocument(a.body)
	r.ok(err)
	if document.GetVersion() != "3.1.0" {
		t.Errorf("its version is %s", document.GetVersion())
	}
	v, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, errs := v.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Error(e)
		}
	}
	y := r.do(call{method: "GET", path: "/openapi.yaml"})
	var fromYAML, fromJSON any
	r.ok(yaml.Unmarshal(y.body, &fromYAML))
	r.ok(json.Unmarshal(a.body, &fromJSON))
	if diff := cmp.Diff(fromJSON, fromYAML); y.status != http.StatusOK || diff != "" {
		t.Errorf("in YAML it says something else:\n%s", diff)
	}
}

func TestTheDocumentDescribesASagaAsTheClusterDoes(t *testing.T) {
	t.Parallel()
	var d struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]json.RawMessage
				Required   []string
				Additional any `json:"additionalProperties"`
			}
		}
		Paths map[string]map[string]struct {
			OperationID string
			Security    *[]map[string][]string
			Parameters  []struct {
				Name     string
				In       string
				Required bool
			}
		}
	}
	r := newRig(t)
	r.ok(json.Unmarshal(r.server.documentJSON, &d))
	spec := d.Components.Schemas["SagaSpec"]
	for _, field := range []string{"steps", "input", "deadline", "suspend", "cancel", "ttlAfterFinished"} {
		if spec.Properties[field] == nil {
			t.Errorf("the spec has no %s", field)
		}
	}
	if !slices.Equal(spec.Required, []string{"steps"}) || spec.Additional != false {
		t.Errorf("the spec needs %v, and more is %v", spec.Required, spec.Additional)
	}
	steps := string(spec.Properties["steps"])
	if !strings.Contains(steps, "exactly one kind of action is needed") || strings.Contains(steps, "x-kubernetes-list-type") || strings.Contains(steps, `"format": "duration"`) {
		t.Errorf("steps are described by %.2000s", steps)
	}
	keyed := false
	for path, item := range d.Paths {
		for _, o := range item {
			if public := o.Security != nil && len(*o.Security) == 0; public != (o.OperationID == "answerCallback") {
				t.Errorf("%s: open to everybody: %v", o.OperationID, public)
			}
			for _, p := range o.Parameters {
				keyed = keyed || o.OperationID == "createSaga" && p.Name == "Idempotency-Key" && p.Required
				if p.In == "path" && !strings.Contains(path, "{"+p.Name+"}") {
					t.Errorf("%s has no %s in its path", o.OperationID, p.Name)
				}
			}
		}
	}
	if !keyed {
		t.Error("it does not say that creating needs an Idempotency-Key")
	}
}

func TestTheSchemaOfKubernetesIsPutIntoTheWordsOfOpenAPI(t *testing.T) {
	t.Parallel()
	got := converted(map[string]any{
		"type": "object", "x-kubernetes-map-type": "atomic", "nullable": true,
		"properties": map[string]any{
			"at":   map[string]any{"type": "string", "format": "date-time"},
			"time": map[string]any{"type": "string", "format": "duration", "pattern": "^x$"},
			"any":  map[string]any{"x-kubernetes-preserve-unknown-fields": true, "type": "object", "properties": map[string]any{}},
			"map":  map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string", "x-kubernetes-x": 1}},
			"list": map[string]any{"type": "array", "items": map[string]any{"type": "object", "properties": map[string]any{}}},
		},
	})
	want := map[string]any{
		"type": []any{"object", "null"}, "additionalProperties": false,
		"properties": map[string]any{
			"at":   map[string]any{"type": "string", "format": "date-time"},
			"time": map[string]any{"type": "string", "pattern": "^x$"},
			"any":  map[string]any{"type": "object", "properties": map[string]any{}, "additionalProperties": true},
			"map":  map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}},
			"list": map[string]any{"type": "array", "items": map[string]any{"type": "object", "properties": map[string]any{}, "additionalProperties": false}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
