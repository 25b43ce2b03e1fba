package projection

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
)

// maxLastPages bounds what a takeover reads while others wait for it. With more to read it is tried again later.
const maxLastPages = 20

var errFarBehind = errors.New("more events than a takeover reads have come meanwhile")

// takeOver puts a generation that has caught up in the place of the live one, in one transaction: with the live one locked, the last events are read, and
// the two change their status. Readers see the old read model until the commit, and the new one, never older than that, from then on.
func (f *feeder) takeOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.patience, errSlow)
	defer cancel()
	next := f.state
	err := pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error {
		// Appends that carry the projection along hold this shared; it waits for those under way, and holds up those to come.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('projection:' || $1, 0))`, f.def.name); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT FROM projections WHERE name = $1 AND status = 'live' FOR UPDATE`, f.def.name); err != nil {
			return err
		}
		if err := f.readRest(ctx, tx, &next); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE projections SET status = 'retired', updated_at = now() WHERE name = $1 AND status = 'live'`, f.def.name); err != nil {
			return err
		}
		if err := save(ctx, tx, &next, f.lease); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE projections SET status = 'live' WHERE `+owned, next.Name, next.Generation, next.LeaseEpoch)
		return err
	})
	if errors.Is(err, errFarBehind) {
		return nil // it goes on building
	}
	if err != nil {
		return fmt.Errorf("generation %d of projection %s taking over: %w", f.state.Generation, f.def.name, err)
	}
	f.state = next
	f.state.Status = statusLive
	f.log.Info("a read model that was built anew has taken over", "events", next.Handled)
	return nil
}

// readRest handles what is left to read within the takeover's transaction.
func (f *feeder) readRest(ctx context.Context, tx pgx.Tx, s *State) error {
	t := &Tx{tx: tx, generation: s.Generation}
	for range maxLastPages {
		page, err := storepg.ReadAll(ctx, tx, s.Checkpoint, eventstore.Filter{Categories: f.def.categories}, f.page)
		if err != nil {
			return err
		}
		for _, e := range page.Events {
			if f.skipped[e.ID] {
				continue
			}
			if err := f.def.handle(ctx, t, e); err != nil {
				return errFarBehind // the usual way finds out which event it is, and stops there
			}
		}
		if err := t.flush(ctx); err != nil {
			return errFarBehind
		}
		s.Checkpoint, s.Behind, s.Handled = page.Next, page.Behind, s.Handled+int64(len(page.Events))
		if n := len(page.Events); n > 0 {
			s.ReadUntil = page.Events[n-1].RecordedAt
		}
		if !page.More {
			return nil
		}
	}
	return errFarBehind
}

// removeBatch is how many rows of an old generation are removed at once.
const removeBatch = 5000

// removeRetired removes what old generations have written. It can be interrupted at any time, and goes on at the next start.
func (r *Runner) removeRetired(ctx context.Context, def *Definition) error {
	rows, err := r.pool.Query(ctx, `SELECT generation FROM projections WHERE name = $1 AND status = 'retired'`, def.name)
	if err != nil {
		return err
	}
	retired, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return err
	}
	for _, generation := range retired {
		for more := true; more; {
			if more, err = r.removeRows(ctx, def, generation); err != nil {
				return fmt.Errorf("removing generation %d of projection %s: %w", generation, def.name, err)
			}
		}
	}
	return nil
}

// removeRows removes a batch of an old generation's rows, and when none is left the generation itself. It reports whether there is more to do right away. One replica at a
// time does so: two would choose the same rows, and the one that came second find none of them left.
func (r *Runner) removeRows(ctx context.Context, def *Definition, generation int) (more bool, err error) {
	err = pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		var alone bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtextextended('projection_removal:' || $1, 0))`, def.name).Scan(&alone); err != nil || !alone {
			return err
		}
		forget := `DELETE FROM projections WHERE name = $1 AND generation = $2 AND status = 'retired'`
		for _, table := range def.tables { // their names were checked when the projection was defined
			tag, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE ctid = ANY (ARRAY(SELECT ctid FROM `+table+` WHERE generation = $1 LIMIT $2))`, generation, removeBatch)
			if err != nil {
				return fmt.Errorf("from %s: %w", table, err)
			}
			more = more || tag.RowsAffected() > 0
			forget += ` AND NOT EXISTS (SELECT FROM ` + table + ` WHERE generation = $2)`
		}
		if more {
			return nil
		}
		_, err := tx.Exec(ctx, forget, def.name, generation)
		return err
	})
	return more && err == nil, err
}
