package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Abandonment is a person's request to abandon a saga.
type Abandonment struct {
	// By is the person's name. Reason is checked by [saga.CheckAbandonment].
	By, Reason string
	// Recorded says that events of the saga were recorded, as its status shows. Without it, a saga that
	// the event store does not have has not started.
	Recorded bool
}

// Abandon records that a person abandons a saga: the operator does nothing more for it. It works in every
// phase, and if this version of the operator cannot read the saga's stream. In that case no message is
// published, because the events number the messages. The driver of the saga learns of it from Answered.
// Abandon returns the saga's state, which has no steps if the stream cannot be read. It fails with a
// [*saga.AbandonError] or ErrNotStarted. After any other error the event may have been recorded, and a
// retry is safe.
func (e *Engine) Abandon(ctx context.Context, key Key, a Abandonment) (saga.State, error) {
	uid, err := uuid.Parse(key.UID)
	if err != nil {
		return saga.State{}, fmt.Errorf("abandoning saga %s: its uid is not a UUID: %w", key, err)
	}
	for range maxRounds {
		state, err := e.abandonOnce(ctx, key, a)
		if errors.Is(err, eventstore.ErrWrongVersion) {
			continue
		}
		if err == nil {
			err = e.Store.Nudge(ctx, uid)
		}
		if err != nil {
			return saga.State{}, fmt.Errorf("abandoning saga %s: %w", key, err)
		}
		return state, nil
	}
	return saga.State{}, fmt.Errorf("abandoning saga %s: %w: lost %d times in a row", key, errContended, maxRounds)
}

func (e *Engine) abandonOnce(ctx context.Context, key Key, a Abandonment) (saga.State, error) {
	r := newRunning(key, e.budgets, e.Clock)
	readable, err := e.loadToAbandon(ctx, r)
	if err != nil {
		return saga.State{}, err
	}
	if r.state.Version == 0 {
		if !a.Recorded {
			return saga.State{}, ErrNotStarted
		}
		r.state, readable = nothingReadable(key, 0), false
	}
	event, abandoned, err := saga.Abandon(r.state, a.By, a.Reason, e.now())
	if abandoned || err != nil {
		return r.state, err
	}
	err = e.append(ctx, r, nil, []saga.Event{event}, saga.Evolve(r.state, event), readable)
	return r.state, err
}

// Recorded returns the key of a saga of which only the uid is known, and the uid of its namespace, which
// is empty if it was not recorded. It fails with ErrNotStarted if the event store does not have the saga.
func (e *Engine) Recorded(ctx context.Context, uid uuid.UUID) (key Key, namespaceUID string, err error) {
	row, err := e.Store.SagaState(ctx, uid)
	if errors.Is(err, eventstore.ErrNotFound) {
		return key, "", fmt.Errorf("looking for the saga with the uid %s: %w", uid, ErrNotStarted)
	}
	if err != nil {
		return key, "", fmt.Errorf("looking for the saga with the uid %s: %w", uid, err)
	}
	var state struct{ NamespaceUID string }
	if err := json.Unmarshal(row.State, &state); err != nil {
		return key, "", fmt.Errorf("reading the state of the saga with the uid %s: %w", uid, err)
	}
	return Key{Namespace: row.Namespace, Name: row.Name, UID: uid.String()}, state.NamespaceUID, nil
}

// loadToAbandon loads a saga. If its stream cannot be read, the state has its identity and version only, and
// its row says whether the saga has ended.
func (e *Engine) loadToAbandon(ctx context.Context, r *running) (readable bool, err error) {
	err = e.load(ctx, r)
	switch {
	case errors.Is(err, eventstore.ErrArchived):
		return false, &saga.AbandonError{Message: "the saga finished, and its history has been removed since: nothing is left that could be abandoned"}
	case err == nil || !unreadable(err):
		return true, err
	}
	version, err := e.Store.Version(ctx, StreamOf(r.key.UID))
	if err != nil {
		return false, err
	}
	phase, err := e.recordedPhase(ctx, r.key)
	r.state = nothingReadable(r.key, version)
	if phase.Terminal() {
		r.state.Phase = phase
	}
	return false, err
}

// recordedPhase returns the phase in a saga's row, which can be read even if its state and its stream
// cannot; empty if there is no row.
func (e *Engine) recordedPhase(ctx context.Context, key Key) (saga.Phase, error) {
	uid, err := uuid.Parse(key.UID)
	if err != nil {
		return "", fmt.Errorf("reading the saga's uid: %w", err)
	}
	row, err := e.Store.SagaState(ctx, uid)
	if errors.Is(err, eventstore.ErrNotFound) {
		return "", nil
	}
	return saga.Phase(row.Phase), err
}

// nothingReadable returns a state that has only the identity of a saga.
func nothingReadable(key Key, version int64) saga.State {
	return saga.State{Version: version, UID: key.UID, Namespace: key.Namespace, Name: key.Name, Phase: saga.Running}
}

// unreadable reports whether an error of load says that what is recorded cannot be understood.
func unreadable(err error) bool {
	var stream *StreamError
	var panicked *PanicError
	return errors.As(err, &stream) || errors.As(err, &panicked)
}

// endAbandoned stops the attempts of a saga that has been abandoned.
func (r *running) endAbandoned() {
	r.difference(nil)
	r.recorded(len(r.waiting()))
}

// abandonedState returns the state of a saga that was abandoned although its stream cannot be read. It
// reads the state row, and reports false if the saga was not abandoned.
func (e *Engine) abandonedState(ctx context.Context, key Key) (saga.State, bool, error) {
	uid, err := uuid.Parse(key.UID)
	if err != nil {
		return saga.State{}, false, fmt.Errorf("reading the saga's uid: %w", err)
	}
	row, err := e.Store.SagaState(ctx, uid)
	switch {
	case errors.Is(err, eventstore.ErrNotFound):
		return saga.State{}, false, nil
	case err != nil || row.Phase != string(saga.Abandoned):
		return saga.State{}, false, err
	}
	var stored struct {
		Abandoned *saga.Abandonment `json:"abandoned"`
	}
	_ = json.Unmarshal(row.State, &stored) // a newer version may have written another form
	state := saga.State{Version: row.Version, UID: key.UID, Namespace: row.Namespace, Name: row.Name, Phase: saga.Abandoned, Abandoned: stored.Abandoned}
	if state.Abandoned != nil {
		state.EndedAt = state.Abandoned.At
	}
	return state, true, nil
}

// now returns the time of a decision, with the precision that is stored.
func (e *Engine) now() time.Time { return e.Clock().UTC().Truncate(time.Microsecond) }
