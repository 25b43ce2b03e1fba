package engine

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// unprepared is a participant that fails before it is called.
type unprepared struct {
	*scripted
	result participant.Result
}

func (p unprepared) Prepare(_ context.Context, c *participant.Call) *participant.Result {
	if c.Attempt.Direction == saga.Compensation {
		return nil
	}
	result := p.result
	return &result
}

// recordedTexts returns all data that a saga's history and replies have.
func recordedTexts(t *testing.T, store eventstore.Store, k Key) string {
	t.Helper()
	events, err := store.Load(t.Context(), StreamOf(k.UID), 1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, e := range events {
		all.Write(e.Data)
	}
	answers, err := store.Answers(t.Context(), uuid.MustParse(k.UID), eventstore.MaxAnswerBytes, "pay")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		all.WriteString(a.Reason + a.Message + string(a.Response))
	}
	return all.String()
}

func TestAttemptsRecordNoCallbackToken(t *testing.T) {
	t.Parallel()
	token := callbacktoken.New()
	rejected := participant.Result{Kind: saga.Rejected, Author: saga.AuthorParticipant, Reason: "No", Message: "no: " + token}
	odd := participant.Result{Kind: saga.Rejected, Author: saga.AuthorParticipant, Reason: token, Message: "no"}
	echo := participant.Result{Kind: saga.Succeeded, Response: map[string]any{
		"headers": map[string]any{"x-echo": "h " + token}, "body": json.RawMessage(`{"saw":"b ` + token + `"}`),
	}}
	does := func(r participant.Result) participant.Participant {
		return &scripted{do: func(_ context.Context, c participant.Call) participant.Result {
			if c.Attempt.Direction == saga.Compensation {
				return participant.Result{Kind: saga.Succeeded}
			}
			return r
		}}
	}
	for name, c := range map[string]struct {
		participant participant.Participant
		want        []string
	}{
		"message":  {does(rejected), []string{"no: [redacted]"}},
		"reason":   {does(odd), []string{`"reason":"[redacted]"`}},
		"response": {does(echo), []string{"h [redacted]", "b [redacted]"}},
		"prepared": {unprepared{&scripted{}, rejected}, []string{"no: [redacted]"}},
		"panicked": {&scripted{do: func(_ context.Context, c participant.Call) participant.Result {
			if c.Attempt.Direction == saga.Action {
				panic("with " + token)
			}
			return participant.Result{Kind: saga.Succeeded}
		}}, []string{"with [redacted]"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, k := memory.New(), newKey(t)
			def := definition("pay")
			def.Steps[0].Do.AttemptTimeout = time.Second // until then a call that panicked may be under way
			def.Steps[0].Output = map[string]string{"header": "${response.headers['x-echo']}", "body": "${response.body.saw}"}
			b := newBench(t, store, c.participant, start(def)).run()
			b.queue.Enqueue(k)
			b.await()
			texts := recordedTexts(t, store, k)
			if strings.Contains(texts, token) {
				t.Errorf("the token is recorded: %s", texts)
			}
			for _, want := range c.want {
				if !strings.Contains(texts, want) {
					t.Errorf("%s is not recorded: %s", want, texts)
				}
			}
		})
	}
}

// TestCallbacksRecordNoToken has a participant repeat its own token in its reply. The token stays
// valid, and the reply counts.
func TestCallbacksRecordNoToken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		reply func(token string) CallbackAnswer
		want  string
	}{
		"body":    {paid, `{"id":"[redacted]"}`},
		"reason":  {func(token string) CallbackAnswer { return CallbackAnswer{Rejected: true, Reason: token} }, `"reason":"[redacted]"`},
		"message": {func(token string) CallbackAnswer { return CallbackAnswer{Rejected: true, Message: token} }, `"message":"[redacted]"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := memory.New()
			callbacks := &Callbacks{Store: store}
			b, k, i := answering(t, store, callbacks)
			answered(t, callbacks, i.token, c.reply(i.token), nil)
			if texts := recordedTexts(t, store, k); strings.Contains(texts, i.token) {
				t.Errorf("the token is kept with the reply: %s", texts)
			}
			if err := b.engine.Answered(t.Context(), b.queue.Enqueue); err != nil {
				t.Fatal(err)
			}
			b.await()
			texts := recordedTexts(t, store, k)
			if strings.Contains(texts, i.token) || !strings.Contains(texts, c.want) {
				t.Errorf("recorded is %s, want %s in it and no token", texts, c.want)
			}
			answered(t, callbacks, i.token, c.reply(i.token), nil) // repeated, it is the same reply
		})
	}
}
