package main

import (
	"fmt"
	"os"
	"strings"
)

// The table of a document stands between these lines.
const (
	beginning = "<!-- mutants: written by make generate -->"
	ending    = "<!-- mutants: end -->"
)

// writeDocs replaces the table in a Markdown file.
func writeDocs(path string, table []Break) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(text), beginning+"\n")
	_, after, ends := strings.Cut(rest, ending)
	if !begins || !ends {
		return fmt.Errorf("writing the table into %s: it has no lines %q and %q", path, beginning, ending)
	}
	return os.WriteFile(path, []byte(before+beginning+"\n"+markdown(table)+ending+after), 0o644)
}

// markdown renders the breaks as a table, with one row for each.
func markdown(table []Break) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nBreaks: %d\n\n| break | file | caught by |\n|---|---|---|\n", len(table))
	for _, m := range table {
		fmt.Fprintf(&b, "| %s | `%s` | `%s` |\n", m.Name, m.File, m.Test)
	}
	b.WriteString("\n")
	return b.String()
}
