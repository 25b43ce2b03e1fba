package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"sigs.k8s.io/yaml"

	"github.com/vextrus/saga-operator/config/crd"
)

// The names of the schemas that come from the CustomResourceDefinition.
const (
	sagaSchema       = "Saga"
	sagaSpecSchema   = "SagaSpec"
	sagaStatusSchema = "SagaStatus"
)

const schemaPrefix = "#/components/schemas/"

// sagaObject is a saga as the API server has it.
type sagaObject json.RawMessage

// MarshalJSON implements json.Marshaler.
func (o sagaObject) MarshalJSON() ([]byte, error) { return json.RawMessage(o).MarshalJSON() }

// Schema implements huma.SchemaProvider.
func (sagaObject) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Ref: schemaPrefix + sagaSchema}
}

// sagaSpec is the spec of a saga as a client writes it. Here it is only an object: the API server validates it, with the schema that stands in the document too.
type sagaSpec json.RawMessage

// UnmarshalJSON implements json.Unmarshaler.
func (s *sagaSpec) UnmarshalJSON(data []byte) error {
	return (*json.RawMessage)(s).UnmarshalJSON(data)
}

// Schema implements huma.SchemaProvider.
func (sagaSpec) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Ref: schemaPrefix + sagaSpecSchema}
}

// anyJSON is any JSON value.
type anyJSON json.RawMessage

// UnmarshalJSON implements json.Unmarshaler.
func (s *anyJSON) UnmarshalJSON(data []byte) error {
	return (*json.RawMessage)(s).UnmarshalJSON(data)
}

// Schema implements huma.SchemaProvider.
func (anyJSON) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Description: "Any JSON value."}
}

// placeholders are what requests are checked against where the document has the schemas of the CustomResourceDefinition.
func placeholders(r huma.Registry) {
	for _, name := range []string{sagaSchema, sagaSpecSchema, sagaStatusSchema} {
		r.Map()[name] = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
	}
}

// sagaSchemas are the schemas of the CustomResourceDefinition in the words of OpenAPI 3.1.
func sagaSchemas() (map[string]any, error) {
	var definition struct {
		Spec struct {
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema struct {
						Description string
						Properties  map[string]map[string]any
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(crd.Sagas, &definition); err != nil {
		return nil, fmt.Errorf("reading the CustomResourceDefinition of sagas: %w", err)
	}
	i := slices.IndexFunc(definition.Spec.Versions, func(v struct {
		Name   string
		Schema struct {
			OpenAPIV3Schema struct {
				Description string
				Properties  map[string]map[string]any
			}
		}
	}) bool {
		return v.Name == "v1"
	})
	if i < 0 {
		return nil, fmt.Errorf("the CustomResourceDefinition of sagas has no version v1")
	}
	root := definition.Spec.Versions[i].Schema.OpenAPIV3Schema
	constant := func(value string) map[string]any { return map[string]any{"type": "string", "const": value} }
	ref := func(name string) map[string]any { return map[string]any{"$ref": schemaPrefix + name} }
	return map[string]any{
		sagaSpecSchema:   converted(root.Properties["spec"]),
		sagaStatusSchema: converted(root.Properties["status"]),
		sagaSchema: map[string]any{
			"type": "object", "description": root.Description, "required": []any{"apiVersion", "kind", "metadata", "spec"}, "additionalProperties": false,
			"properties": map[string]any{
				"apiVersion": constant("saga.vextrus.io/v1"), "kind": constant("Saga"),
				"metadata": metadataSchema(), "spec": ref(sagaSpecSchema), "status": ref(sagaStatusSchema),
			},
		},
	}, nil
}

// metadataSchema is what of an object's metadata a client of this API needs.
func metadataSchema() map[string]any {
	text := map[string]any{"type": "string"}
	texts := map[string]any{"type": "object", "additionalProperties": text}
	date := map[string]any{"type": "string", "format": "date-time"}
	return map[string]any{
		"type": "object", "description": "The standard metadata of Kubernetes' objects.", "additionalProperties": true,
		"required": []any{"name", "namespace", "uid", "resourceVersion", "creationTimestamp"},
		"properties": map[string]any{
			"name": text, "namespace": text, "uid": text, "resourceVersion": text, "generation": map[string]any{"type": "integer"},
			"creationTimestamp": date, "deletionTimestamp": date, "labels": texts, "annotations": texts,
		},
	}
}

// converted is a structural schema of Kubernetes as JSON Schema 2020-12. Fields that are not named are refused, as the API server does.
func converted(schema map[string]any) map[string]any {
	out := map[string]any{}
	for key, value := range schema {
		switch key {
		case "properties":
			named := map[string]any{}
			for name, v := range asMap(value) {
				named[name] = converted(asMap(v))
			}
			out[key] = named
		case "items":
			out[key] = converted(asMap(value))
		case "additionalProperties":
			out[key] = value
			if inner := asMap(value); inner != nil {
				out[key] = converted(inner)
			}
		case "format": // a duration of Kubernetes is not that of JSON Schema; its pattern says what it is
			if value != "duration" {
				out[key] = value
			}
		case "nullable":
		default:
			if !strings.HasPrefix(key, "x-kubernetes-") || key == "x-kubernetes-validations" {
				out[key] = value
			}
		}
	}
	if _, given := out["additionalProperties"]; !given && out["properties"] != nil {
		out["additionalProperties"] = schema["x-kubernetes-preserve-unknown-fields"] == true
	}
	if schema["nullable"] == true {
		out["type"] = []any{out["type"], "null"}
	}
	return out
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// document is the OpenAPI document: what huma knows of the operations, with the schemas of the CustomResourceDefinition.
func document(api huma.API) (asJSON, asYAML []byte, err error) {
	data, err := json.Marshal(api.OpenAPI())
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the OpenAPI document: %w", err)
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, nil, fmt.Errorf("reading the OpenAPI document: %w", err)
	}
	schemas, err := sagaSchemas()
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(asMap(asMap(doc["components"])["schemas"]), schemas)
	if asJSON, err = json.MarshalIndent(doc, "", "  "); err != nil {
		return nil, nil, fmt.Errorf("encoding the OpenAPI document: %w", err)
	}
	if asYAML, err = yaml.JSONToYAML(asJSON); err != nil {
		return nil, nil, fmt.Errorf("encoding the OpenAPI document in YAML: %w", err)
	}
	return asJSON, asYAML, nil
}
