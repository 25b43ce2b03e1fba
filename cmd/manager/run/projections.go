package run

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/projection"
)

const projectionsUsage = `projections list | rebuild NAME | retry NAME | skip NAME REASON [--event ID] | remove NAME`

// words takes the arguments before the first flag.
func words(args []string) (before, flags []string) {
	for i, a := range args {
		if strings.HasPrefix(a, "-") {
			return args[:i], args[i:]
		}
	}
	return args, nil
}

// askedOfProjections is what `manager projections …` was asked for.
type askedOfProjections struct {
	verb, name, reason string
	event              uuid.UUID
}

// parseProjections takes what belongs to `manager projections` off the arguments. The rest are the flags that every command has.
func parseProjections(args []string) (asked askedOfProjections, rest []string, err error) {
	said, flags := words(args)
	fs := flag.NewFlagSet("projections", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Func("event", "", func(v string) (err error) {
		if asked.event, err = uuid.Parse(v); err != nil || asked.event == uuid.Nil {
			return errors.New("it is the ID of an event; `manager projections list` shows those at which projections have stopped")
		}
		return nil
	})
	given, rest := apart(fs, flags)
	if err := fs.Parse(given); err != nil {
		return asked, rest, err
	}
	usage := fmt.Errorf("usage: manager %s", projectionsUsage)
	n := len(said)
	if n > 0 {
		asked.verb = said[0]
	}
	if n > 1 {
		asked.name, asked.reason = said[1], strings.Join(said[2:], " ")
	}
	if asked.event != uuid.Nil && asked.verb != "skip" {
		return asked, rest, usage
	}
	switch asked.verb {
	case "list":
		if n == 1 {
			return asked, rest, nil
		}
	case "rebuild", "retry", "remove":
		if n == 2 {
			return asked, rest, nil
		}
	case "skip":
		if n >= 3 {
			return asked, rest, nil
		}
	}
	return asked, rest, usage
}

// projections does what `manager projections …` asks for.
func projections(ctx context.Context, c Config, asked askedOfProjections, out io.Writer) error {
	pool, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer pool.Close()
	name := asked.name
	switch asked.verb {
	case "rebuild":
		if err := projection.Rebuild(ctx, pool, name); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is being built anew beside the read model that is live; `manager projections list` shows how far it is\n", name)
	case "retry":
		if err := projection.Retry(ctx, pool, name); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s tries its event again\n", name)
	case "skip":
		skipped, err := projection.Skip(ctx, pool, name, asked.event, actor(), asked.reason)
		if errors.Is(err, projection.ErrWhich) {
			return fmt.Errorf("%w; give --event ID", err)
		}
		if err != nil {
			return err
		}
		for _, f := range skipped {
			fmt.Fprintf(out, "%s goes on without %s\n", name, oneLine(f.String()))
		}
	case "remove":
		if err := projection.Remove(ctx, pool, name); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is removed: retention waits for it no more. `manager projections list` shows what is left of it; removing it again forgets that too\n", name)
	default:
		all, err := projection.List(ctx, pool)
		if err != nil {
			return err
		}
		return printProjections(out, all)
	}
	return nil
}

// actor names who gives the command.
func actor() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

func printProjections(out io.Writer, all []projection.State) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tGENERATION\tVERSION\tSTATUS\tHANDLED\tBEHIND\tOWNER\tSTOPPED AT")
	for _, s := range all {
		stopped := ""
		if s.Failure != nil {
			stopped = oneLine(s.Failure.String())
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%d\t%s\t%s\n", s.Name, s.Generation, s.Version, s.Status, s.Handled, s.Behind, s.Owner, stopped)
	}
	return w.Flush()
}
