package inventory

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// sweepEvery is how often goods are looked for whose time is over. A commit is refused from the moment of expiry, whether or not they are back by then.
	sweepEvery = time.Second
	// sweepAtMost is how many reservations one transaction takes, so that it locks articles for a moment only.
	sweepAtMost = 100
)

// Run gives back what is held for too long, until ctx is done. Any number of processes may do so.
func (s *Service) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = s.Service.Run(ctx) })
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		n, err := s.Sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil: // the database is away; the goods wait
			s.Log().Error("looking for expired reservations failed", "error", err)
		case n == sweepAtMost:
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep makes the goods of some expired reservations available again, and returns how many reservations there were: at most a hundred.
func (s *Service) Sweep(ctx context.Context) (n int, err error) {
	err = pgx.BeginFunc(ctx, s.Pool(), func(tx pgx.Tx) error {
		// A reservation that somebody is committing or releasing is skipped: it is not to be waited for, and will be looked at again.
		rows, err := tx.Query(ctx, `UPDATE inventory.reservations SET state = $1, changed_at = now() WHERE id IN (
			SELECT id FROM inventory.reservations WHERE state = 'reserved' AND expires_at <= now() ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
		) RETURNING id`, expired, sweepAtMost)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil || len(ids) == 0 {
			return err
		}
		n = len(ids)
		return restock(ctx, tx, ids)
	})
	if err != nil {
		return 0, fmt.Errorf("giving back what expired reservations hold: %w", err)
	}
	return n, nil
}
