package operations

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Abandoner abandons sagas; it is the engine.
type Abandoner interface {
	Abandon(ctx context.Context, key engine.Key, a engine.Abandonment) (saga.State, error)
	Recorded(ctx context.Context, uid uuid.UUID) (key engine.Key, namespaceUID string, err error)
}

// AbandonSaga ends a saga as it is: the operator does nothing more for it. It needs the verb
// update on sagas/abandon, which only administrators have, because the effects of the saga may
// remain. Abandoning a saga again is the same success.
type AbandonSaga struct {
	cqrs.Answers[Abandoned]
	Ref
	Reason string
	// UID is required if the object of the saga is gone, or another saga has its name.
	UID string
}

// Abandoned describes an abandoned saga.
type Abandoned struct {
	UID   string
	Phase saga.Phase
	// MayRemain has the steps whose effects may remain. It is nil if that is not known, because the
	// stream of the saga cannot be read.
	MayRemain []string
}

// Needs implements what the bus asks for.
func (c AbandonSaga) Needs() Permission {
	p := c.needs("update")
	p.Subresource = "abandon"
	return p
}

// Validate implements cqrs.Validator.
func (c AbandonSaga) Validate() error {
	if c.UID != "" {
		if _, err := uuid.Parse(c.UID); err != nil {
			return invalid("uid", "%.64q is not a UUID", c.UID)
		}
	}
	return c.Ref.Validate()
}

// abandon records who abandons a saga, and why.
func (h *handlers) abandon(ctx context.Context, c AbandonSaga) (Abandoned, error) {
	who, _ := CallerOf(ctx)
	key, recorded, err := h.findAbandoned(ctx, c)
	if err != nil {
		return Abandoned{}, err
	}
	state, err := h.Abandoner.Abandon(ctx, key, engine.Abandonment{By: who.Name, Reason: c.Reason, Recorded: recorded})
	var wrong *saga.AbandonError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return Abandoned{}, invalid(wrong.Field, "%s", wrong.Message)
	case errors.As(err, &wrong):
		return Abandoned{}, &ConflictError{Reason: "Finished", Message: wrong.Message}
	case errors.Is(err, engine.ErrNotStarted):
		return Abandoned{}, &ConflictError{Reason: "NotStarted", Message: fmt.Sprintf("saga %s has not started: there is nothing to abandon; delete it", c.Ref)}
	case err != nil:
		return Abandoned{}, fromDatabase(fmt.Sprintf("abandoning saga %s", c.Ref), err)
	}
	h.Logger.InfoContext(ctx, "a saga was abandoned through the API", "saga", c.String(), "uid", key.UID, "user", who.Name)
	a := Abandoned{UID: key.UID, Phase: state.Phase}
	if len(state.Steps) > 0 {
		a.MayRemain = append([]string{}, state.MayRemain()...)
	}
	return a, nil
}

// findAbandoned returns the key of the saga that a command is about, and whether events of it were
// recorded.
func (h *handlers) findAbandoned(ctx context.Context, c AbandonSaga) (key engine.Key, recorded bool, err error) {
	o, err := h.object(ctx, c.Ref)
	var missing *NotFoundError
	if err != nil && !errors.As(err, &missing) {
		return key, false, err
	}
	if err == nil && (c.UID == "" || sameUID(c.UID, string(o.GetUID()))) {
		version, err := o.recordedVersion()
		return engine.Key{Namespace: c.Namespace, Name: c.Name, UID: string(o.GetUID())}, version > 0, err
	}
	if c.UID == "" {
		missing.Hint = "to abandon a saga whose object is gone, give its uid"
		return key, false, missing
	}
	key, err = h.findOrphan(ctx, c)
	return key, true, err
}

// findOrphan finds the saga with the uid of a command in the database. A saga of another namespace or
// with another name does not exist for the caller, whose right is for this one. Neither does a saga of a
// former namespace of the same name, unless the caller has the right in all namespaces.
func (h *handlers) findOrphan(ctx context.Context, c AbandonSaga) (engine.Key, error) {
	uid, err := uuid.Parse(c.UID)
	if err != nil {
		return engine.Key{}, fmt.Errorf("reading the uid of saga %s: %w", c.Ref, err)
	}
	key, in, err := h.Abandoner.Recorded(ctx, uid)
	unknown := &NotFoundError{What: fmt.Sprintf("saga %s with uid %s", c.Ref, uid)}
	switch {
	case errors.Is(err, engine.ErrNotStarted), err == nil && (key.Namespace != c.Namespace || key.Name != c.Name):
		return engine.Key{}, unknown
	case err != nil:
		return engine.Key{}, fromDatabase(fmt.Sprintf("looking for saga %s", c.Ref), err)
	}
	current, err := h.namespaceUID(ctx, c.Namespace)
	if err != nil {
		return engine.Key{}, err
	}
	if in != "" && in == current {
		return key, nil
	}
	anywhere, err := h.allowedEverywhere(ctx, c.Needs())
	if err == nil && !anywhere {
		err = unknown
	}
	return key, err
}

// sameUID reports whether two texts are the same UUID.
func sameUID(a, b string) bool {
	x, errA := uuid.Parse(a)
	y, errB := uuid.Parse(b)
	return errA == nil && errB == nil && x == y
}
