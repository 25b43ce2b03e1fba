// Package sagas has the operator's own read models: what happened in each saga, and how many there are.
package sagas

import (
	"context"
	"strings"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/internal/saga"
)

// category is that of the engine's streams, saga-<uid>.
const category = "saga"

// decode: one saga of a newer version must not keep everybody's history from going on.
func decode(r eventstore.Recorded) (any, error) {
	return saga.UnmarshalToShow(r.Type, r.SchemaVersion, r.Data)
}

// uidOf is the uid of the saga that a stream is of.
func uidOf(e eventstore.Recorded) string { return strings.TrimPrefix(e.Stream, category+"-") }

// entry is a row of the history.
type entry struct {
	at             time.Time
	step           string
	direction      saga.Direction
	attempt        int
	outcome        saga.OutcomeKind
	reason         string
	message, actor string
	retryAt        time.Time
}

// History is the projection saga_history: one row for each event of each saga.
func History() *projection.Definition {
	return projection.Define("saga_history", 1, category).Tables("saga_history_rows").
		On("SagaStarted", projection.For(decode, started)).
		On("AttemptStarted", note(func(e saga.AttemptStarted) entry { return attempt(e.At, e.Attempt) })).
		On("AttemptResent", note(func(e saga.AttemptResent) entry { return attempt(e.At, e.Attempt) })).
		On("AttemptAccepted", note(func(e saga.AttemptAccepted) entry {
			row := attempt(e.At, e.Attempt)
			row.message = "waiting for the answer until " + e.AnswerBy.Format(time.RFC3339)
			return row
		})).
		On("AttemptSucceeded", note(func(e saga.AttemptSucceeded) entry {
			row := attempt(e.At, e.Attempt)
			row.outcome = saga.Succeeded
			return row
		})).
		On("AttemptFailed", note(func(e saga.AttemptFailed) entry {
			row := attempt(e.At, e.Attempt)
			row.outcome, row.reason, row.message, row.retryAt = e.Outcome, e.Reason, e.Message, e.RetryAt
			return row
		})).
		On("SagaCompensating", note(func(e saga.SagaCompensating) entry {
			return entry{at: e.At.At, step: e.Step, reason: or(e.Reason, string(e.Cause)), message: e.Message}
		})).
		On("SagaParked", note(func(e saga.SagaParked) entry {
			return entry{at: e.At.At, step: e.Step, reason: e.Reason, message: e.Message}
		})).
		On("DecisionMade", note(func(e saga.DecisionMade) entry {
			return entry{at: e.At.At, step: e.Step, reason: string(e.Verdict), message: e.Reason, actor: e.By}
		})).
		On("SagaCompleted", note(func(e saga.SagaCompleted) entry { return entry{at: e.At.At} })).
		On("SagaCompensated", note(func(e saga.SagaCompensated) entry { return entry{at: e.At.At} })).
		On("SagaAbandoned", note(func(e saga.SagaAbandoned) entry { return entry{at: e.At.At, message: e.Reason, actor: e.By} })).
		On("SagaSuspended", note(func(e saga.SagaSuspended) entry { return entry{at: e.At.At} })).
		On("SagaResumed", note(func(e saga.SagaResumed) entry { return entry{at: e.At.At} }))
}

func attempt(at saga.At, a saga.Attempt) entry {
	return entry{at: at.At, step: a.Text(), direction: a.Direction, attempt: a.Number}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// text is a text of an event as a column takes it: events are json, which has NUL, and PostgreSQL's text has not. One such character in what a participant answered
// must not keep everybody's history from going on.
func text[S ~string](s S) string { return strings.ReplaceAll(string(s), "\x00", "\uFFFD") }

func started(ctx context.Context, tx *projection.Tx, e projection.Event[saga.SagaStarted]) error {
	return tx.Queue(ctx, `INSERT INTO saga_history_rows (generation, uid, version, namespace, name, at, type, actor, namespace_uid) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		tx.Generation(), uidOf(e.Recorded), e.Version, text(e.Fact.Namespace), text(e.Fact.Name), e.Fact.DecidedAt(), e.Type, text(e.Fact.CreatedBy), text(e.Fact.NamespaceUID))
}

// note makes a handler that writes one row. Namespace, its uid and name stand in the first event only, so they come from its row; where a person has skipped that event, from the
// saga's state row.
func note[T saga.Event](row func(T) entry) projection.Handler {
	return projection.For(decode, func(ctx context.Context, tx *projection.Tx, e projection.Event[T]) error {
		r := row(e.Fact)
		var retryAt *time.Time
		if !r.retryAt.IsZero() {
			retryAt = &r.retryAt
		}
		return tx.Queue(ctx, `INSERT INTO saga_history_rows
				(generation, uid, version, namespace, name, at, type, step, direction, attempt, outcome, reason, message, actor, retry_at, namespace_uid)
			SELECT $1, $2, $3, coalesce(first.namespace, s.namespace, ''), coalesce(first.name, s.name, ''), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
				coalesce(first.namespace_uid, '')
			FROM (SELECT 1) one LEFT JOIN saga_history_rows first ON first.generation = $1 AND first.uid = $2 AND first.version = 1
				LEFT JOIN saga_state s ON s.uid = $2`,
			tx.Generation(), uidOf(e.Recorded), e.Version, r.at, e.Type, text(r.step), text(r.direction), r.attempt, text(r.outcome), text(r.reason), text(r.message),
			text(or(r.actor, e.Metadata.Actor)), retryAt)
	})
}
