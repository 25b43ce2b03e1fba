package v1_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"
)

const crdFile = "../../config/crd/bases/saga.vextrus.io_sagas.yaml"

// schema is what the tests look at in a schema.
type schema struct {
	Type                 any               `json:"type"`
	Description          string            `json:"description"`
	Properties           map[string]schema `json:"properties"`
	AdditionalProperties *schema           `json:"additionalProperties"`
	Items                *schema           `json:"items"`
	MaxLength            *int              `json:"maxLength"`
	MaxItems             *int              `json:"maxItems"`
	MaxProperties        *int              `json:"maxProperties"`
	Maximum              *float64          `json:"maximum"`
	Enum                 []any             `json:"enum"`
	Format               string            `json:"format"`
	Default              any               `json:"default"`
}

func (s schema) walk(path string, visit func(path string, s schema)) {
	visit(path, s)
	for name, p := range s.Properties {
		p.walk(path+"."+name, visit)
	}
	if s.Items != nil {
		s.Items.walk(path+"[]", visit)
	}
	if s.AdditionalProperties != nil {
		s.AdditionalProperties.walk(path+"{}", visit)
	}
}

func readSchema(t *testing.T) schema {
	t.Helper()
	data, err := os.ReadFile(crdFile)
	if err != nil {
		t.Fatal(err)
	}
	if data, err = yaml.ToJSON(data); err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema schema `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(data, &crd); err != nil {
		t.Fatal(err)
	}
	return crd.Spec.Versions[0].Schema.OpenAPIV3Schema
}

func TestEveryFieldIsDocumentedForKubectlExplain(t *testing.T) {
	t.Parallel()
	fields := 0
	readSchema(t).walk("saga", func(path string, s schema) {
		fields++
		// The API server documents metadata itself; the elements of a list of texts are documented with the list.
		if s.Description == "" && path != "saga.metadata" && path != "saga.spec.steps[].dependsOn[]" {
			t.Errorf("%s has no description", path)
		}
	})
	if fields < 50 {
		t.Errorf("only %d fields were looked at", fields)
	}
}

func TestEverythingThatAUserWritesHasABound(t *testing.T) {
	t.Parallel()
	spec := readSchema(t).Properties["spec"]
	spec.walk("spec", func(path string, s schema) {
		switch {
		case s.Type == "string" && s.MaxLength == nil && s.Enum == nil,
			s.Type == "array" && s.MaxItems == nil,
			s.Type == "integer" && s.Maximum == nil,
			s.AdditionalProperties != nil && s.MaxProperties == nil:
			t.Errorf("%s has no bound", path)
		}
	})
}

// Defaults in a schema are written into every object and stay there for good; those of this resource are the operator's, and in the description.
func TestTheSchemaHasNoDefaults(t *testing.T) {
	t.Parallel()
	readSchema(t).walk("saga", func(path string, s schema) {
		if s.Default != nil {
			t.Errorf("%s has the default %v", path, s.Default)
		}
	})
}

func TestDescriptionsSayLimitsAndDefaults(t *testing.T) {
	t.Parallel()
	said := map[string][]string{
		"spec.deadline":                         {"720h", "Default: none"},
		"spec.ttlAfterFinished":                 {"8760h", "Default:"},
		"spec.input":                            {"64 KiB", "Default:"},
		"spec.suspend":                          {"Default: false"},
		"spec.cancel":                           {"Default: false"},
		"spec.steps":                            {"1 to 200"},
		"spec.steps[].attemptTimeout":           {"1ms to 1h", "Default: 30s"},
		"spec.steps[].retry.maxAttempts":        {"1 to 100", "Default: 5 for an action, 20 for a compensation"},
		"spec.steps[].retry.initialBackoff":     {"24h", "Default: 1s"},
		"spec.steps[].retry.maxBackoff":         {"24h", "Default: 1m for an action, 5m for a compensation"},
		"spec.steps[].compensation.http.url":    {"2048"},
		"spec.steps[].http.headers":             {"32", "4096"},
		"spec.steps[].output":                   {"64", "8192"},
		"spec.steps[].dependsOn":                {"32", "Without it"},
		"spec.steps[].name":                     {"63"},
		"spec.steps[].compensation.retry":       {"how often"},
		"spec.steps[].compensation.http.body":   {"1 MiB", "Default: no body"},
		"spec.steps[].compensation.http.method": {"POST"},
	}
	spec := readSchema(t).Properties["spec"]
	spec.walk("spec", func(path string, s schema) {
		for _, text := range said[path] {
			if !strings.Contains(strings.Join(strings.Fields(s.Description), " "), text) {
				t.Errorf("the description of %s does not say %q:\n%s", path, text, s.Description)
			}
		}
		delete(said, path)
	})
	for path := range said {
		t.Errorf("there is no field %s", path)
	}
}
