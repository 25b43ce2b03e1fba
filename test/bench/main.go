// Command bench measures the operator and, side by side in the same run, the limit of each thing it measures: what the database or the API server
// does without us. On a shared machine only the ratios mean anything. It prints a table, and writes build/bench.json for programs and, with -docs,
// the table in docs/benchmarks.md for people.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Row is one measurement. Later benchmarks add rows; the fields stay.
type Row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Limit is what the machine does without us in the same run, or a bound that must hold; zero where there is none.
	Limit float64 `json:"limit"`
	// Ratio is Value/Limit; zero without a limit.
	Ratio float64 `json:"ratio"`
	// What says in a few words what was measured against what.
	What string `json:"what"`
}

// row makes a row and its ratio.
func row(name string, value float64, unit string, limit float64, what string) Row {
	r := Row{Name: name, Value: value, Unit: unit, Limit: limit, What: what}
	if limit > 0 {
		r.Ratio = value / limit
	}
	return r
}

// settings are the sizes of a run. All of them are bounded in time or count.
type settings struct {
	seconds   time.Duration
	clients   int
	gatherers int
	sagas     int
	objects   int
	finished  int
	rounds    int
	events    int
	messages  int
	samples   int
}

func main() {
	var s settings
	out := flag.String("out", "build/bench.json", "where to write the rows")
	docs := flag.String("docs", "", "a Markdown file whose table between the bench markers is written anew")
	only := flag.String("only", "", "a regular expression over the names of groups: store, following, relay, engine, processor, recovery, decide, objects, memory, commands, history, idempotency")
	flag.DurationVar(&s.seconds, "duration", 5*time.Second, "how long each measurement by time takes")
	flag.IntVar(&s.clients, "clients", 32, "how many clients there are")
	flag.IntVar(&s.gatherers, "gatherers", 512, "how many clients append at once where their appends are gathered")
	flag.IntVar(&s.sagas, "sagas", 4000, "how many sagas the engine drives")
	flag.IntVar(&s.objects, "objects", 1500, "how many sagas go through objects")
	flag.IntVar(&s.finished, "finished", 10000, "how many finished sagas the operator's memory is measured with")
	flag.IntVar(&s.events, "events", 300_000, "how many events a read model is built from")
	flag.IntVar(&s.messages, "messages", 200_000, "how many messages wait for a sink")
	flag.IntVar(&s.samples, "samples", 300, "how often the way from commit to handler is measured")
	flag.IntVar(&s.rounds, "rounds", 3, "how often a thing and its limit take turns; the medians count")
	flag.Parse()

	ctrllog.SetLogger(logr.Discard()) // the test environment's; what goes wrong comes back as an error

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	rows, err := run(ctx, s, *only)
	if len(rows) > 0 {
		printTable(rows)
		err = errors.Join(err, writeJSON(*out, rows))
		if *docs != "" {
			err = errors.Join(err, writeDocs(*docs, rows))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// group is a set of measurements that share their servers.
type group struct {
	name    string
	measure func(context.Context, settings) ([]Row, error)
}

func run(ctx context.Context, s settings, only string) ([]Row, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("reading -only: %w", err)
	}
	groups := []group{{"store", measureStore}, {"following", measureFollowing}, {"relay", measureRelay}, {"engine", measureEngine}, {"processor", measureProcessor}, {"recovery", measureRecovery}, {"decide", measureDecide}, {"objects", measureObjects}, {"memory", measureMemory}, {"commands", measureCommands}, {"history", measureHistory}, {"idempotency", measureIdempotency}}
	var rows []Row
	for _, g := range groups {
		if !match.MatchString(g.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s …\n", g.name)
		got, err := g.measure(ctx, s)
		rows = append(rows, got...)
		if err != nil {
			return rows, fmt.Errorf("measuring %s: %w", g.name, err)
		}
	}
	return rows, nil
}

func printTable(rows []Row) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVALUE\tLIMIT\tRATIO\tUNIT\tWHAT")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, number(r.Value), number(r.Limit), ratio(r), r.Unit, r.What)
	}
	_ = w.Flush()
}

func number(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

func ratio(r Row) string {
	if r.Limit == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", r.Ratio)
}

func writeJSON(path string, rows []Row) error {
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the rows: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the rows: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the rows: %w", err)
	}
	return nil
}

// The table in the documentation stands between these two lines.
const (
	markBegin = "<!-- bench: begin -->"
	markEnd   = "<!-- bench: end -->"
)

func writeDocs(path string, rows []Row) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the benchmark page: %w", err)
	}
	before, rest, found := strings.Cut(string(old), markBegin)
	_, after, closed := strings.Cut(rest, markEnd)
	if !found || !closed {
		return fmt.Errorf("writing the benchmark page %s: it lacks the lines %q and %q", path, markBegin, markEnd)
	}
	var b strings.Builder
	b.WriteString(before + markBegin + "\n| name | value | limit | ratio | unit | what |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", r.Name, number(r.Value), number(r.Limit), ratio(r), r.Unit, r.What)
	}
	b.WriteString(markEnd + after)
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("writing the benchmark page: %w", err)
	}
	return nil
}
