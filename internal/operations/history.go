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
	l, err := h.locate(ctx, q.Ref, q.UID)
	if err != nil {
		return History{}, err
	}
	page, err := h.history.page(ctx, q.Ref, l.uid, q.After, limited(q.Limit))
	if err != nil {
		return History{}, fromDatabase(fmt.Sprintf("reading the history of saga %s", q.Ref), err)
	}
	if !page.known && !l.live {
		return History{}, noHistory(q.Ref, l.uid)
	}
	return page.History, nil
}

// located is a saga whose history the caller may read, and whether its object exists.
type located struct {
	uid  uuid.UUID
	live bool
}

func noHistory(ref Ref, uid uuid.UUID) error {
	return &NotFoundError{What: fmt.Sprintf("a history of saga %s with uid %s", ref, uid)}
}

// locate finds a saga by its name, and by its uid if that is not empty. An object shows that its saga is
// of the namespace that exists now. A saga that is gone was in it only if the uids of the namespaces are
// the same. The sagas of former namespaces exist only for callers who may read sagas in all namespaces.
func (h *handlers) locate(ctx context.Context, ref Ref, wanted string) (l located, err error) {
	o, err := h.object(ctx, ref)
	missing := (*NotFoundError)(nil)
	if err != nil && !errors.As(err, &missing) {
		return l, err
	}
	if err == nil && (wanted == "" || sameUID(wanted, string(o.GetUID()))) {
		if l.uid, err = uuid.Parse(string(o.GetUID())); err != nil {
			return l, fmt.Errorf("reading the uid of saga %s: %w", ref, err)
		}
		return located{uid: l.uid, live: true}, nil
	}
	current, err := h.namespaceUID(ctx, ref.Namespace)
	if err != nil {
		return l, err
	}
	uid, in, err := h.history.find(ctx, ref, wanted, current)
	if err == nil && (in == "" || in != current) {
		var anywhere bool
		if anywhere, err = h.allowedEverywhere(ctx, ref.needs("get")); err == nil && !anywhere {
			err = pgx.ErrNoRows
		}
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return l, err
		}
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows) && wanted == "":
		return l, noSaga(ref)
	case errors.Is(err, pgx.ErrNoRows):
		return l, noHistory(ref, uuid.MustParse(wanted)) // it was validated
	case err != nil:
		return l, fromDatabase(fmt.Sprintf("looking for the history of saga %s", ref), err)
	}
	return located{uid: uid}, nil
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

// find returns a saga that had a name, by its uid if that is not empty, and the uid of its namespace. Of
// several, a saga of the current namespace comes first, then the last one that started.
func (r history) find(ctx context.Context, ref Ref, wanted, current string) (uid uuid.UUID, in string, err error) {
	if wanted != "" {
		err = r.pool.QueryRow(ctx, `SELECT uid, namespace_uid FROM saga_history WHERE uid = $1 AND namespace = $2 AND name = $3 ORDER BY version LIMIT 1`,
			wanted, ref.Namespace, ref.Name).Scan(&uid, &in)
		return uid, in, err
	}
	err = r.pool.QueryRow(ctx, `SELECT uid, namespace_uid FROM saga_history WHERE namespace = $1 AND name = $2 AND version = 1
		ORDER BY namespace_uid = $3 DESC, at DESC, uid DESC LIMIT 1`,
		ref.Namespace, ref.Name, current).Scan(&uid, &in)
	return uid, in, err
}
