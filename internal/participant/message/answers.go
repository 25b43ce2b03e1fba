package message

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
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

// errNoAnswer says that a message answers nothing that is waited for: it would not the next time, either.
var errNoAnswer = errors.New("it is no answer to anything that is waited for")

// Handle keeps an answer that arrived at a sink, namespace/name. What is no answer to anything is logged and dropped. An error says that the answer could not be kept and has to come again.
func (a *Answers) Handle(ctx context.Context, sink string, in outbox.Incoming) error {
	answer, attempt, err := decode(in)
	if err == nil {
		err = a.keep(ctx, sink, answer, attempt)
	}
	if errors.Is(err, errNoAnswer) || errors.Is(err, eventstore.ErrInvalid) {
		a.Logger.Warn("a message at a reply address is dropped", "sink", sink, "error", err)
		return nil
	}
	if newer := new(saga.NewerError); errors.As(err, &newer) {
		a.Logger.Warn("a reply is not taken, and has to come again", "sink", sink, "error", err)
	}
	return err
}

// keep keeps an answer that a saga waits for from this very sink. Whoever may write to a reply address answers what was asked there, and nothing else: no other sink's messages, no other
// namespace's sagas, and no step that waits for a callback.
func (a *Answers) keep(ctx context.Context, sink string, answer eventstore.Answer, attempt int) error {
	row, err := a.Store.SagaState(ctx, answer.UID)
	if errors.Is(err, eventstore.ErrNotFound) {
		return fmt.Errorf("%w: there is no saga %s", errNoAnswer, answer.UID)
	}
	if err != nil {
		return err
	}
	namespace, name, _ := strings.Cut(sink, "/")
	if row.Namespace != namespace {
		return fmt.Errorf("%w: saga %s is not in namespace %s; a queue that sinks of several namespaces share gives each only some of what arrives, so each needs one of its own", errNoAnswer, answer.UID, namespace)
	}
	state, err := saga.UnmarshalState(row.State)
	if err != nil {
		return fmt.Errorf("reading the state of saga %s: %w", answer.UID, err)
	}
	id, err := saga.ParseEffectID(answer.Step, saga.Direction(answer.Direction))
	if err != nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	round, expected := state.Expects(id)
	if !expected {
		return fmt.Errorf("%w: %.200s of saga %s", errNoAnswer, id, answer.UID)
	}
	if err := a.asked(ctx, name, answer.UID, id); err != nil {
		return err
	}
	switch { // a broker may deliver a reply again, after a person has had the effect retried
	case attempt > 0 && attempt <= round:
		return fmt.Errorf("%w: it is to attempt %d, and %s of saga %s has been retried by a person after attempt %d", errNoAnswer, attempt, id, answer.UID, round)
	case attempt == 0 && answer.Rejected && round > 0:
		return fmt.Errorf("%w: %s of saga %s has been retried by a person, and a rejection counts only with the message's extension sagaattempt, which says that it is not an earlier one", errNoAnswer, id, answer.UID)
	}
	answer.Round = round
	answer.Reason, answer.Message = callbacktoken.Redact(answer.Reason), callbacktoken.Redact(answer.Message)
	answer.Response = callbacktoken.RedactJSON(answer.Response)
	_, err = a.Store.PutAnswer(ctx, answer) // one that came before counts
	return err
}

// asked makes sure that the effect is a message to this sink which asks for a reply. The definition stands in the saga's first event, and nobody changes it.
func (a *Answers) asked(ctx context.Context, sink string, uid uuid.UUID, id saga.EffectID) error {
	first, err := a.Store.Load(ctx, "saga-"+uid.String(), 1, 1)
	if err != nil {
		return err
	}
	if len(first) == 0 {
		return fmt.Errorf("%w: the history of saga %s has been removed", errNoAnswer, uid)
	}
	event, err := saga.Unmarshal(first[0].Type, first[0].SchemaVersion, first[0].Data)
	if err != nil {
		return fmt.Errorf("reading the definition of saga %s: %w", uid, err)
	}
	started, _ := event.(saga.SagaStarted)
	for _, step := range started.Definition.Steps {
		effect := &step.Do
		if id.Direction == saga.Compensation {
			effect = step.Compensation
		}
		var with struct {
			Sink  string
			Reply json.RawMessage
		}
		if step.Name == id.Step && effect != nil && effect.Kind == Kind && json.Unmarshal(effect.With, &with) == nil && with.Sink == sink && len(with.Reply) > 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: %s of saga %s is no message to this sink that asks for a reply", errNoAnswer, id, uid)
}

// decode reads an answer, and the attempt that it is to; 0 if it does not say.
func decode(in outbox.Incoming) (eventstore.Answer, int, error) {
	e, err := outbox.Decode(in)
	if err != nil {
		return eventstore.Answer{}, 0, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	key, _ := e.Extensions()["correlationid"].(string)
	uid, rest, _ := strings.Cut(key, "/")
	step, direction, ok := strings.Cut(rest, "/")
	id, err := uuid.Parse(uid)
	if err != nil || !ok || direction != string(saga.Action) && direction != string(saga.Compensation) {
		return eventstore.Answer{}, 0, fmt.Errorf("%w: its correlationid %.256q is not the one of a message of a saga", errNoAnswer, key)
	}
	answer := eventstore.Answer{UID: id, Step: step, Direction: direction}
	body := bodyOf(&e)
	if rejected := fmt.Sprint(e.Extensions()["sagarejected"]); strings.EqualFold(rejected, "true") {
		answer.Rejected, answer.Reason, answer.Message = true, "Rejected", "the answer says that it was rejected"
		if raw, ok := body.(json.RawMessage); ok {
			answer.Reason, answer.Message = refusal(raw, answer.Reason, answer.Message)
		}
	}
	answer.Response, err = json.Marshal(map[string]any{"body": body, "type": e.Type(), "source": e.Source(), "id": e.ID()})
	attempt, _ := strconv.Atoi(fmt.Sprint(e.Extensions()["sagaattempt"])) // anything else says nothing
	return answer, max(attempt, 0), err
}

// bodyOf returns the data of an answer: a json.RawMessage if it is JSON that [expression.Decode]
// accepts, and text otherwise. It builds no tree: the engine does, with memory reserved for it.
func bodyOf(e *cloudevents.Event) any {
	data := bytes.TrimSpace(e.Data())
	if len(data) == 0 {
		return nil
	}
	data = bytes.ToValidUTF8(data, []byte("\uFFFD"))
	if expression.Check(data) == nil {
		return json.RawMessage(data)
	}
	return string(data)
}

// lenient has the reader accept the JSON that [expression.Check] accepts.
var lenient = jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// refusal returns the reason and the message that the data of an answer give, or else the defaults.
func refusal(data json.RawMessage, reason, message string) (string, string) {
	var fields struct {
		Reason  jsontext.Value `json:"reason"`
		Message jsontext.Value `json:"message"`
	}
	if jsonv2.Unmarshal(data, &fields, lenient) != nil { // it is not an object
		return reason, message
	}
	return field(fields.Reason, reason), field(fields.Message, message)
}

// field is a text of an answer's data, cut to what an answer may have.
func field(value jsontext.Value, otherwise string) string {
	var s string
	if jsonv2.Unmarshal(value, &s, lenient) != nil || s == "" {
		return otherwise
	}
	if len(s) > eventstore.MaxAnswerTextBytes {
		s = s[:eventstore.MaxAnswerTextBytes]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, ""), "\x00", "")
}
