package cqrs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/projection"
)

const (
	// How those who try events again poll.
	minPoll = 20 * time.Millisecond
	maxPoll = time.Second
	// maxErrorBytes bounds what is kept of an error.
	maxErrorBytes = 2 << 10
)

// park puts an event aside: because its handler failed, or behind another of its stream. An event that is read again was not parked: that it is and the checkpoint behind it are committed together.
func (s *Subscription) park(ctx context.Context, tx *projection.Tx, e *eventstore.Recorded, failure error) error {
	metadata, err := json.Marshal(e.Metadata)
	if err != nil {
		return fmt.Errorf("encoding the metadata of event %s: %w", e.ID, err)
	}
	attempts, text, pause := 0, "", time.Duration(0)
	if failure != nil {
		attempts, text, pause = 1, clip(failure.Error()), s.options.Backoff.pause(1)
	}
	_, err = tx.Exec(ctx, `INSERT INTO event_handlers_parked
			(subscription, stream, version, position, event_id, type, schema_version, data, metadata, recorded_at, attempts, error, due_at, dead)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, now() + $13::interval, $14)`,
		s.options.Name, e.Stream, e.Version, e.Position, e.ID, e.Type, e.SchemaVersion, e.Data, json.RawMessage(metadata), e.RecordedAt, attempts, text, pause,
		attempts >= s.options.Attempts)
	if err != nil {
		return fmt.Errorf("parking event %s of stream %s: %w", e.ID, e.Stream, err)
	}
	select {
	case s.parked <- struct{}{}:
	default:
	}
	return nil
}

// retry tries parked events again as they become due.
func (s *Subscription) retry(ctx context.Context) {
	pause := minPoll
	for ctx.Err() == nil {
		tried, err := s.retryOne(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Warn("parked events cannot be tried again for now", "error", err)
			pause = maxPoll
		case tried:
			pause = minPoll
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			pause = min(pause*2, maxPoll)
		case <-s.parked:
			pause = minPoll
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// parkedEvent is an event that is tried again.
type parkedEvent struct {
	eventstore.Recorded
	attempts int
}

// firstDue locks the first event of some stream, when it is due. Replicas pass over what others have locked; and nobody comes to a later event of the stream as long as the row is there.
const firstDue = `SELECT stream, version, position, event_id, type, schema_version, data, metadata, recorded_at, attempts
	FROM event_handlers_parked p WHERE subscription = $1 AND NOT dead AND due_at <= now()
		AND NOT EXISTS (SELECT FROM event_handlers_parked b WHERE b.subscription = p.subscription AND b.stream = p.stream AND b.version < p.version)
	ORDER BY due_at LIMIT 1 FOR UPDATE OF p SKIP LOCKED`

// retryOne tries one event again, with its row locked: when the process dies, the lock goes with it. It reports whether there was one.
func (s *Subscription) retryOne(ctx context.Context) (tried bool, err error) {
	err = pgx.BeginFunc(ctx, s.options.Pool, func(tx pgx.Tx) error {
		e, err := lockDue(ctx, tx, s.options.Name)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		tried = true
		attempt := e.attempts + 1
		began := time.Now()
		r := &reaction{handler: "none"}
		failure := errors.New("the subscription has no handler for its type any more; drop it, or run a program that has one")
		if known := s.events.reactions[e.Type]; known != nil {
			r = known[0]
			failure = s.events.handle(ctx, r, Envelope{Recorded: e.Recorded, Attempt: attempt}, s.options.Timeout)
		}
		const row = ` WHERE subscription = $1 AND stream = $2 AND version = $3`
		switch {
		case failure == nil:
			s.metrics.handled(s.options.Name, r, outcomeHandled, began)
			_, err = tx.Exec(ctx, `DELETE FROM event_handlers_parked`+row, s.options.Name, e.Stream, e.Version)
		case ctx.Err() != nil: // the process stops; it is not the handler's fault
			err = ctx.Err()
		default:
			dead := s.failed(r, &e.Recorded, attempt, began, failure)
			_, err = tx.Exec(ctx, `UPDATE event_handlers_parked SET attempts = $4, error = $5, due_at = now() + $6::interval, dead = $7`+row,
				s.options.Name, e.Stream, e.Version, attempt, clip(failure.Error()), s.options.Backoff.pause(attempt), dead)
		}
		return err
	})
	return tried, err
}

func lockDue(ctx context.Context, tx pgx.Tx, subscription string) (e parkedEvent, err error) {
	var metadata []byte
	err = tx.QueryRow(ctx, firstDue, subscription).Scan(&e.Stream, &e.Version, &e.Position, &e.ID, &e.Type, &e.SchemaVersion, (*[]byte)(&e.Data), &metadata, &e.RecordedAt, &e.attempts)
	if err != nil {
		return e, err
	}
	e.RecordedAt = e.RecordedAt.UTC()
	return e, json.Unmarshal(metadata, &e.Metadata)
}

// tend looks now and then at how much is parked: for the metrics, and for the reader, which stops while it is too much.
func (s *Subscription) tend(ctx context.Context) {
	for ctx.Err() == nil {
		var waiting, dead int
		err := s.options.Pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE NOT dead), count(*) FILTER (WHERE dead)
			FROM (SELECT DISTINCT ON (stream) dead FROM event_handlers_parked WHERE subscription = $1 ORDER BY stream, version) firsts`, s.options.Name).Scan(&waiting, &dead)
		if err == nil {
			s.metrics.waiting.WithLabelValues(s.options.Name).Set(float64(waiting))
			s.metrics.dead.WithLabelValues(s.options.Name).Set(float64(dead))
			full := waiting >= s.options.MaxWaiting || dead >= maxDeadStreams
			if was := s.source.full.Swap(full); full && !was {
				s.log.Warn("a subscription reads no further until some of what has failed goes through or is dropped", "waiting", waiting, "dead", dead)
			}
		}
		if s.source.pageAge() > 2*s.options.Lease { // somebody else reads, and reports it
			s.metrics.behind.DeleteLabelValues(s.options.Name)
		}
		_ = wait(ctx, maxPoll)
	}
}

// clip makes a text of an error that can be kept.
func clip(s string) string {
	if len(s) > maxErrorBytes {
		s = s[:maxErrorBytes] + "…"
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
}
