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

// Abandonment is a person's word that a saga is to be let go.
type Abandonment struct {
	// By is who says so, Reason why; see [saga.CheckAbandonment].
	By, Reason string
	// Recorded says that events of the saga were recorded once, as its status shows. A saga without it of
	// which the event store has nothing has not started.
	Recorded bool
}

// Abandon records that a person lets a saga go: nothing is done or undone for it any more. It works
// wherever the saga stands, also if this version of the operator cannot read its stream; then nobody is
// told by the outbox, because messages are counted by the events. Abandon starts nothing: whoever drives
// the saga learns of it from Answered. It returns the saga's state, which has no steps if the stream
// cannot be read. It fails with a *saga.AbandonError, and with ErrNotStarted. After any other error it
// may have been recorded, and asking again is safe.
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
	r := newRunning(key, e.budgets)
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

// Recorded returns the key of a saga of which only the uid is known. It fails with ErrNotStarted if the
// event store does not have the saga.
func (e *Engine) Recorded(ctx context.Context, uid uuid.UUID) (Key, error) {
	row, err := e.Store.SagaState(ctx, uid)
	if errors.Is(err, eventstore.ErrNotFound) {
		return Key{}, fmt.Errorf("looking for the saga with the uid %s: %w", uid, ErrNotStarted)
	}
	if err != nil {
		return Key{}, fmt.Errorf("looking for the saga with the uid %s: %w", uid, err)
	}
	return Key{Namespace: row.Namespace, Name: row.Name, UID: uid.String()}, nil
}

// loadToAbandon loads a saga. Of one that cannot be read it makes a state with its identity and version.
func (e *Engine) loadToAbandon(ctx context.Context, r *running) (readable bool, err error) {
	err = e.load(ctx, r)
	switch {
	case errors.Is(err, eventstore.ErrArchived):
		return false, &saga.AbandonError{Message: "the saga finished, and its history has been removed since: nothing is left that could be abandoned"}
	case err == nil || !unreadable(err):
		return true, err
	}
	version, err := e.Store.Version(ctx, StreamOf(r.key.UID))
	r.state = nothingReadable(r.key, version)
	return false, err
}

// nothingReadable returns the state of a saga of which only the identity is known.
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

// abandonedState returns the state of a saga that has been abandoned although its stream cannot be read.
// The state row says so.
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
	_ = json.Unmarshal(row.State, &stored) // what a newer version has written may have another form
	state := saga.State{Version: row.Version, UID: key.UID, Namespace: row.Namespace, Name: row.Name, Phase: saga.Abandoned, Abandoned: stored.Abandoned}
	if state.Abandoned != nil {
		state.EndedAt = state.Abandoned.At
	}
	return state, true, nil
}

// now returns the time of a decision, with the precision that is stored.
func (e *Engine) now() time.Time { return e.Clock().UTC().Truncate(time.Microsecond) }
