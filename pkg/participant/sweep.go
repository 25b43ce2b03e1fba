package participant

import (
	"context"
	"fmt"
	"time"
)

// Work goes before its barrier: a barrier is kept as long as there is work of its effect, which a compensation may still have to withdraw.
const (
	sweepWork = `DELETE FROM saga_work WHERE (realm, key) IN (
		SELECT realm, key FROM saga_work WHERE ended IS NOT NULL AND due_at <= now() - $1::interval ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED)`
	sweepBarriers = `DELETE FROM saga_barriers WHERE (realm, effect) IN (
		SELECT realm, effect FROM saga_barriers b WHERE at <= now() - $1::interval AND NOT EXISTS (SELECT FROM saga_work w WHERE w.realm = b.realm AND w.effect = b.effect)
		ORDER BY at LIMIT $2 FOR UPDATE OF b SKIP LOCKED)`
)

// Sweep removes what takes room and is not asked for any more: barriers, and work that has ended, older than olderThan, and keys whose time is over; up to limit of each. It returns how many:
// there may be more until that is 0. Several processes may sweep at once, and nobody waits for them. Nothing but the room depends on it, and nothing calls it by itself.
//
// olderThan has to be longer than any saga takes, also one that is suspended, or parked until a person decides. Where a barrier is gone that a saga still needs, an action that comes again
// is carried out again, and a compensation finds nothing to undo, and says that with a success.
func (s *Service) Sweep(ctx context.Context, olderThan time.Duration, limit int) (int, error) {
	if olderThan <= 0 {
		return 0, fmt.Errorf("sweeping barriers and work: %s is no age; name one that is longer than any saga takes", olderThan)
	}
	swept := 0
	for _, sql := range []string{sweepWork, sweepBarriers} {
		tag, err := s.db.Exec(ctx, sql, olderThan, max(limit, 0))
		if err != nil {
			return swept, fmt.Errorf("sweeping barriers and work: %w", explain(err))
		}
		swept += int(tag.RowsAffected())
	}
	n, err := s.keys.Sweep(ctx, limit)
	return swept + n, err
}
