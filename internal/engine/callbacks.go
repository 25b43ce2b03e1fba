package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Why a callback changes nothing; test with errors.Is.
var (
	// ErrNoCallback says that nobody was given this token: it is forged, mistyped, or its saga's history has been removed.
	ErrNoCallback = errors.New("there is no callback with this token")
	// ErrCallbackExpired says that the answer comes later than was agreed.
	ErrCallbackExpired = errors.New("the callback has expired")
	// ErrCallbackUsed says that another answer was given before, and that one counts.
	ErrCallbackUsed = errors.New("the callback was used for another answer")
	// ErrCallbackOver says that the saga waits for no answer to this any more.
	ErrCallbackOver = errors.New("the saga no longer waits for this answer")
)

// Callbacks gives out the tokens with which participants answer later, and takes their answers. A token stands for one attempt of one effect of one saga: what it answers is looked up
// by the hash of it, and is nothing that whoever brings it could choose. It is safe for concurrent use.
type Callbacks struct {
	Store eventstore.Store
	// Clock says when a token expires; nil is the system's.
	Clock func() time.Time
}

// CallbackAnswer is what a participant says with a token: that the effect happened, or that it was rejected.
type CallbackAnswer struct {
	// Rejected is a definite no, with a Reason (one word for programs) and a Message (for people), each at most eventstore.MaxAnswerTextBytes.
	Rejected        bool
	Reason, Message string
	// Response is what output expressions see as response.
	Response map[string]any
}

func (c *Callbacks) now() time.Time {
	if c.Clock != nil {
		return c.Clock()
	}
	return time.Now()
}

// Issue returns a new token for an attempt, which is good for so long. An attempt that is sent again after a crash gets another, and both are good for it.
func (c *Callbacks) Issue(ctx context.Context, call participant.Call, within time.Duration) (token string, err error) {
	uid, err := uuid.Parse(call.Saga.UID)
	if err != nil {
		return "", fmt.Errorf("making a callback for %s: %w", call.Attempt, err)
	}
	token = callbacktoken.New()
	err = c.Store.PutCallback(ctx, eventstore.Callback{
		TokenHash: sha256.Sum256([]byte(token)), UID: uid, Step: call.Attempt.Text(), Direction: string(call.Attempt.Direction), Attempt: call.Attempt.Number,
		ExpiresAt: c.now().Add(within),
	})
	if err != nil {
		return "", fmt.Errorf("making a callback for %s: %w", call.Attempt, err)
	}
	return token, nil
}

// Find returns the namespace of the saga that a token was issued for. The namespace is empty if the
// saga is gone. Find fails with ErrNoCallback if the token was not issued. A server calls it before
// it reads the body of a request, so that a request with a forged token costs little.
func (c *Callbacks) Find(ctx context.Context, token string) (namespace string, err error) {
	found, err := c.find(ctx, token)
	return found.Namespace, err
}

// maxTokenBytes limits the length of a token that is looked up. Issued tokens are shorter.
const maxTokenBytes = 128

func (c *Callbacks) find(ctx context.Context, token string) (eventstore.Callback, error) {
	if len(token) > maxTokenBytes {
		return eventstore.Callback{}, ErrNoCallback
	}
	found, err := c.Store.Callback(ctx, sha256.Sum256([]byte(token)))
	if errors.Is(err, eventstore.ErrNotFound) {
		return found, ErrNoCallback
	}
	if err != nil {
		return found, fmt.Errorf("finding the callback: %w", err)
	}
	return found, nil
}

// Answer keeps an answer. It fails with one of the errors above, and has changed nothing then; the same answer again is a success. An answer that comes before its attempt is known to
// have been accepted is kept, and counts as soon as that is.
func (c *Callbacks) Answer(ctx context.Context, token string, a CallbackAnswer) error {
	found, err := c.find(ctx, token)
	if err != nil {
		return err
	}
	response, err := json.Marshal(a.Response)
	if err != nil {
		return fmt.Errorf("taking an answer: %w: %w", eventstore.ErrInvalid, err)
	}
	state, err := c.state(ctx, found.UID)
	if err != nil {
		return err
	}
	id, err := saga.ParseEffectID(found.Step, saga.Direction(found.Direction))
	if err != nil {
		return fmt.Errorf("taking an answer: %w", err)
	}
	round, expected := state.Expects(id)
	answer := eventstore.Answer{
		UID: found.UID, Step: found.Step, Direction: found.Direction, Round: round, Rejected: a.Rejected,
		Reason: callbacktoken.Redact(a.Reason), Message: callbacktoken.Redact(a.Message), Response: callbacktoken.RedactJSON(response),
	}
	asked := found.Attempt > round // and not before a person had it tried again
	if answered, err := c.before(ctx, answer, asked); answered || err != nil {
		return err
	}
	if !c.now().Before(found.ExpiresAt) {
		return fmt.Errorf("%w at %s", ErrCallbackExpired, found.ExpiresAt.Format(time.RFC3339))
	}
	if !asked || !expected { // the effect has ended, or the saga has turned to rolling back, and waits for no action then
		return ErrCallbackOver
	}
	kept, err := c.Store.PutAnswer(ctx, answer)
	if err != nil {
		return fmt.Errorf("taking an answer: %w", err)
	}
	if kept {
		return nil
	}
	if answered, err := c.before(ctx, answer, asked); answered || err != nil { // somebody was faster
		return err
	}
	return ErrCallbackOver // it has finished in the meantime
}

// before reports whether the effect has an answer already, with an error if that is another one. A token of an earlier round is good for repeating what was said then.
func (c *Callbacks) before(ctx context.Context, a eventstore.Answer, asked bool) (bool, error) {
	all, err := c.Store.Answers(ctx, a.UID, len(a.Response), a.Step)
	if err != nil {
		return false, fmt.Errorf("taking an answer: %w", err)
	}
	for _, old := range all {
		if old.Direction != a.Direction || asked != (old.Round == a.Round) {
			continue
		}
		if old.Rejected == a.Rejected && old.Reason == a.Reason && old.Message == a.Message && bytes.Equal(old.Response, a.Response) {
			return true, nil
		}
		if asked {
			return true, ErrCallbackUsed
		}
	}
	return false, nil
}

// state is that of a saga, as its row has it.
func (c *Callbacks) state(ctx context.Context, uid uuid.UUID) (saga.State, error) {
	row, err := c.Store.SagaState(ctx, uid)
	if errors.Is(err, eventstore.ErrNotFound) {
		return saga.State{}, ErrCallbackOver
	}
	if err != nil {
		return saga.State{}, fmt.Errorf("taking an answer: %w", err)
	}
	state, err := saga.UnmarshalState(row.State)
	if err != nil {
		return saga.State{}, fmt.Errorf("taking an answer: reading the state of saga %s: %w", uid, err)
	}
	return state, nil
}
