package run

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/outbox"
)

const outboxUsage = `outbox sinks | list [SELECTION] | retry SELECTION | drop REASON SELECTION
SELECTION is --all, or one or more of --id ID,… --sink NAME --older-than 1h --dead; REASON stands before the flags`

// listed is how many parked messages are listed at most.
const listed = 1000

// askedOfOutbox is what `manager outbox …` was asked for.
type askedOfOutbox struct {
	verb, reason string
	selection    outbox.Selection
}

// parseOutbox takes what belongs to `manager outbox` off the arguments. The rest are the flags that every command has.
func parseOutbox(args []string) (asked askedOfOutbox, rest []string, err error) {
	said, flags := words(args)
	if len(said) > 0 {
		asked.verb, asked.reason = said[0], strings.TrimSpace(strings.Join(said[1:], " "))
	}
	var all bool
	fs := asked.selectors(&all)
	given, rest := apart(fs, flags)
	if err := fs.Parse(given); err != nil {
		return asked, rest, err
	}
	return asked, rest, asked.check(all)
}

// selectors are the flags that only this command has; no variable of the environment stands for any.
func (a *askedOfOutbox) selectors(all *bool) *flag.FlagSet {
	fs := flag.NewFlagSet("outbox", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Func("id", "", func(v string) error {
		ids, err := parseIDs(v)
		a.selection.IDs = append(a.selection.IDs, ids...)
		return err
	})
	fs.Func("sink", "", func(v string) error {
		if v == "" || a.selection.Sink != "" {
			return errors.New("it is the name of one sink")
		}
		a.selection.Sink = v
		return nil
	})
	fs.Func("older-than", "", func(v string) (err error) { a.selection.OlderThan, err = parseAge(v); return err })
	fs.BoolVar(&a.selection.Dead, "dead", false, "")
	fs.BoolVar(all, "all", false, "")
	return fs
}

// check says what is wrong with what was asked for. A selection of everything has to be meant.
func (a *askedOfOutbox) check(all bool) error {
	s := &a.selection
	narrowed := len(s.IDs) > 0 || s.Sink != "" || s.OlderThan > 0 || s.Dead
	changes := a.verb == "retry" || a.verb == "drop"
	switch {
	case a.verb != "sinks" && a.verb != "list" && !changes, (a.verb == "drop") != (a.reason != ""):
		return fmt.Errorf("usage: manager %s", outboxUsage)
	case a.verb == "sinks" && (narrowed || all):
		return errors.New("outbox sinks shows all sinks: it takes none of --id, --sink, --older-than, --dead and --all")
	case narrowed && all:
		return errors.New("--all is every parked message: give either it or --id, --sink, --older-than and --dead")
	case changes && !narrowed && !all:
		return fmt.Errorf("outbox %s: %w: give --id, --sink, --older-than or --dead, or --all for every one", a.verb, outbox.ErrNoneSelected)
	}
	return nil
}

// apart parts the flags that a set knows, with their values, from all others.
func apart(fs *flag.FlagSet, flags []string) (known, others []string) {
	for i := 0; i < len(flags); i++ {
		name, _, valued := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(flags[i], "-"), "-"), "=")
		f := fs.Lookup(name)
		if f == nil || !strings.HasPrefix(flags[i], "-") {
			others = append(others, flags[i])
			continue
		}
		known = append(known, flags[i])
		_, boolean := f.Value.(interface{ IsBoolFlag() bool })
		if !valued && !boolean && i+1 < len(flags) {
			i++
			known = append(known, flags[i])
		}
	}
	return known, others
}

func parseIDs(v string) ([]uuid.UUID, error) {
	var texts list
	if err := texts.Set(v); err != nil {
		return nil, err
	}
	if len(texts) == 0 {
		return nil, errors.New("it is the ID of a message, or several with commas in between; `manager outbox list` shows them")
	}
	ids := make([]uuid.UUID, len(texts))
	for i, text := range texts {
		var err error
		if ids[i], err = uuid.Parse(text); err != nil {
			return nil, fmt.Errorf("%q is not the ID of a message: %w; `manager outbox list` shows them", text, err)
		}
	}
	return ids, nil
}

func parseAge(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0, err
	}
	if d <= 0 {
		return 0, errors.New("it is longer than nothing, for example 1h")
	}
	return d, nil
}

// ofOutbox does what `manager outbox …` asks for.
func ofOutbox(ctx context.Context, c Config, asked askedOfOutbox, out io.Writer) error {
	pool, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer pool.Close()
	switch asked.verb {
	case "sinks":
		all, err := outbox.Statuses(ctx, pool)
		if err != nil {
			return err
		}
		return printSinks(out, all)
	case "list":
		asked.selection.Limit = listed + 1
		all, err := outbox.List(ctx, pool, asked.selection)
		if err != nil {
			return err
		}
		return printParked(out, all)
	default:
		err := changeParked(ctx, pool, asked, out)
		if errors.Is(err, outbox.ErrNoneSelected) {
			return fmt.Errorf("%w; `manager outbox list` shows all that are parked", err)
		}
		return err
	}
}

// changeParked has parked messages tried again, or dropped.
func changeParked(ctx context.Context, pool *pgxpool.Pool, asked askedOfOutbox, out io.Writer) error {
	if asked.verb == "retry" {
		dead, err := outbox.RetryParked(ctx, pool, asked.selection)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "what was selected is tried now, %s among it; `manager outbox list` shows what fails again\n", count(int64(dead), "dead letter"))
		return nil
	}
	dropped, err := outbox.Drop(ctx, pool, asked.selection, actor(), asked.reason)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s will not be published; what waited behind goes on\n", count(dropped, "message"))
	return nil
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func printSinks(out io.Writer, all []outbox.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tBACKLOG\tOLDEST\tPUBLISHED\tDEAD\tSHARDS\tTROUBLE")
	for _, s := range all {
		oldest, trouble := "", ""
		if s.OldestAge > 0 {
			oldest = s.OldestAge.Round(time.Second).String()
		}
		if s.Reason != "" || s.Trouble != "" {
			trouble = s.Reason + ": " + s.Trouble
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\t%d/%d\t%s\n", oneLine(s.Name), s.Backlog, oldest, s.Published, s.DeadLetters, s.Relays, s.Shards, oneLine(trouble))
	}
	return w.Flush()
}

func printParked(out io.Writer, all []outbox.Parked) error {
	more := len(all) > listed
	all = all[:min(len(all), listed)]
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tSINK\tKEY\tTYPE\tRECORDED\tATTEMPTS\tSTATE\tERROR")
	for i := range all {
		p := &all[i]
		failure := ""
		if p.Reason != "" || p.Error != "" {
			failure = p.Reason + ": " + p.Error
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", p.ID, oneLine(p.Sink), oneLine(p.Key), oneLine(p.Type), second(p.RecordedAt), p.Attempts, state(p), oneLine(failure))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more {
		fmt.Fprintf(out, "these are the oldest %d; there are more\n", listed)
	}
	return nil
}

// state says what a parked message waits for.
func state(p *outbox.Parked) string {
	switch {
	case p.Dead:
		return "dead"
	case p.Reason == "" && p.Error == "":
		return "behind another of its key"
	default:
		return "tried again at " + second(p.DueAt)
	}
}

func second(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// oneLine makes one line for a terminal of a text that others have written.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
