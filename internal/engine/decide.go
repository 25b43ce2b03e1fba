package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/saga"
)

// ErrNotStarted says that a saga has no events (yet): there is nothing to decide about.
var ErrNotStarted = errors.New("the saga has not started")

// Decide records a person's decision about a parked saga. It starts nothing: whoever drives the saga learns of it from Answered, and goes on. It fails with a *saga.DecisionError when
// the decision cannot be taken, and with ErrNotStarted. After any other error it may have been recorded, and asking again is safe.
func (e *Engine) Decide(ctx context.Context, key Key, d saga.Decision) error {
	uid, err := uuid.Parse(key.UID)
	if err != nil {
		return fmt.Errorf("deciding about saga %s: its uid is not a UUID: %w", key, err)
	}
	for range maxRounds {
		r := newRunning(key, e.budgets, e.Clock)
		if err := e.load(ctx, r); errors.Is(err, eventstore.ErrWrongVersion) {
			continue // it has begun between two reads
		} else if err != nil {
			return fmt.Errorf("deciding about saga %s: %w", key, err)
		}
		if r.state.Version == 0 {
			return fmt.Errorf("deciding about saga %s: %w", key, ErrNotStarted)
		}
		event, recorded, err := saga.Decided(r.state, d, e.now())
		if recorded { // by a call whose result was lost, perhaps before anybody was told of it
			return e.tellOfDecision(ctx, key, uid)
		}
		if err != nil {
			if r.state.Phase == saga.Compensating { // perhaps by a decision that nobody has been told of, because its process ended
				err = errors.Join(err, e.Store.Nudge(ctx, uid))
			}
			return fmt.Errorf("deciding about saga %s: %w", key, err)
		}
		plan, err := e.compileNow(ctx, key.Namespace, r.state.Definition)
		if err != nil {
			return fmt.Errorf("deciding about saga %s: %w", key, err)
		}
		err = e.append(ctx, r, plan, []saga.Event{event}, saga.Evolve(r.state, event), true)
		if err == nil {
			return e.tellOfDecision(ctx, key, uid)
		}
		if !errors.Is(err, eventstore.ErrWrongVersion) {
			return fmt.Errorf("deciding about saga %s: %w", key, err)
		}
	}
	return fmt.Errorf("deciding about saga %s: %w: lost %d times in a row", key, errContended, maxRounds)
}

// tellOfDecision has whoever drives a saga look at it.
func (e *Engine) tellOfDecision(ctx context.Context, key Key, uid uuid.UUID) error {
	if err := e.Store.Nudge(ctx, uid); err != nil {
		return fmt.Errorf("deciding about saga %s: it is recorded, but whoever drives the saga could not be told: %w; ask again", key, err)
	}
	return nil
}
