package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Errors of the operations that people ask for; test with errors.Is.
var (
	ErrUnknown    = errors.New("there is no such projection")
	ErrBuilding   = errors.New("it is being built anew already")
	ErrNotStopped = errors.New("it has not stopped at an event")
	ErrWhich      = errors.New("its generations have stopped at different events; name one")
	ErrFed        = errors.New("a process feeds it: its code is still there")
)

// List returns every generation of every projection, retired ones that are still being removed included.
func List(ctx context.Context, pool *pgxpool.Pool) ([]State, error) {
	rows, err := pool.Query(ctx, `SELECT `+stateColumns+` FROM projections ORDER BY name, generation`)
	if err != nil {
		return nil, fmt.Errorf("listing the projections: %w", err)
	}
	all, err := pgx.CollectRows(rows, scanState)
	if err != nil {
		return nil, fmt.Errorf("listing the projections: %w", err)
	}
	return all, nil
}

// Rebuild has a projection built anew from the first event, beside the read model that is live, which it replaces when it has caught up.
func Rebuild(ctx context.Context, pool *pgxpool.Pool, name string) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		all, err := generations(ctx, tx, name)
		switch {
		case err != nil:
			return err
		case len(all) == 0:
			return ErrUnknown
		}
		var newest State
		for _, s := range all {
			if s.Status == statusBuilding {
				return ErrBuilding
			}
			if s.Version > newest.Version {
				newest = s
			}
		}
		return beginBuilding(ctx, tx, name, newest.Version, newest.Inline)
	})
	if err != nil {
		return fmt.Errorf("rebuilding projection %s: %w", name, err)
	}
	return nil
}

// Retry has a stopped projection try its event again, after what was wrong has been mended.
func Retry(ctx context.Context, pool *pgxpool.Pool, name string) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		stopped, err := stoppedOf(ctx, tx, name)
		if err != nil {
			return err
		}
		return sendOn(ctx, tx, stopped)
	})
	if err != nil {
		return fmt.Errorf("retrying projection %s: %w", name, err)
	}
	return nil
}

// Skip has a stopped projection go on without the event that it stopped at, for good: rebuilds do without it too. Who said so, and why, is kept. Given an event it skips that one or none;
// it has to be given where the live generation and the one being built have stopped at different ones. What was skipped is returned, of each generation that had stopped there.
func Skip(ctx context.Context, pool *pgxpool.Pool, name string, event uuid.UUID, actor, reason string) (skipped []Failure, err error) {
	if reason == "" || actor == "" {
		return nil, fmt.Errorf("skipping the event at which projection %s has stopped: say who does so, and why", name)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		stopped, err := stoppedOf(ctx, tx, name)
		if err != nil {
			return err
		}
		chosen, err := stoppedAt(stopped, event)
		if err != nil {
			return err
		}
		for _, s := range chosen {
			if _, err := tx.Exec(ctx, `INSERT INTO projection_skips (name, event_id, reason, actor) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, name, s.Failure.EventID, reason, actor); err != nil {
				return err
			}
			skipped = append(skipped, *s.Failure)
		}
		return sendOn(ctx, tx, chosen)
	})
	if err != nil {
		return nil, fmt.Errorf("skipping the event at which projection %s has stopped: %w", name, err)
	}
	return skipped, nil
}

// stoppedAt chooses the generations that have stopped at an event; without one, all, if they have stopped at the same.
func stoppedAt(stopped []State, event uuid.UUID) (chosen []State, err error) {
	different := false
	var at []string
	for _, s := range stopped {
		different = different || s.Failure.EventID != stopped[0].Failure.EventID
		at = append(at, fmt.Sprintf("generation %d at %s", s.Generation, s.Failure))
		if event == uuid.Nil || event == s.Failure.EventID {
			chosen = append(chosen, s)
		}
	}
	switch {
	case event == uuid.Nil && different:
		return nil, fmt.Errorf("%w: %s", ErrWhich, strings.Join(at, "; "))
	case len(chosen) == 0:
		return nil, fmt.Errorf("%w %s: %s", ErrNotStopped, event, strings.Join(at, "; "))
	}
	return chosen, nil
}

// stoppedOf returns the generations of a projection that have stopped, at least one, and keeps others from sending them on until the transaction ends.
func stoppedOf(ctx context.Context, tx pgx.Tx, name string) (stopped []State, err error) {
	if _, err := tx.Exec(ctx, `SELECT FROM projections WHERE name = $1 FOR UPDATE`, name); err != nil {
		return nil, err
	}
	all, err := generations(ctx, tx, name)
	switch {
	case err != nil:
		return nil, err
	case len(all) == 0:
		return nil, ErrUnknown
	}
	for _, s := range all {
		if s.Failure != nil {
			stopped = append(stopped, s)
		}
	}
	if len(stopped) == 0 {
		return nil, ErrNotStopped
	}
	return stopped, nil
}

// sendOn clears the failures of some generations.
func sendOn(ctx context.Context, tx pgx.Tx, stopped []State) error {
	for _, s := range stopped {
		if _, err := tx.Exec(ctx, `UPDATE projections SET failure = NULL, updated_at = now() WHERE name = $1 AND generation = $2`, s.Name, s.Generation); err != nil {
			return err
		}
	}
	return nil
}

// Remove ends a projection whose code is gone, which nobody feeds and for whose sake nothing is removed from the store any more. Its generations are retired; their rows go when a
// process knows their tables again. Of one that is retired already, the generations are forgotten.
func Remove(ctx context.Context, pool *pgxpool.Pool, name string) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT lease_until > now() FROM projections WHERE name = $1 FOR UPDATE`, name)
		if err != nil {
			return err
		}
		fed, err := pgx.CollectRows(rows, pgx.RowTo[bool])
		switch {
		case err != nil:
			return err
		case len(fed) == 0:
			return ErrUnknown
		case slices.Contains(fed, true):
			return ErrFed
		}
		tag, err := tx.Exec(ctx, `UPDATE projections SET status = 'retired', failure = NULL, updated_at = now() WHERE name = $1 AND status <> 'retired'`, name)
		if err != nil || tag.RowsAffected() > 0 {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM projections WHERE name = $1`, name)
		return err
	})
	if err != nil {
		return fmt.Errorf("removing projection %s: %w", name, err)
	}
	return nil
}

// Wait returns when the live read model of a projection shows an append, for a reader that wants to see its own write. It fails when the projection has stopped.
func Wait(ctx context.Context, pool *pgxpool.Pool, name string, token eventstore.Token) error {
	pause := time.Millisecond
	for {
		all, err := generations(ctx, pool, name)
		if err != nil {
			return fmt.Errorf("waiting for projection %s: %w", name, err)
		}
		known := false
		for _, s := range all {
			known = known || s.Status == statusLive
			switch {
			case s.Status != statusLive:
			case s.Inline || s.Checkpoint.Sees(token):
				return nil
			case s.Failure != nil:
				return fmt.Errorf("waiting for projection %s: it has stopped at %s", name, s.Failure)
			}
		}
		if !known {
			return fmt.Errorf("waiting for projection %s: %w", name, ErrUnknown)
		}
		if err := wait(ctx, nil, pause); err != nil {
			return fmt.Errorf("waiting for projection %s to show %s: %w", name, token, err)
		}
		pause = min(pause*2, 100*time.Millisecond)
	}
}
