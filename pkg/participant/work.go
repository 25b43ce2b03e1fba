package participant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// requestKey is where the context of a Do keeps its request.
type requestKey struct{}

// Later accepts the work of an action, in its Do: it is written down with the callback, and answered with 202. data is whatever the work needs, as JSON. The Intent has to name its Effect.
// Where the request brings no callback it returns a Refusal: the step has to say completion: Callback.
func Later(ctx context.Context, tx Tx, data any) (Answer, error) {
	r, ok := ctx.Value(requestKey{}).(*Request)
	switch {
	case !ok || r.effect.Name == "":
		return Answer{}, errors.New("accepting work: Later is for the Do of an action's Intent, which names its Effect")
	case r.Callback == "":
		return Answer{}, Refuse(http.StatusBadRequest, "this is answered later, and there is no header Saga-Callback; the step needs completion: Callback")
	}
	text, err := json.Marshal(data)
	if err != nil {
		return Answer{}, fmt.Errorf("accepting work for effect %s: %w", r.effect, err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO saga_work (realm, key, effect, callback, data) VALUES ($1, $2, $3, $4, $5)`, r.Realm, r.Key, r.effect.Name, r.Callback, text); err != nil {
		return Answer{}, fmt.Errorf("accepting work for effect %s: %w", r.effect, explain(err))
	}
	return Answer{Status: http.StatusAccepted, Body: map[string]bool{"accepted": true}}, nil
}

// moved notes that the operator asks again, with another callback: it did not get the answer, so it is told there, if need be once more.
func (s *Service) moved(ctx context.Context, r *Request) error {
	_, err := s.db.Exec(ctx, `UPDATE saga_work SET callback = $3, ended = NULL, due_at = CASE WHEN outcome IS NULL THEN due_at ELSE now() END
		WHERE realm = $1 AND key = $2 AND callback <> $3 AND ended IS DISTINCT FROM 'withdrawn'`, r.Realm, r.Key, r.Callback)
	if err != nil {
		return fmt.Errorf("noting where to answer about effect %s: %w", r.effect, explain(err))
	}
	return nil
}

// Withdraw ends work that was accepted and has not been done, and reports whether there was any: it never will be done, and nobody is told of it. Compensation does this by itself.
func Withdraw(ctx context.Context, tx Tx, e Effect) (bool, error) {
	tag, err := tx.Exec(ctx, `UPDATE saga_work SET ended = 'withdrawn', due_at = now() WHERE realm = $1 AND effect = $2 AND outcome IS NULL AND ended IS NULL`, e.Realm, e.Name)
	if err != nil {
		return false, fmt.Errorf("withdrawing the work of effect %s: %w", e, explain(err))
	}
	return tag.RowsAffected() > 0, nil
}

// Work is some that was accepted.
type Work struct {
	Effect Effect
	// Key is the idempotency key of the request.
	Key string
	// Data is what Later was given.
	Data json.RawMessage
	// Attempts is how often it was tried before.
	Attempts   int
	AcceptedAt time.Time
}

// Outcome is what became of accepted work.
type Outcome struct {
	// Rejected is a definite no: it has not happened, and will not. Reason is one word for programs, Message a sentence for people.
	Rejected        bool
	Reason, Message string
	// Body is what the step's output sees as response.body.
	Body any
}

// callbackBody is what is posted.
type callbackBody struct {
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	Body    any    `json:"body,omitempty"`
}

func (o Outcome) encode() ([]byte, error) {
	b := callbackBody{Outcome: "Succeeded", Reason: o.Reason, Message: o.Message, Body: o.Body}
	if o.Rejected {
		b.Outcome = "Rejected"
	}
	return json.Marshal(b)
}

// Run does accepted work, and tells what became of it, until ctx is done; then it waits for what is under way. Several processes may run at once: each piece of work is done by one, again after an
// error or a crash, and committed once. do works within the transaction, as an Intent's Do does; after an error it is tried again with full jitter, up to a minute apart. A nil do only tells.
//
// Work is done one after the other, and up to 8 outcomes are told at once beside it: a callback that hangs holds nothing else up.
func (s *Service) Run(ctx context.Context, do func(ctx context.Context, tx pgx.Tx, w Work) (Outcome, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var telling sync.WaitGroup
	defer telling.Wait()
	defer cancel() // also when do panics
	telling.Go(func() { s.tellAll(ctx) })
	if do == nil {
		<-ctx.Done()
		return nil
	}
	s.repeat(ctx, func() (bool, error) { return s.workOnce(ctx, do) })
	return nil
}

// repeat does something until ctx is done: at once again where there was something to do, and after a pause otherwise.
func (s *Service) repeat(ctx context.Context, once func() (bool, error)) {
	for ctx.Err() == nil {
		found, err := once()
		if err != nil && ctx.Err() == nil {
			s.Logger.Warn("accepted work could not be looked after; it is tried again", "error", err)
		}
		if found && err == nil {
			continue
		}
		timer := time.NewTimer(s.Poll)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// workOnce does one piece of work that is due.
func (s *Service) workOnce(ctx context.Context, do func(ctx context.Context, tx pgx.Tx, w Work) (Outcome, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	var w Work
	found := false
	err := pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `SELECT realm, effect, key, data, attempts, accepted_at FROM saga_work
			WHERE ended IS NULL AND outcome IS NULL AND due_at <= now() ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED`).
			Scan(&w.Effect.Realm, &w.Effect.Name, &w.Key, (*[]byte)(&w.Data), &w.Attempts, &w.AcceptedAt)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return explain(err)
		}
		found = true
		o, err := do(ctx, tx, w)
		if err != nil {
			return err
		}
		text, err := o.encode()
		if err != nil {
			return fmt.Errorf("encoding the outcome: %w", err)
		}
		_, err = tx.Exec(ctx, `UPDATE saga_work SET outcome = $3, attempts = 0, due_at = now() WHERE realm = $1 AND key = $2`, w.Effect.Realm, w.Key, text)
		return err
	})
	if err != nil && found {
		s.Logger.Warn("work failed; it is tried again", "effect", w.Effect.String(), "attempts", w.Attempts+1, "error", err)
		err = s.putOff(ctx, w.Effect.Realm, w.Key, w.Attempts)
	}
	return found, err
}

// putOff has something tried again later, with full jitter.
func (s *Service) putOff(ctx context.Context, realm, key string, attempts int) error {
	const first, longest, timeout = 200 * time.Millisecond, time.Minute, 5 * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	pause := rand.N(min(first<<min(attempts, 16), longest))
	_, err := s.db.Exec(ctx, `UPDATE saga_work SET attempts = attempts + 1, due_at = now() + $3::interval WHERE realm = $1 AND key = $2`, realm, key, pause)
	return err
}
