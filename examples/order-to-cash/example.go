// Package ordertocash is an order placed with four services, as a saga: what is in the files beside this one.
package ordertocash

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// LedgerSQL shows what each order has left behind at the services, StockSQL whether the stock adds up.
var (
	//go:embed ledger.sql
	LedgerSQL string
	//go:embed stock.sql
	StockSQL string
)

//go:embed sagas/*.yaml
var sagas embed.FS

// URLs are the base URLs of the services, without a slash at the end.
type URLs struct{ Orders, Inventory, Payments, Shipping string }

// DefaultURLs are those that the sagas are written for.
var DefaultURLs = URLs{
	Orders:    "http://127.0.0.1:18081",
	Inventory: "http://127.0.0.1:18082",
	Payments:  "http://127.0.0.1:18083",
	Shipping:  "http://127.0.0.1:18084",
}

// Sagas lists the manifests, for use with Manifest.
func Sagas() []string {
	names, err := fs.Glob(sagas, "sagas/*.yaml")
	if err != nil {
		panic(err) // the pattern is malformed
	}
	for i := range names {
		names[i] = path.Base(names[i])
	}
	return names
}

// Manifest returns a saga's YAML, for services that listen elsewhere than at DefaultURLs.
func Manifest(name string, at URLs) ([]byte, error) {
	text, err := sagas.ReadFile("sagas/" + name)
	if err != nil {
		return nil, fmt.Errorf("reading the saga %s: %w", name, err)
	}
	from := DefaultURLs
	return []byte(strings.NewReplacer(from.Orders, at.Orders, from.Inventory, at.Inventory, from.Payments, at.Payments,
		from.Shipping, at.Shipping).Replace(string(text))), nil
}
