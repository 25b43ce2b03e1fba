package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The cheap half of what the command checks runs with every test: a change of the code that a break refers to is
// noticed at once.
func TestTableFitsCode(t *testing.T) {
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	if len(table) < 40 {
		t.Errorf("the table has %d breaks, and at least 40 are promised", len(table))
	}
	names := map[string]bool{}
	for _, b := range table {
		if names[b.Name] {
			t.Errorf("two breaks are called %q", b.Name)
		}
		names[b.Name] = true
		if _, err := b.apply(root); err != nil {
			t.Error(err)
		}
		if !declares(t, filepath.Join(root, b.Package), b.Test) {
			t.Errorf("the break %q names %s, and %s has no such test", b.Name, b.Test, b.Package)
		}
	}
}

// declares says whether the tests in dir have one of that name. Suites that other packages call count, too.
func declares(t *testing.T, dir, test string) bool {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(file string) bool {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(text), "\nfunc "+test+"(")
	})
}

func TestJudgeAcceptsAssertionsOnly(t *testing.T) {
	run := `{"Action":"run","Test":"TestA"}` + "\n"
	fail := `{"Action":"fail","Test":"TestA"}` + "\n"
	assert := `{"Action":"output","Test":"TestA","Output":"    a_test.go:7: got 1, want 2\n"}` + "\n"
	for name, c := range map[string]struct{ output, reason string }{
		"an assertion":           {run + assert + fail, ""},
		"one in a subtest":       {run + `{"Action":"run","Test":"TestA/b"}` + "\n" + strings.ReplaceAll(assert, "TestA", "TestA/b") + fail, ""},
		"another test's":         {run + strings.ReplaceAll(assert+fail, "TestA", "TestAB"), "passed"},
		"a test that passes":     {run + `{"Action":"pass","Test":"TestA"}`, "passed"},
		"a test that is missing": {`{"Action":"pass"}`, "no test"},
		"a build failure":        {`{"Action":"build-fail"}`, "compile"},
		"a failure without word": {run + fail, "without saying"},
		"a panic": {run + assert + `{"Action":"output","Test":"TestA","Output":"panic: nil map\n"}` + "\n" + fail,
			"panicked or timed out"},
		"the end of the time": {run + assert + `{"Action":"output","Test":"TestA","Output":"panic: test timed out after 4m0s\n"}` + "\n" + fail,
			"panicked or timed out"},
	} {
		v, err := judge(strings.NewReader(c.output), "TestA")
		if err != nil || (c.reason == "") != (v.reason == "") || !strings.Contains(v.reason, c.reason) {
			t.Errorf("%s: the verdict is %q, %v; want one that contains %q", name, v.reason, err, c.reason)
		}
	}
}

func TestChooseRepeatsItself(t *testing.T) {
	var breaks []Break
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		breaks = append(breaks, Break{Name: name})
	}
	o := options{count: 5, seed: 3, match: regexp.MustCompile("[a-g]")}
	first := choose(breaks, o)
	if len(first) != 5 || !slices.Equal(first, choose(breaks, o)) || slices.Contains(first, breaks[7]) {
		t.Errorf("chose %v: want five of the first seven, the same each time", first)
	}
	o.seed = 4
	if slices.Equal(first, choose(breaks, o)) {
		t.Error("another seed chose the same breaks")
	}
	o.count = 0
	if got := choose(breaks, o); len(got) != 7 {
		t.Errorf("without a count %d of 7 matching breaks are chosen", len(got))
	}
}

func TestApplyRefusesStaleBreak(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.go"), []byte("x := 1\ny := 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for old, fits := range map[string]bool{"x := 1": true, ":= 1": false, "z := 1": false} {
		text, err := Break{File: "a.go", Old: old, New: "x := 2"}.apply(root)
		if fits != (err == nil) || fits && string(text) != "x := 2\ny := 1\n" {
			t.Errorf("%q: %q, %v", old, text, err)
		}
	}
}

func TestWriteDocsReplacesTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.md")
	if err := os.WriteFile(path, []byte("before\n"+beginning+"\nold\n"+ending+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := writeDocs(path, []Break{{Name: "A", File: "b.go", Test: "TestC"}}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "before\n" + beginning + "\n\nBreaks: 1\n\n| break | file | caught by |\n|---|---|---|\n| A | `b.go` | `TestC` |\n\n" + ending + "\nafter\n"
	if string(text) != want {
		t.Errorf("the document is\n%s\nwant\n%s", text, want)
	}
}
