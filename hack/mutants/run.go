package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// limit is the time that one test may take, with its servers and with its own patience.
const limit = "4m"

var (
	// assertion is a line that a test prints about a value it did not expect: `    store_test.go:12: …`. The
	// lines of a panic's stack have no such prefix.
	assertion = regexp.MustCompile(`^\s+[\w.-]+\.go:\d+: `)
	// ended is what a test prints that did not end by itself.
	ended = regexp.MustCompile(`^(panic: |fatal error: |\s*panic: test timed out)|test timed out after|\[recovered`)
)

// runner runs tests of the repository at root.
type runner struct {
	root string
	race bool
}

// verdict says why a break was not caught; an empty reason means that it was.
type verdict struct {
	reason string
	output string // the last lines of the run
}

// event is one line of `go test -json`.
type event struct {
	Action string
	Test   string
	Output string
}

// judge reads the output of `go test -json`, and says whether the test failed by an assertion.
func judge(output io.Reader, test string) (verdict, error) {
	var lines []string
	ran, failed, asserted, crashed, built := false, false, false, false, true
	scanner := bufio.NewScanner(output)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var e event
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			lines = append(lines, scanner.Text())
			continue
		}
		own := e.Test == test || strings.HasPrefix(e.Test, test+"/")
		switch e.Action {
		case "build-fail":
			built = false
		case "run":
			ran = ran || own
		case "fail":
			failed = failed || own
		case "output", "build-output":
			lines = append(lines, strings.TrimRight(e.Output, "\n"))
			crashed = crashed || ended.MatchString(e.Output)
			asserted = asserted || own && assertion.MatchString(e.Output)
		}
	}
	v := verdict{output: strings.Join(lines[max(0, len(lines)-20):], "\n")}
	switch {
	case !built:
		v.reason = "the changed code does not compile"
	case !ran:
		v.reason = "no test of that name ran"
	case crashed:
		v.reason = "the test panicked or timed out instead of failing by an assertion"
	case !failed:
		v.reason = "the test passed"
	case !asserted:
		v.reason = "the test failed without saying what was wrong"
	}
	return v, scanner.Err()
}

// run runs a break's test on the changed code.
func (r runner) run(ctx context.Context, b Break) (verdict, error) {
	changed, err := b.apply(r.root)
	if err != nil {
		return verdict{}, err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return verdict{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	replacement := filepath.Join(dir, filepath.Base(b.File))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(r.root, b.File): replacement}})
	if err != nil {
		return verdict{}, err
	}
	if err := errors.Join(os.WriteFile(replacement, changed, 0o600), os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600)); err != nil {
		return verdict{}, err
	}
	output, err := r.goTest(ctx, "-overlay", filepath.Join(dir, "overlay.json"), "-run", "^"+b.Test+"$", b.Package)
	if err != nil {
		return verdict{}, err
	}
	return judge(bytes.NewReader(output), b.Test)
}

// baseline runs the tests of all breaks on the unchanged code: a test that fails there proves nothing.
func (r runner) baseline(ctx context.Context, breaks []Break, out io.Writer) error {
	tests := map[string][]string{}
	for _, b := range breaks {
		if !slices.Contains(tests[b.Package], b.Test) {
			tests[b.Package] = append(tests[b.Package], b.Test)
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(tests)) {
		output, err := r.goTest(ctx, "-run", "^("+strings.Join(tests[pkg], "|")+")$", pkg)
		if err != nil {
			return err
		}
		for _, test := range tests[pkg] {
			v, err := judge(bytes.NewReader(output), test)
			if err != nil {
				return err
			}
			if v.reason != "the test passed" {
				return fmt.Errorf("running %s of %s on the unchanged code: %s:\n%s", test, pkg, cmp.Or(v.reason, "it fails"), v.output)
			}
		}
		fmt.Fprintf(out, "mutants: %s passes unchanged\n", pkg)
	}
	return nil
}

// goTest runs go test, whose failure is no error here, and returns what it printed.
func (r runner) goTest(ctx context.Context, arguments ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-count=1", "-timeout", limit, "-race=" + strconv.FormatBool(r.race)}, arguments...)...)
	command.Dir = r.root
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	err := command.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && ctx.Err() == nil {
		err = nil
	}
	return output.Bytes(), err
}
