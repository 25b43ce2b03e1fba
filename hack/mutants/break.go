package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Break is one way to break the code, and the test that has to notice it.
type Break struct {
	// Name says what is broken, in the words of a user: "A rollback skips a step that timed out".
	Name string
	// File is the changed file, from the repository's root.
	File string
	// Old occurs exactly once in the file, and is replaced by New.
	Old, New string
	// Package is the package of the test, as in "./internal/saga".
	Package string
	// Test is the test's name. It is named for the behaviour that the break takes away.
	Test string
}

// table has every break. Its parts are in files by area.
var table = slices.Concat(safetyBreaks, storageBreaks, accessBreaks, secretBreaks, limitBreaks)

// apply returns the broken file's text.
func (b Break) apply(root string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(root, b.File))
	if err != nil {
		return nil, fmt.Errorf("reading the file of the break %q: %w", b.Name, err)
	}
	if n := strings.Count(string(text), b.Old); n != 1 {
		return nil, fmt.Errorf("breaking %s (%q): the old text occurs %d times and has to occur once: the code has changed, adapt the break", b.File, b.Name, n)
	}
	return []byte(strings.Replace(string(text), b.Old, b.New, 1)), nil
}

func indent(text string) string { return "        " + strings.ReplaceAll(text, "\n", "\n        ") }
