package v1_test

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// sinkSchemas returns the schemas of the kinds of sinks, by their resource.
func sinkSchemas(t *testing.T) map[string]schema {
	t.Helper()
	all := map[string]schema{}
	for _, resource := range []string{"sinks", "clustersinks"} {
		data, err := os.ReadFile("../../config/crd/bases/saga.vextrus.io_" + resource + ".yaml")
		if err != nil {
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
		if err := yaml.Unmarshal(data, &crd); err != nil {
			t.Fatal(err)
		}
		all[resource] = crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	}
	return all
}

func TestEveryFieldOfASinkIsDocumentedAndHasABoundAndNoDefault(t *testing.T) {
	t.Parallel()
	for resource, all := range sinkSchemas(t) {
		fields := 0
		all.walk(resource, func(path string, s schema) {
			fields++
			element := strings.HasSuffix(path, "[]") || strings.HasSuffix(path, "{}")
			if s.Description == "" && path != resource+".metadata" && !element {
				t.Errorf("%s has no description", path)
			}
			if s.Default != nil {
				t.Errorf("%s has the default %v", path, s.Default)
			}
			// Selectors have their bounds in rules, and the API server's own for what is in them.
			if !strings.HasPrefix(path, resource+".spec") || strings.Contains(path, "Selector") {
				return
			}
			switch {
			case s.Type == "string" && s.MaxLength == nil && s.Enum == nil, s.Type == "array" && s.MaxItems == nil, s.Type == "integer" && s.Maximum == nil,
				s.AdditionalProperties != nil && s.MaxProperties == nil:
				t.Errorf("%s has no bound", path)
			}
		})
		if fields < 40 {
			t.Errorf("only %d fields of %s were looked at", fields, resource)
		}
	}
}

func TestNoReferenceOfASinkNamesANamespace(t *testing.T) {
	t.Parallel()
	for resource, all := range sinkSchemas(t) {
		all.walk(resource, func(path string, _ schema) {
			if strings.HasSuffix(path, ".namespace") {
				t.Errorf("%s lets one namespace borrow from another", path)
			}
		})
	}
}
