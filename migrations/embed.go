// Package migrations holds the database's schema: numbered steps that are only ever added to. Package internal/postgres applies them.
package migrations

import "embed"

// FS holds the steps, NNNN_name.sql, in goose's format.
//
//go:embed *.sql
var FS embed.FS
