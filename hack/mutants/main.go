// Command mutants breaks the operator's safety and security code, one line at a time, and checks that a test
// notices. Each break is a named entry of a table: a text in one file, its replacement, and the test that has to
// fail. The test has to fail by an assertion. A test that only times out, panics or no longer compiles does not
// count, since it would not tell the author of a mistake what is wrong.
//
//	make mutants                # every break, some minutes
//	make mutants BREAKS=5       # five at random; the seed is printed
//	make mutants MUTANTS="-run 'token|redact'"
//
// The files of the repository stay as they are: the compiler reads the changed file through an overlay.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// options are what the flags say.
type options struct {
	count int    // the maximum number of breaks; 0 means all
	seed  uint64 // chooses them
	match *regexp.Regexp
	race  bool
	docs  string
}

func parse(arguments []string) (options, error) {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	o := options{}
	flags.IntVar(&o.count, "n", 0, "the number of breaks, chosen at random; 0 means all")
	flags.Uint64Var(&o.seed, "seed", 0, "the seed of the choice; 0 means a new one")
	match := flags.String("run", "", "a regular expression: only breaks whose name, file or test it matches")
	flags.BoolVar(&o.race, "race", false, "use the race detector: after make test most packages are compiled for it already")
	flags.StringVar(&o.docs, "docs", "", "write the table between the markers of this Markdown file, and run nothing")
	if err := flags.Parse(arguments); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.count < 0 {
		return o, fmt.Errorf("reading the arguments: -n is at least 0, and there are only flags: see -help")
	}
	var err error
	if o.match, err = regexp.Compile(*match); err != nil {
		return o, fmt.Errorf("reading -run: %w", err)
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	return o, nil
}

// command does what the arguments say, in the repository that contains the working directory.
func command(ctx context.Context, arguments []string, out io.Writer) error {
	o, err := parse(arguments)
	if err != nil {
		return err
	}
	root, err := findRoot()
	if err != nil {
		return err
	}
	if o.docs != "" {
		return writeDocs(filepath.Join(root, o.docs), table)
	}
	for _, b := range table {
		if _, err := b.apply(root); err != nil {
			return err
		}
	}
	chosen := choose(table, o)
	if len(chosen) == 0 {
		return fmt.Errorf("choosing breaks: none of %d matches %q", len(table), o.match)
	}
	if o.count > 0 {
		fmt.Fprintf(out, "mutants: %d of %d breaks; repeat with -n %d -seed %d\n", len(chosen), len(table), o.count, o.seed)
	}
	return runner{root: root, race: o.race}.try(ctx, chosen, out)
}

// choose returns the breaks that match, or o.count of them by the seed, in the order of the table.
func choose(table []Break, o options) []Break {
	var matching []Break
	for _, b := range table {
		if o.match.MatchString(strings.Join([]string{b.Name, b.File, b.Test}, "\n")) {
			matching = append(matching, b)
		}
	}
	if o.count == 0 || o.count >= len(matching) {
		return matching
	}
	taken := map[int]bool{}
	for _, i := range rand.New(rand.NewPCG(o.seed, 0)).Perm(len(matching))[:o.count] {
		taken[i] = true
	}
	var chosen []Break
	for i, b := range matching {
		if taken[i] {
			chosen = append(chosen, b)
		}
	}
	return chosen
}

// try runs the tests of the breaks on the unchanged code, then each break by itself.
func (r runner) try(ctx context.Context, chosen []Break, out io.Writer) error {
	if err := r.baseline(ctx, chosen, out); err != nil {
		return err
	}
	survived := 0
	for i, b := range chosen {
		began := time.Now()
		verdict, err := r.run(ctx, b)
		if err != nil {
			return fmt.Errorf("trying the break %q: %w", b.Name, err)
		}
		word := "caught"
		if verdict.reason != "" {
			word = "SURVIVED"
			survived++
		}
		fmt.Fprintf(out, "%3d/%d %-8s %4.0f s  %s (%s)\n", i+1, len(chosen), word, time.Since(began).Seconds(), b.Name, b.Test)
		if verdict.reason != "" {
			fmt.Fprintf(out, "        %s: %s\n%s\n", b.File, verdict.reason, indent(verdict.output))
		}
	}
	if survived > 0 {
		return fmt.Errorf("%d of %d breaks survived: make the named test notice them by an assertion", survived, len(chosen))
	}
	fmt.Fprintf(out, "mutants: all %d breaks were caught\n", len(chosen))
	return nil
}

func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "PROJECT")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("finding the repository: no directory above %s has a PROJECT file", dir)
		}
	}
}
