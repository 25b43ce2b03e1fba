package projection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Errors of the operations that people ask for; test with errors.Is.
var (
	ErrUnknown    = errors.New("there is no such projection")
	ErrBuilding   = errors.New("it is being built anew already")
	ErrNotStopped = errors.New("it has not stopped at an event")
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
	_, err := sendOn(ctx, pool, name, nil)
	if err != nil {
		return fmt.Errorf("retrying projection %s: %w", name, err)
	}
	return nil
}

// Skip has a stopped projection go on without the event that it stopped at, for good: rebuilds do without it too. Who said so, and why, is kept.
func Skip(ctx context.Context, pool *pgxpool.Pool, name, actor, reason string) ([]Failure, error) {
	if reason == "" || actor == "" {
		return nil, fmt.Errorf("skipping the event at which projection %s has stopped: say who does so, and why", name)
	}
	skipped, err := sendOn(ctx, pool, name, func(tx pgx.Tx, f *Failure) error {
		_, err := tx.Exec(ctx, `INSERT INTO projection_skips (name, event_id, reason, actor) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`, name, f.EventID, reason, actor)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("skipping the event at which projection %s has stopped: %w", name, err)
	}
	return skipped, nil
}

// sendOn clears the failures of a projection's generations, after each has been dealt with.
func sendOn(ctx context.Context, pool *pgxpool.Pool, name string, deal func(pgx.Tx, *Failure) error) (failures []Failure, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM projections WHERE name = $1 FOR UPDATE`, name); err != nil {
			return err
		}
		all, err := generations(ctx, tx, name)
		switch {
		case err != nil:
			return err
		case len(all) == 0:
			return ErrUnknown
		}
		for _, s := range all {
			if s.Failure == nil {
				continue
			}
			failures = append(failures, *s.Failure)
			if deal != nil {
				if err := deal(tx, s.Failure); err != nil {
					return err
				}
			}
		}
		if len(failures) == 0 {
			return ErrNotStopped
		}
		_, err = tx.Exec(ctx, `UPDATE projections SET failure = NULL, updated_at = now() WHERE name = $1 AND failure IS NOT NULL`, name)
		return err
	})
	return failures, err
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
