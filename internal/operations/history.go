package operations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

// SagaHistory reads what has happened in a saga, also in one whose object is gone. It needs the verb get, in the namespace of the saga.
type SagaHistory struct {
	cqrs.Answers[History]
	Ref
	// UID names one of several sagas that have had the name one after the other; empty is the one that is there, else the last.
	UID string
	// After is the version of the last event that is known already; Limit is at most MaxEvents, and 0 is DefaultPage.
	After int64
	Limit int
}

// Needs implements what the bus asks for.
func (q SagaHistory) Needs() Permission { return q.needs("get") }

// Validate implements cqrs.Validator.
func (q SagaHistory) Validate() error {
	if q.UID != "" {
		if _, err := uuid.Parse(q.UID); err != nil {
			return invalid("query.uid", "%.64q is no UUID", q.UID)
		}
	}
	if q.After < 0 {
		return invalid("query.after", "a version is not negative")
	}
	return errors.Join(q.Ref.Validate(), checkLimit(q.Limit, MaxEvents))
}

// History is a page of what has happened in a saga.
type History struct {
	Ref
	UID    string
	Events []Event
	// More says that there are later events than these.
	More bool
	// Finished says that the saga has ended, and that nothing more will happen in it.
	Finished bool
}

// Event is one thing that has happened in a saga.
type Event struct {
	Version   int64
	At        time.Time
	Type      string
	Step      string
	Direction string
	Attempt   int
	Outcome   string
	Reason    string
	Message   string
	Actor     string
	RetryAt   *time.Time
}

// eventBytes is the maximum memory of one event of a history, in bytes.
const eventBytes = 4 << 10

// readHistory reads one page.
func (h *handlers) readHistory(ctx context.Context, q SagaHistory) (History, error) {
	if err := takeMemory(ctx, int64(limited(q.Limit))*eventBytes); err != nil {
		return History{}, err
	}
	uid, live, err := h.identify(ctx, q.Ref, q.UID)
	if err != nil {
		return History{}, err
	}
	page, err := h.history.page(ctx, q.Ref, uid, q.After, limited(q.Limit))
	if err != nil {
		return History{}, fromDatabase(fmt.Sprintf("reading the history of saga %s", q.Ref), err)
	}
	if !page.known && !live {
		return History{}, &NotFoundError{What: fmt.Sprintf("a history of saga %s with uid %s", q.Ref, uid)}
	}
	return page.History, nil
}

// identify finds the uid of a saga, and whether its object is there.
func (h *handlers) identify(ctx context.Context, ref Ref, wanted string) (uid uuid.UUID, live bool, err error) {
	o, err := h.object(ctx, ref)
	missing := (*NotFoundError)(nil)
	if err != nil && !errors.As(err, &missing) {
		return uid, false, err
	}
	if err == nil {
		if uid, err = uuid.Parse(string(o.GetUID())); err != nil {
			return uid, false, fmt.Errorf("reading the uid of saga %s: %w", ref, err)
		}
		live = true
	}
	if wanted != "" {
		other, err := uuid.Parse(wanted)
		return other, live && other == uid, err
	}
	if live {
		return uid, true, nil
	}
	uid, err = h.history.last(ctx, ref)
	if errors.Is(err, pgx.ErrNoRows) {
		return uid, false, noSaga(ref)
	}
	if err != nil {
		return uid, false, fromDatabase(fmt.Sprintf("looking for the history of saga %s", ref), err)
	}
	return uid, false, nil
}

// history reads the read model. Every statement has namespace and name in it: a uid alone opens nothing.
type history struct{ pool *pgxpool.Pool }

// historyPage is a page, and whether anything is known of the saga.
type historyPage struct {
	History
	known bool
}

func (r history) page(ctx context.Context, ref Ref, uid uuid.UUID, after int64, limit int) (historyPage, error) {
	p := historyPage{History: History{Ref: ref, UID: uid.String(), Events: []Event{}}}
	b := &pgx.Batch{}
	b.Queue(`SELECT version, at, type, step, direction, attempt, outcome, reason, message, actor, retry_at
		FROM saga_history WHERE uid = $1 AND namespace = $2 AND name = $3 AND version > $4 ORDER BY version LIMIT $5`,
		uid, ref.Namespace, ref.Name, after, limit+1).Query(func(rows pgx.Rows) (err error) {
		p.Events, err = pgx.CollectRows(rows, scanEvent)
		return err
	})
	b.Queue(`SELECT count(*) > 0, count(*) FILTER (WHERE type IN ('SagaCompleted', 'SagaCompensated', 'SagaAbandoned')) > 0
		FROM (SELECT type FROM saga_history WHERE uid = $1 AND namespace = $2 AND name = $3 ORDER BY version DESC LIMIT 1) last`,
		uid, ref.Namespace, ref.Name).QueryRow(func(row pgx.Row) error { return row.Scan(&p.known, &p.Finished) })
	if err := r.pool.SendBatch(ctx, b).Close(); err != nil {
		return p, err
	}
	if len(p.Events) > limit {
		p.Events, p.More = p.Events[:limit], true
	}
	return p, nil
}

func scanEvent(row pgx.CollectableRow) (Event, error) {
	var e Event
	err := row.Scan(&e.Version, &e.At, &e.Type, &e.Step, &e.Direction, &e.Attempt, &e.Outcome, &e.Reason, &e.Message, &e.Actor, &e.RetryAt)
	e.At = e.At.UTC()
	return e, err
}

// last is the uid of the saga that had a name last.
func (r history) last(ctx context.Context, ref Ref) (uid uuid.UUID, err error) {
	err = r.pool.QueryRow(ctx, `SELECT uid FROM saga_history WHERE namespace = $1 AND name = $2 AND version = 1 ORDER BY at DESC, uid DESC LIMIT 1`,
		ref.Namespace, ref.Name).Scan(&uid)
	return uid, err
}
