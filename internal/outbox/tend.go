package outbox

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// awayPause is how long parked messages are left alone when the sink does not take them for its own sake.
const awayPause = time.Second

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
			keys = append(keys, s.parking.idle()...) // some of which are in both
			slices.Sort(keys)
			err = s.lookUp(ctx, slices.Compact(keys))
		}
		if err != nil {
			s.reload.Store(true)
			return next, err
		}
	}
	for ctx.Err() == nil {
		limit := s.limits.Batch * s.limits.Parallel
		if s.refusesAll() || s.away {
			limit = 1
		}
		ready, unknown, next := s.parking.due(time.Now(), limit)
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
		switch {
		case s.refusesAll():
			return time.Now().Add(maxUnavailable), nil
		case s.away:
			return time.Now().Add(awayPause), nil
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
	published := succeeded(errs)
	s.went(published)
	failures, away := s.failures(all, errs)
	s.away = published == 0 && away != nil
	err = pgx.BeginFunc(hard, s.pool, func(tx pgx.Tx) error {
		for i := range all {
			var err error
			switch failure := failures[i]; {
			case failure == nil:
				err = s.delivered(hard, tx, &all[i], heads[i])
			case failure.Kind != Unavailable:
				err = s.failedAgain(hard, tx, &all[i], heads[i], failure)
			}
			if err != nil {
				return err
			}
		}
		return s.reader.count(hard, tx, published)
	})
	switch {
	case err == nil && away != nil:
		s.tellTrouble(ctx, away)
		s.parking.later(keys, time.Now().Add(max(awayPause, min(away.RetryAfter, maxAsked))))
		return nil
	case err == nil && published > 0:
		s.tellTrouble(ctx, nil)
	}
	return errors.Join(err, s.lookUp(ctx, keys))
}

// failures says whose fault it is that some parked messages were not taken. away is one that is the sink's, where there is any.
func (s *shard) failures(all []Message, errs []error) (failures []*Error, away *Error) {
	failures = make([]*Error, len(all))
	for i := range all {
		key := all[i].Key
		before := s.refused[key]
		failures[i] = s.judge(asError(errs[i]), &before)
		if failures[i] == nil || before == 0 {
			delete(s.refused, key)
		} else {
			s.refused[key] = before
		}
		if failures[i] != nil && failures[i].Kind == Unavailable {
			away = failures[i]
		}
	}
	return failures, away
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
			defer func() { done <- p }()
			room <- struct{}{}
			defer func() { <-room }()
			copy(errs[p.from:p.to], s.publish(hard, all[p.from:p.to]))
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
		s.died(m, attempts, failure)
	}
	_, err := tx.Exec(ctx, `UPDATE outbox_parked SET attempts = $5, due_at = now() + $6::interval, dead = $7, reason = $8, error = $9
		WHERE sink = $1 AND shard = $2 AND key = $3 AND sequence = $4`,
		s.reader.sink, s.reader.shard, m.Key, h.sequence, attempts, max(s.sink.Retry.pause(attempts), min(failure.RetryAfter, maxAsked)), dead, failure.Reason, clip(failure.Error()))
	return err
}

// isStale reports whether an error says that a lease is lost.
func isStale(err error) bool { return errors.Is(err, errStale) }
