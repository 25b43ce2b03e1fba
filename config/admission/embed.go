// Package admission has the admission policies that the operator relies on.
package admission

import _ "embed"

// CreatedByPolicy is the policy that protects the annotations that name users, with its binding, in
// YAML.
//
//go:embed created_by_policy.yaml
var CreatedByPolicy []byte
