package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// tendParked tries parked messages again when they are due, beside the pages: their keys are not in any.
func (s *shard) tendParked(ctx, hard context.Context) {
	for ctx.Err() == nil {
		next, err := s.tendOnce(ctx, hard)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("parked messages could not be looked after; it is tried again", "error", err)
			next = time.Now().Add(maxPoll)
		}
		if next.IsZero() {
			next = time.Now().Add(time.Hour)
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-s.tend:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (s *shard) wakeParked() {
	select {
	case s.tend <- struct{}{}:
	default:
	}
}

// tendOnce does what is due and returns when the next is.
func (s *shard) tendOnce(ctx, hard context.Context) (next time.Time, err error) {
	if s.reload.Swap(false) { // a person has retried or dropped some
		keys, err := loadParked(ctx, s.pool, &s.reader)
		if err == nil {
			err = s.lookUp(ctx, append(keys, s.parking.idle()...))
		}
		if err != nil {
			s.reload.Store(true)
			return next, err
		}
	}
	for ctx.Err() == nil {
		ready, unknown, next := s.parking.due(time.Now(), s.limits.Batch*s.limits.Parallel)
		if len(ready)+len(unknown) == 0 {
			return next, nil
		}
		if err := s.lookUp(ctx, unknown); err != nil {
			s.parking.later(ready, time.Now().Add(maxPoll))
			return next, err
		}
		if len(ready) == 0 {
			continue
		}
		if err := s.tryAgain(ctx, hard, ready); err != nil {
			s.parking.later(ready, time.Now().Add(maxPoll))
			return next, err
		}
	}
	return next, nil
}

// lookUp finds the oldest parked messages of some keys.
func (s *shard) lookUp(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	s.parking.look(keys)
	heads, err := findHeads(ctx, s.pool, &s.reader, keys)
	if err != nil {
		return err
	}
	s.parking.found(keys, heads)
	return nil
}

// tryAgain publishes the oldest parked message of each of some keys, and records what came of it.
func (s *shard) tryAgain(ctx, hard context.Context, keys []string) error {
	all, heads, err := loadHeads(ctx, s.pool, &s.reader, keys)
	if err != nil {
		return err
	}
	if err := s.checkLease(hard); err != nil {
		return err
	}
	errs := s.publishAll(hard, all)
	var away *Error
	err = pgx.BeginFunc(hard, s.pool, func(tx pgx.Tx) error {
		published := 0
		for i := range all {
			failure := asError(errs[i])
			switch {
			case failure == nil:
				published++
				err = s.delivered(hard, tx, &all[i], heads[i])
			case failure.Kind == Unavailable:
				away = failure
			default:
				err = s.failedAgain(hard, tx, &all[i], heads[i], failure)
			}
			if err != nil {
				return err
			}
		}
		return s.reader.count(hard, tx, published)
	})
	if err != nil || away == nil {
		return errors.Join(err, s.lookUp(ctx, keys))
	}
	s.tellTrouble(ctx, away)
	s.parking.later(keys, time.Now().Add(max(minUnavailable*5, min(away.RetryAfter, maxAsked))))
	return nil
}

// publishAll publishes messages of different keys in as large pieces as the publisher likes.
func (s *shard) publishAll(hard context.Context, all []Message) []error {
	errs := make([]error, len(all))
	type piece struct{ from, to int }
	room := make(chan struct{}, s.limits.Parallel)
	done := make(chan piece)
	pieces := 0
	for from := 0; from < len(all); from += s.limits.Batch {
		p := piece{from, min(from+s.limits.Batch, len(all))}
		pieces++
		go func() {
			room <- struct{}{}
			copy(errs[p.from:p.to], s.publish(hard, all[p.from:p.to]))
			<-room
			done <- p
		}()
	}
	for range pieces {
		<-done
	}
	return errs
}

// delivered removes a parked message that went through.
func (s *shard) delivered(ctx context.Context, tx pgx.Tx, m *Message, h head) error {
	s.metrics.took(s.sink.Name, time.Since(m.RecordedAt))
	_, err := tx.Exec(ctx, `DELETE FROM outbox_parked WHERE sink = $1 AND shard = $2 AND key = $3 AND sequence = $4`, s.reader.sink, s.reader.shard, m.Key, h.sequence)
	return err
}

// failedAgain records another failure of a parked message: it is tried again later, or is a dead letter now.
func (s *shard) failedAgain(ctx context.Context, tx pgx.Tx, m *Message, h head, failure *Error) error {
	attempts := h.attempts + 1
	dead := failure.Kind == Rejected || attempts >= s.sink.Retry.MaxAttempts
	s.metrics.failed(s.sink.Name, dead)
	if dead {
		s.log.Error("a message is a dead letter; `manager outbox retry` or `drop` sends its key on", "message", m.ID, "type", m.Type, "key", m.Key, "attempts", attempts, "error", failure)
	}
	_, err := tx.Exec(ctx, `UPDATE outbox_parked SET attempts = $5, due_at = now() + $6::interval, dead = $7, reason = $8, error = $9
		WHERE sink = $1 AND shard = $2 AND key = $3 AND sequence = $4`,
		s.reader.sink, s.reader.shard, m.Key, h.sequence, attempts, max(s.sink.Retry.pause(attempts), min(failure.RetryAfter, maxAsked)), dead, failure.Reason, clip(failure.Error()))
	return err
}

// isStale reports whether an error says that a lease is lost.
func isStale(err error) bool { return errors.Is(err, errStale) }
