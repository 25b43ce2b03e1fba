package run

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"

	"github.com/vextrus/saga-operator/internal/postgres"
	"github.com/vextrus/saga-operator/internal/projection"
)

const projectionsUsage = `projections list | rebuild NAME | retry NAME | skip NAME REASON`

// words takes the arguments before the first flag.
func words(args []string) (before, flags []string) {
	for i, a := range args {
		if strings.HasPrefix(a, "-") {
			return args[:i], args[i:]
		}
	}
	return args, nil
}

// projections does what `manager projections …` asks for.
func projections(ctx context.Context, c Config, asked []string, out io.Writer) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: string(c.DatabaseURL), MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := postgres.CheckSchema(ctx, pool); err != nil {
		return err
	}
	verb, name, rest := asked[0], strings.Join(asked[1:min(2, len(asked))], ""), asked[min(2, len(asked)):]
	switch verb {
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
		skipped, err := projection.Skip(ctx, pool, name, actor(), strings.Join(rest, " "))
		if err != nil {
			return err
		}
		for _, f := range skipped {
			fmt.Fprintf(out, "%s goes on without %s\n", name, &f)
		}
	default:
		all, err := projection.List(ctx, pool)
		if err != nil {
			return err
		}
		return printProjections(out, all)
	}
	return nil
}

// askedOfProjections checks what stands behind `manager projections`.
func askedOfProjections(asked []string) error {
	n := len(asked)
	if n == 1 && asked[0] == "list" || n == 2 && (asked[0] == "rebuild" || asked[0] == "retry") || n >= 3 && asked[0] == "skip" {
		return nil
	}
	return fmt.Errorf("usage: manager %s", projectionsUsage)
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
			stopped = s.Failure.String()
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%d\t%s\t%s\n", s.Name, s.Generation, s.Version, s.Status, s.Handled, s.Behind, s.Owner, stopped)
	}
	return w.Flush()
}
