// Package server is the operator's HTTP API: HTTP in front of the buses of internal/operations, and nothing more.
//
// A request passes, in this order: the chain that is round everything (chain.go: request id, panics, log, metrics, limits), the route, and what the route's operation asks for
// (operation.go: who the caller is, their rate, the form of the body). What they may do is decided on the bus. Routes, parsing and the OpenAPI document come from one description in Go
// (routes.go); the schema of a saga in it comes from its CustomResourceDefinition (schema.go). Start reading at New.
package server
