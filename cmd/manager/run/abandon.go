package run

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/engine"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/saga"
)

const abandonUsage = `abandon UID --reason TEXT [--by NAME]`

// abandonRequest has the arguments of `manager abandon`.
type abandonRequest struct {
	uid        uuid.UUID
	reason, by string
}

// parseAbandon parses the arguments of `manager abandon`. It returns the flags that every command
// has.
func parseAbandon(args []string) (asked abandonRequest, rest []string, err error) {
	said, flags := words(args)
	// The prefix shows in the history that the request did not come by the API.
	asked.by = "command:" + actor()
	fs := flag.NewFlagSet("abandon", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&asked.reason, "reason", "", "")
	fs.Func("by", "", func(v string) error {
		if strings.TrimSpace(v) == "" {
			return errors.New("it must be the name of the person who abandons the saga")
		}
		asked.by = v
		return nil
	})
	given, rest := apart(fs, flags)
	if err := fs.Parse(given); err != nil {
		return asked, rest, err
	}
	if len(said) != 1 {
		return asked, rest, fmt.Errorf("usage: manager %s", abandonUsage)
	}
	if asked.uid, err = uuid.Parse(said[0]); err != nil {
		return asked, rest, fmt.Errorf("abandon: %q is not the uid of a saga: %w; usage: manager %s", said[0], err, abandonUsage)
	}
	if err := saga.CheckAbandonment(asked.reason); err != nil {
		return asked, rest, fmt.Errorf("abandon: --reason: %w; usage: manager %s", err, abandonUsage)
	}
	return asked, rest, nil
}

// abandon abandons a saga in the database, without the API server and the HTTP API.
func abandon(ctx context.Context, c Config, asked abandonRequest, out io.Writer) error {
	pool, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer pool.Close()
	machine, err := engine.New(engine.Options{Store: storepg.New(pool), Notify: func(engine.Key) {}})
	if err != nil {
		return err
	}
	key, _, err := machine.Recorded(ctx, asked.uid)
	if errors.Is(err, engine.ErrNotStarted) {
		return fmt.Errorf("the database has no saga with the uid %s: check the uid, and that DATABASE_URL is the database of the operator; "+
			"if the saga has an object, delete it, or abandon the saga by the HTTP API if its status has a recordedVersion", asked.uid)
	}
	if err != nil {
		return err
	}
	state, err := machine.Abandon(ctx, key, engine.Abandonment{By: asked.by, Reason: asked.reason, Recorded: true})
	if err != nil {
		return err
	}
	printAbandoned(out, key, state)
	return nil
}

// printAbandoned describes an abandoned saga, and what may remain of it.
func printAbandoned(out io.Writer, key engine.Key, state saga.State) {
	fmt.Fprintf(out, "saga %s/%s (%s) is abandoned: the operator does nothing more for it\n", oneLine(key.Namespace), oneLine(key.Name), key.UID)
	remain := state.MayRemain()
	switch {
	case len(state.Steps) == 0:
		fmt.Fprintln(out, "it is not known what may remain, because its events cannot be read: look at its participants")
	case len(remain) == 0:
		fmt.Fprintln(out, "no effects of its steps remain")
	default:
		fmt.Fprintf(out, "effects of these steps may remain: %s\n", oneLine(strings.Join(remain, ", ")))
	}
}
