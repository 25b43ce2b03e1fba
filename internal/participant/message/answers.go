package message

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/expression"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Answers keeps the answers that come to the sinks' reply addresses.
type Answers struct {
	Store  eventstore.Store
	Logger *slog.Logger
}

// Handle keeps an answer that arrived at a sink, namespace/name. What is no answer to anything is logged and dropped: it would be none the next time, either. An error
// says that the answer could not be kept and has to come again.
func (a *Answers) Handle(ctx context.Context, sink string, in outbox.Incoming) error {
	namespace, _, _ := strings.Cut(sink, "/")
	answer, err := decode(in)
	if err == nil {
		err = a.keep(ctx, namespace, answer)
	}
	if err == nil || errors.Is(err, eventstore.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	a.Logger.Warn("a message at a reply address is no answer to any saga and is dropped", "sink", sink, "error", err)
	return nil
}

// keep keeps an answer to a saga of a namespace. Whoever may write to the reply address of one namespace answers no saga of another.
func (a *Answers) keep(ctx context.Context, namespace string, answer eventstore.Answer) error {
	state, err := a.Store.SagaState(ctx, answer.UID)
	if err != nil {
		return err
	}
	if state.Namespace != namespace {
		return fmt.Errorf("saga %s is not in namespace %s", answer.UID, namespace)
	}
	_, err = a.Store.PutAnswer(ctx, answer) // one that came before counts
	return err
}

// decode reads an answer.
func decode(in outbox.Incoming) (eventstore.Answer, error) {
	e, err := outbox.Decode(in)
	if err != nil {
		return eventstore.Answer{}, err
	}
	key, _ := e.Extensions()["correlationid"].(string)
	uid, rest, _ := strings.Cut(key, "/")
	step, direction, ok := strings.Cut(rest, "/")
	id, err := uuid.Parse(uid)
	if err != nil || !ok || direction != string(saga.Action) && direction != string(saga.Compensation) {
		return eventstore.Answer{}, fmt.Errorf("its correlationid %.256q is not the one of a message of a saga", key)
	}
	answer := eventstore.Answer{UID: id, Step: step, Direction: direction}
	body := bodyOf(&e)
	if rejected := fmt.Sprint(e.Extensions()["sagarejected"]); strings.EqualFold(rejected, "true") {
		answer.Rejected, answer.Reason, answer.Message = true, "Rejected", "the answer says that it was rejected"
		if fields, ok := body.(map[string]any); ok {
			answer.Reason, answer.Message = field(fields, "reason", answer.Reason), field(fields, "message", answer.Message)
		}
	}
	answer.Response, err = json.Marshal(map[string]any{"body": body, "type": e.Type(), "source": e.Source(), "id": e.ID()})
	return answer, err
}

// bodyOf is the data of an answer: JSON where it is, and otherwise text.
func bodyOf(e *cloudevents.Event) any {
	data := e.Data()
	if len(data) == 0 {
		return nil
	}
	if value, err := expression.Decode(data); err == nil {
		return value
	}
	return strings.ToValidUTF8(string(data), "\uFFFD")
}

// field is a text of an answer's data, cut to what an answer may have.
func field(fields map[string]any, name, otherwise string) string {
	s, ok := fields[name].(string)
	if !ok || s == "" {
		return otherwise
	}
	if len(s) > eventstore.MaxAnswerTextBytes {
		s = s[:eventstore.MaxAnswerTextBytes]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "")
}
