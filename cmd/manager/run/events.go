package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

const eventsUsage = `events list [SUBSCRIPTION] | retry SUBSCRIPTION ID | drop SUBSCRIPTION ID REASON`

// askedOfEvents is what `manager events …` was asked for.
type askedOfEvents struct {
	verb, subscription string
	id                 uuid.UUID
	reason             string
}

// parseEvents checks what stands behind `manager events`.
func parseEvents(said []string) (asked askedOfEvents, err error) {
	n := len(said)
	usage := fmt.Errorf("usage: manager %s", eventsUsage)
	if n == 0 {
		return asked, usage
	}
	asked.verb = said[0]
	if n > 1 {
		asked.subscription = said[1]
	}
	if n > 3 {
		asked.reason = strings.TrimSpace(strings.Join(said[3:], " "))
	}
	switch {
	case asked.verb == "list" && n <= 2:
		return asked, nil
	case asked.verb == "retry" && n == 3, asked.verb == "drop" && asked.reason != "":
	default:
		return asked, usage
	}
	if asked.id, err = uuid.Parse(said[2]); err != nil {
		return asked, fmt.Errorf("events %s: %q is not the ID of an event: %w; `manager events list` shows them", asked.verb, said[2], err)
	}
	return asked, nil
}

// ofEvents does what `manager events …` asks for.
func ofEvents(ctx context.Context, c Config, asked askedOfEvents, out io.Writer) error {
	pool, err := openDatabase(ctx, c)
	if err != nil {
		return err
	}
	defer pool.Close()
	if asked.verb == "list" {
		all, err := cqrs.DeadLetters(ctx, pool, asked.subscription, listed+1)
		if err != nil {
			return err
		}
		return printDeadLetters(out, all)
	}
	err = changeDeadLetter(ctx, pool, asked, out)
	if errors.Is(err, cqrs.ErrNoDeadLetter) {
		return fmt.Errorf("%w; `manager events list` shows all that there are", err)
	}
	return err
}

// changeDeadLetter has a dead letter tried again, or dropped.
func changeDeadLetter(ctx context.Context, pool *pgxpool.Pool, asked askedOfEvents, out io.Writer) error {
	if asked.verb == "retry" {
		if err := cqrs.RetryDead(ctx, pool, asked.subscription, asked.id); err != nil {
			return err
		}
		fmt.Fprintf(out, "event %s is tried again by whoever runs %s, and what waits behind it comes after it; `manager events list` shows it when it fails for good again\n", asked.id, asked.subscription)
		return nil
	}
	if err := cqrs.DropDead(ctx, pool, asked.subscription, asked.id, actor(), asked.reason); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s does without event %s for good; what waited behind it goes on\n", asked.subscription, asked.id)
	return nil
}

func printDeadLetters(out io.Writer, all []cqrs.DeadLetter) error {
	more := len(all) > listed
	all = all[:min(len(all), listed)]
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tSUBSCRIPTION\tSTREAM\tVERSION\tTYPE\tRECORDED\tPARKED\tATTEMPTS\tBEHIND IT\tERROR")
	for i := range all {
		d := &all[i]
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t%d\t%s\n", d.EventID, d.Subscription, oneLine(d.Stream), d.Version, oneLine(d.Type), second(d.RecordedAt), second(d.ParkedAt),
			d.Attempts, d.Followers, oneLine(d.Error))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more {
		fmt.Fprintf(out, "these are the oldest %d; there are more\n", listed)
	}
	return nil
}
