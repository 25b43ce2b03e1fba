// Package crd has the definitions of the operator's resources, for those who have to say what a saga looks like.
package crd

import _ "embed"

// Sagas is the CustomResourceDefinition of sagas, in YAML.
//
//go:embed bases/saga.vextrus.io_sagas.yaml
var Sagas []byte
