// Package ordertocash is a shop: five services, and the saga that takes each order from there to the money and the parcel. What is in the files beside this one is here.
package ordertocash

import (
	"embed"
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// The queries over the tables of all services, each one statement and so one moment.
var (
	// LedgerSQL shows what each order has left behind.
	//go:embed ledger.sql
	LedgerSQL string
	// StockSQL shows each article.
	//go:embed stock.sql
	StockSQL string
	// BalanceSQL lists what does not add up; no row means that all does.
	//go:embed balance.sql
	BalanceSQL string
)

//go:embed sagas/*.yaml
var sagas embed.FS

// URLs are the base URLs of the services, without a slash at the end.
type URLs struct{ Orders, Inventory, Payments, Shipping, Invoicing string }

// DefaultURLs are those that the sagas are written for.
var DefaultURLs = URLs{
	Orders:    "http://127.0.0.1:18081",
	Inventory: "http://127.0.0.1:18082",
	Payments:  "http://127.0.0.1:18083",
	Shipping:  "http://127.0.0.1:18084",
	Invoicing: "http://127.0.0.1:18085",
}

// Sagas lists the manifests of sagas that can be applied as they are, for use with Manifest.
func Sagas() []string { return []string{"completes.yaml", "declined.yaml", "shipping-down.yaml"} }

// definition is the manifest of what every order goes through.
const definition = "order-to-cash.yaml"

// Manifest returns a saga's YAML, for services that listen elsewhere than at DefaultURLs.
func Manifest(name string, at URLs) ([]byte, error) {
	text, err := sagas.ReadFile("sagas/" + name)
	if err != nil {
		return nil, fmt.Errorf("reading the saga %s: %w", name, err)
	}
	from := DefaultURLs
	return []byte(strings.NewReplacer(from.Orders, at.Orders, from.Inventory, at.Inventory, from.Payments, at.Payments,
		from.Shipping, at.Shipping, from.Invoicing, at.Invoicing).Replace(string(text))), nil
}

// Definition is what every order goes through, to be filled in for each.
type Definition struct{ spec map[string]any }

// OrderToCash reads the definition for services at some URLs.
func OrderToCash(at URLs) (Definition, error) {
	text, err := Manifest(definition, at)
	if err != nil {
		return Definition{}, err
	}
	var d struct {
		Spec map[string]any `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &d); err != nil {
		return Definition{}, fmt.Errorf("reading %s: %w", definition, err)
	}
	return Definition{d.Spec}, nil
}

// OrderLabel is the label that says which order a saga carries out.
const OrderLabel = "order-to-cash.example.com/order"

// Saga returns the Saga object of one order, as JSON. input is what its expressions read.
func (d Definition) Saga(namespace, name, order string, input any) ([]byte, error) {
	spec := map[string]any{"input": input}
	for field, value := range d.spec {
		spec[field] = value
	}
	object, err := json.Marshal(map[string]any{
		"apiVersion": "saga.vextrus.io/v1",
		"kind":       "Saga",
		"metadata":   map[string]any{"namespace": namespace, "name": name, "labels": map[string]string{OrderLabel: order}},
		"spec":       spec,
	})
	if err != nil {
		return nil, fmt.Errorf("making the saga of order %s: %w", order, err)
	}
	return object, nil
}
