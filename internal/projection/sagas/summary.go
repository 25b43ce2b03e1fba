package sagas

import (
	"context"
	"time"

	"github.com/vextrus/saga-operator/internal/projection"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Summary is the projection saga_summary: how many sagas there are by day of their start, namespace, definition and phase, and how long those that ended took.
func Summary() *projection.Definition {
	return projection.Define("saga_summary", 1, category).Tables("saga_summary_rows", "saga_summary_open").
		On("SagaStarted", projection.For(decode, open)).
		On("SagaCompensating", move[saga.SagaCompensating](saga.Compensating)).
		On("SagaParked", move[saga.SagaParked](saga.CompensationFailed)).
		On("DecisionMade", move[saga.DecisionMade](saga.Compensating)).
		On("SagaCompleted", end[saga.SagaCompleted](saga.Completed)).
		On("SagaCompensated", end[saga.SagaCompensated](saga.Compensated)).
		On("SagaAbandoned", end[saga.SagaAbandoned](saga.Abandoned)).
		Ignore("AttemptStarted", "AttemptResent", "AttemptAccepted", "AttemptSucceeded", "AttemptFailed", "SagaSuspended", "SagaResumed")
}

// definitionOf names the definition of a saga; sagas bring their own steps.
const definitionOf = ""

func open(ctx context.Context, tx *projection.Tx, e projection.Event[saga.SagaStarted]) error {
	at, namespace := e.Fact.DecidedAt().UTC(), text(e.Fact.Namespace)
	if err := tx.Queue(ctx, `INSERT INTO saga_summary_open (generation, uid, namespace, definition, phase, started_at) VALUES ($1, $2, $3, $4, $5, $6)`,
		tx.Generation(), uidOf(e.Recorded), namespace, definitionOf, string(saga.Running), at); err != nil {
		return err
	}
	return tx.Queue(ctx, `INSERT INTO saga_summary_rows AS r (generation, day, namespace, definition, phase, sagas) VALUES ($1, $2, $3, $4, $5, 1)
		ON CONFLICT (generation, day, namespace, definition, phase) DO UPDATE SET sagas = r.sagas + 1`,
		tx.Generation(), at.Truncate(24*time.Hour), namespace, definitionOf, string(saga.Running))
}

func move[T saga.Event](to saga.Phase) projection.Handler {
	return projection.For(decode, func(ctx context.Context, tx *projection.Tx, e projection.Event[T]) error {
		return count(ctx, tx, uidOf(e.Recorded), to, 0)
	})
}

func end[T saga.Event](as saga.Phase) projection.Handler {
	return projection.For(decode, func(ctx context.Context, tx *projection.Tx, e projection.Event[T]) error {
		if err := count(ctx, tx, uidOf(e.Recorded), as, float64(e.Fact.DecidedAt().UnixMicro())/1e6); err != nil {
			return err
		}
		return tx.Queue(ctx, `DELETE FROM saga_summary_open WHERE generation = $1 AND uid = $2`, tx.Generation(), uidOf(e.Recorded))
	})
}

// count takes a saga from the row that counts it now to that of another phase. For one that ends, ended is when, in seconds of Unix time.
func count(ctx context.Context, tx *projection.Tx, uid string, to saga.Phase, ended float64) error {
	return tx.Queue(ctx, `WITH was AS (
			UPDATE saga_summary_open o SET phase = $3 FROM saga_summary_open b
			WHERE o.generation = $1 AND o.uid = $2 AND b.generation = $1 AND b.uid = $2 AND o.phase <> $3
			RETURNING b.namespace, b.definition, b.phase, (b.started_at AT TIME ZONE 'UTC')::date AS day,
				CASE WHEN $4::double precision > 0 THEN greatest($4 - extract(epoch FROM b.started_at)::double precision, 0) ELSE 0 END AS took
		), less AS (
			UPDATE saga_summary_rows r SET sagas = r.sagas - 1 FROM was
			WHERE r.generation = $1 AND r.day = was.day AND r.namespace = was.namespace AND r.definition = was.definition AND r.phase = was.phase
		)
		INSERT INTO saga_summary_rows AS r (generation, day, namespace, definition, phase, sagas, seconds, slowest)
		SELECT $1, was.day, was.namespace, was.definition, $3, 1, was.took, was.took FROM was
		ON CONFLICT (generation, day, namespace, definition, phase) DO UPDATE
		SET sagas = r.sagas + 1, seconds = r.seconds + excluded.seconds, slowest = greatest(r.slowest, excluded.slowest)`,
		tx.Generation(), uid, string(to), ended)
}
