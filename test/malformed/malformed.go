// Package malformed is a table of manifests that users get wrong. Each says who finds the fault: the API server, which refuses the manifest when it is
// applied, or the operator, which parks the saga with the condition Stalled. Either way the field is named.
package malformed

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Case is one malformed manifest. Exactly one of Refused and Stalled is set.
type Case struct {
	// Name says what is wrong, as a DNS label.
	Name string
	// Refused are texts that the API server's refusal holds.
	Refused []string
	// Stalled are texts that the message of the condition Stalled holds, the path of the field first.
	Stalled []string

	edits []Edit
	// raw replaces the manifest where objects cannot express the fault.
	raw string
}

// Object returns the manifest as an object of its own, named for the case.
func (c Case) Object(namespace string) *unstructured.Unstructured {
	if c.raw != "" {
		return parse(c.raw, namespace, c.Name)
	}
	o := Valid(namespace, c.Name)
	for _, edit := range c.edits {
		edit(o)
	}
	return o
}

// YAML returns the manifest as the text that a user would apply.
func (c Case) YAML(namespace string) []byte {
	if c.raw != "" {
		return []byte(c.raw)
	}
	return text(c.Object(namespace))
}

func text(o *unstructured.Unstructured) []byte {
	data, err := yaml.Marshal(o.Object)
	if err != nil {
		panic(fmt.Sprintf("writing saga %s: %v", o.GetName(), err))
	}
	return data
}

// Update is a change to a saga that has been created.
type Update struct {
	Name string
	// Refused are texts that the API server's refusal holds; none when the change is allowed.
	Refused []string

	created, changed []Edit
}

// Created returns the saga as it is created.
func (u Update) Created(namespace string) *unstructured.Unstructured {
	o := Valid(namespace, u.Name)
	for _, edit := range u.created {
		edit(o)
	}
	return o
}

// Change makes the change to the saga as it was read back.
func (u Update) Change(o *unstructured.Unstructured) {
	for _, edit := range u.changed {
		edit(o)
	}
}

// Edit changes a manifest.
type Edit func(o *unstructured.Unstructured)

// Valid returns a saga with nothing wrong in it: three steps, one after the other.
func Valid(namespace, name string) *unstructured.Unstructured {
	return parse(valid, namespace, name)
}

// parse reads YAML as the API server does: integers are int64.
func parse(text, namespace, name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	data, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = o.UnmarshalJSON(data)
	}
	if err != nil {
		panic(fmt.Sprintf("reading the manifest %s: %v", name, err))
	}
	o.SetNamespace(namespace)
	o.SetName(name)
	return o
}

const valid = `
apiVersion: saga.vextrus.io/v1
kind: Saga
spec:
  input: {orderId: "1042", lines: [{sku: B-1, quantity: 2}], total: {amount: "129.90", currency: EUR}}
  deadline: 10m
  steps:
  - name: reserve
    http: {method: POST, url: "http://inventory/reservations", body: {order: "${input.orderId}", lines: "${input.lines}"}}
    output: {reservation: "${response.body.id}"}
    compensation:
      http: {method: DELETE, url: "http://inventory/reservations/${input.orderId}"}
  - name: charge
    attemptTimeout: 5s
    retry: {maxAttempts: 5, initialBackoff: 200ms, maxBackoff: 1m}
    http: {method: POST, url: "http://payments/charges", headers: {X-Order: "${input.orderId}"}, body: {amount: "${input.total}"}}
    output: {charge: "${response.body.id}"}
    compensation:
      http: {method: POST, url: "http://payments/refunds", body: {order: "${input.orderId}"}}
  - name: ship
    http: {method: POST, url: "http://shipping/labels", body: {charge: "${steps.charge.output.charge}"}}
`

// set puts a value at a path such as spec.steps.1.http.url, whose numbers are places in lists.
func set(path string, value any) Edit {
	return func(o *unstructured.Unstructured) {
		parent, last := descend(o, path)
		switch p := parent.(type) {
		case map[string]any:
			p[last] = value
		case []any:
			p[index(last)] = value
		}
	}
}

func remove(path string) Edit {
	return func(o *unstructured.Unstructured) {
		parent, last := descend(o, path)
		delete(parent.(map[string]any), last)
	}
}

func descend(o *unstructured.Unstructured, path string) (parent any, last string) {
	parts := strings.Split(path, ".")
	parent = o.Object
	for _, part := range parts[:len(parts)-1] {
		switch p := parent.(type) {
		case map[string]any:
			if p[part] == nil {
				p[part] = map[string]any{}
			}
			parent = p[part]
		case []any:
			parent = p[index(part)]
		}
	}
	return parent, parts[len(parts)-1]
}

func index(part string) int {
	i, err := strconv.Atoi(part)
	if err != nil {
		panic(fmt.Sprintf("%q is not a place in a list", part))
	}
	return i
}

func edits(all ...Edit) []Edit { return all }

func swap(o *unstructured.Unstructured) {
	steps := o.Object["spec"].(map[string]any)["steps"].([]any)
	steps[0], steps[1] = steps[1], steps[0]
}

func shorten(o *unstructured.Unstructured) {
	spec := o.Object["spec"].(map[string]any)
	spec["steps"] = spec["steps"].([]any)[:2]
}
