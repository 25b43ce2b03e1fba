package operations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/saga"
)

// decide records who decided what, and why; the saga goes on by itself then.
func (h *handlers) decide(ctx context.Context, c DecideSaga) (Object, error) {
	noteCarriedOut(ctx)
	who, _ := CallerOf(ctx)
	o, err := h.object(ctx, c.Ref)
	if err != nil {
		return Object{}, err
	}
	key := engine.Key{Namespace: c.Namespace, Name: c.Name, UID: string(o.GetUID())}
	err = h.Decider.Decide(ctx, key, saga.Decision{ID: c.ID, About: c.About, Step: c.Step, Verdict: c.Verdict, By: who.Name, Reason: c.Reason})
	var wrong *saga.DecisionError
	switch {
	case errors.As(err, &wrong) && wrong.Field == "about":
		return Object{}, &ConflictError{Reason: "ParkedAnew", Message: wrong.Message}
	case errors.As(err, &wrong) && wrong.Field == "id":
		return Object{}, &ConflictError{Reason: "OtherDecision", Message: wrong.Message}
	case errors.As(err, &wrong) && wrong.Field != "":
		return Object{}, invalid(wrong.Field, "%s", wrong.Message)
	case errors.As(err, &wrong):
		return Object{}, &ConflictError{Reason: "NotParked", Message: wrong.Message}
	case errors.Is(err, engine.ErrNotStarted):
		return Object{}, &ConflictError{Reason: "NotStarted", Message: fmt.Sprintf("saga %s has not started: there is nothing to decide about", c.Ref)}
	case unreadable(err):
		return Object{}, &ConflictError{Reason: engine.ReasonDefinitionUnreadable, Message: err.Error()}
	case err != nil:
		return Object{}, fromDatabase(fmt.Sprintf("deciding about saga %s", c.Ref), err)
	}
	h.Logger.InfoContext(ctx, "a decision was made through the API", "saga", c.String(), "uid", o.GetUID(), "step", c.Step, "verdict", c.Verdict, "user", who.Name)
	return encode(o)
}

// findCallback fails with a *NotFoundError if the token of a callback is unknown.
func (h *handlers) findCallback(ctx context.Context, q FindCallback) (FoundCallback, error) {
	namespace, err := h.Callbacks.Find(ctx, string(q.Token))
	if errors.Is(err, engine.ErrNoCallback) {
		return FoundCallback{}, &NotFoundError{What: "a callback with this token"}
	}
	if err != nil {
		return FoundCallback{}, fromDatabase("looking up a callback", err)
	}
	return FoundCallback{Namespace: namespace}, nil
}

// answer keeps a participant's later answer.
func (h *handlers) answer(ctx context.Context, c AnswerCallback) (Answered, error) {
	body, err := asWritten(c.Body)
	if err != nil {
		return Answered{}, invalid("body", "the body cannot be read: %v", err)
	}
	const ok = 200 // an answer that comes later looks like one that comes at once
	err = h.Callbacks.Answer(ctx, string(c.Token), engine.CallbackAnswer{
		Rejected: c.Rejected, Reason: c.Reason, Message: c.Message,
		Response: map[string]any{"status": ok, "headers": map[string]any{}, "body": body},
	})
	switch {
	case err == nil:
		return Answered{}, nil
	case errors.Is(err, engine.ErrNoCallback):
		return Answered{}, &NotFoundError{What: "a callback with this token"}
	case errors.Is(err, engine.ErrCallbackExpired), errors.Is(err, engine.ErrCallbackOver):
		return Answered{}, &GoneError{Message: err.Error()}
	case errors.Is(err, engine.ErrCallbackUsed):
		return Answered{}, &ConflictError{Reason: "Used", Message: err.Error()}
	case errors.Is(err, eventstore.ErrInvalid):
		return Answered{}, invalid("body", "%v", err)
	case unreadable(err): // an operator of the newer version will take it
		h.Logger.WarnContext(ctx, "a participant's reply is not taken, and has to come again", "error", err)
		return Answered{}, fmt.Errorf("taking a participant's answer: %w: %w", ErrUnavailable, err)
	}
	return Answered{}, fromDatabase("taking a participant's answer", err)
}

// unreadable reports whether an error says that a newer version of the operator has started the saga.
func unreadable(err error) bool {
	if err == nil {
		return false
	}
	reason, _, _ := engine.Problem(err)
	return reason == engine.ReasonDefinitionUnreadable
}

// asWritten returns JSON in a normal form, so that a repeated reply is recognized although its keys
// have another order, or its whitespace or escapes differ. Numbers keep their text, so that a
// stored reply is decoded like an immediate response. asWritten fails if the JSON could not be
// decoded later. It does not build a tree.
func asWritten(data json.RawMessage) (json.RawMessage, error) {
	if len(data) == 0 {
		return json.RawMessage("null"), nil
	}
	if err := expression.Check(data); err != nil {
		return nil, err
	}
	v := jsontext.Value(slices.Clone(data))
	if err := v.Format(jsontext.ReorderRawObjects(true)); err != nil {
		return nil, err
	}
	return json.RawMessage(v), nil
}

// GoneError says that an answer comes too late, and that it came to nothing.
type GoneError struct{ Message string }

func (e *GoneError) Error() string { return e.Message }
