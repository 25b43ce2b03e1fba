package message

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storemem "github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// sinks are found by their names.
type sinks map[string]outbox.Publisher

func (s sinks) Sink(name string) (outbox.Sink, bool) {
	p, ok := s[name]
	return outbox.Sink{Name: name, Publisher: p}, ok
}

const uid = "019391c5-0000-7000-8000-000000000001"

func call(with map[string]any) participant.Call {
	a := saga.Attempt{Step: "charge", Direction: saga.Action, Number: 1}
	return participant.Call{Saga: participant.Identity{UID: uid, Namespace: "shop", Name: "order-1"}, Attempt: a, Key: a.Key(uid), With: with, TraceParent: "00-1-2-01"}
}

func settingsOf(t *testing.T, text string) map[string]any {
	t.Helper()
	var with map[string]any
	if err := json.Unmarshal([]byte(text), &with); err != nil {
		t.Fatal(err)
	}
	return with
}

func source(namespace string) string { return "/ns/" + namespace }

func TestEveryAttemptOfAnEffectPublishesTheSameMessage(t *testing.T) {
	t.Parallel()
	broker := &memory.Publisher{}
	p := New(sinks{"shop/events": broker}, source)
	c := call(settingsOf(t, `{"sink":"events","type":"com.example.charge","data":{"order":"1"}}`))
	if r := p.Do(t.Context(), c); r.Kind != saga.Succeeded {
		t.Fatalf("%+v", r)
	}
	c.Attempt.Number = 2
	if r := p.Do(t.Context(), c); r.Kind != saga.Succeeded {
		t.Fatalf("%+v", r)
	}
	taken := broker.Taken()
	first, err1 := taken[0].Encode(outbox.Structured, "")
	second, err2 := taken[1].Encode(outbox.Structured, "")
	if err := errors.Join(err1, err2); err != nil || string(first.Body) != string(second.Body) {
		t.Errorf("%v\n%s\n%s", err, first.Body, second.Body)
	}
	m := taken[0]
	if m.Key != uid || m.Subject != "order-1" || m.Source != "/ns/shop" || m.Metadata.CorrelationID != c.Key || m.Metadata.TraceParent != c.TraceParent || string(m.Data) != `{"order":"1"}` {
		t.Errorf("published was %+v", m)
	}
}

func TestAMessageThatAsksForAnAnswerIsAccepted(t *testing.T) {
	t.Parallel()
	p := New(sinks{"shop/events": &memory.Publisher{}}, source)
	r := p.Do(t.Context(), call(settingsOf(t, `{"sink":"events","type":"t","subject":"s","key":"k","reply":{"timeout":"10m"}}`)))
	if !r.Accepted || r.AnswerWithin != 10*time.Minute {
		t.Errorf("%+v", r)
	}
}

func TestWhatPublishingComesTo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fault error
		want  saga.OutcomeKind
	}{
		{nil, saga.Succeeded},
		{outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "nobody there"), saga.Retryable},
		{outbox.Errorf(outbox.Rejected, outbox.ReasonTooLarge, "too large"), saga.Rejected},
		{outbox.Errorf(outbox.Failed, outbox.ReasonTimeout, "no word"), saga.Unknown},
		{errors.New("something else"), saga.Unknown},
	} {
		p := New(sinks{"shop/events": &memory.Publisher{Fault: func(context.Context, *outbox.Message) error { return c.fault }}}, source)
		r := p.Do(t.Context(), call(settingsOf(t, `{"sink":"events","type":"t"}`)))
		if r.Kind != c.want || c.fault != nil && !strings.Contains(r.Message, c.fault.Error()) {
			t.Errorf("%v: %+v", c.fault, r)
		}
		if r.Unasked != (c.want == saga.Rejected) {
			t.Errorf("%v: Unasked is %t, but a broker's no says nothing of earlier attempts", c.fault, r.Unasked)
		}
	}
}

func TestASinkOfAnotherNamespaceIsNotFound(t *testing.T) {
	t.Parallel()
	p := New(sinks{"bank/events": &memory.Publisher{}}, source)
	for _, name := range []string{"events", "../bank/events", "bank/events"} {
		r := p.Do(t.Context(), call(map[string]any{"sink": name, "type": "t"}))
		if r.Kind == saga.Succeeded || r.Kind == saga.Unknown {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestSettingsThatAreWrongNameTheirField(t *testing.T) {
	t.Parallel()
	p := New(sinks{}, source)
	for text, field := range map[string]string{
		`{"type":"t"}`:                                      "sink",
		`{"sink":"events"}`:                                 "type",
		`{"sink":"a/b","type":"t"}`:                         "sink",
		`{"sink":"${input.sink}","type":"t"}`:               "sink",
		`{"sink":"s","type":"io.vextrus.saga.Completed"}`:   "type",
		`{"sink":"s","type":1}`:                             "type",
		`{"sink":"s","type":"t","reply":{}}`:                "reply.timeout",
		`{"sink":"s","type":"t","reply":null}`:              "reply.timeout",
		`{"sink":"s","type":"t","topic":"x"}`:               "topic",
		`{"sink":"s","type":"t","reply":{"timeout":"1ms"}}`: "reply.timeout",
	} {
		errs := p.Check(settingsOf(t, text))
		if len(errs) != 1 || errs[0].Field != field {
			t.Errorf("%s: %v", text, errs)
		}
	}
	if errs := p.Check(settingsOf(t, `{"sink":"s","type":"t","subject":"${input.a}","key":"${input.a}","data":"${input}","reply":{"timeout":"720h"}}`)); len(errs) > 0 {
		t.Error(errs)
	}
}

// fixture is a store with one saga that waits for an answer.
func fixture(t *testing.T) *Answers {
	t.Helper()
	store := storemem.New()
	_, err := store.Append(t.Context(), eventstore.Append{
		Stream: "saga-" + uid, Events: []eventstore.Event{{ID: uuid.New(), Type: "SagaStarted", SchemaVersion: 1, Data: json.RawMessage(`{}`)}},
		State: &eventstore.SagaState{UID: uuid.MustParse(uid), Namespace: "shop", Name: "order-1", Phase: "Running", State: json.RawMessage(`{}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return &Answers{Store: store, Logger: slog.New(slog.DiscardHandler)}
}

func incoming(headers map[string]string, body string) outbox.Incoming {
	in := outbox.Incoming{Body: []byte(body), Headers: map[string]string{
		"ce-specversion": "1.0", "ce-id": "a-1", "ce-type": "com.example.charged", "ce-source": "/payments", "ce-correlationid": uid + "/charge/action",
	}}
	for name, value := range headers {
		in.Headers[name] = value
	}
	return in
}

func (a *Answers) kept(t *testing.T) []eventstore.Answer {
	t.Helper()
	all, err := a.Store.Answers(t.Context(), uuid.MustParse(uid))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAnAnswerIsKeptForTheEffectThatItsCorrelationNames(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	if err := a.Handle(t.Context(), "shop/events", incoming(nil, `{"id":"c-1"}`)); err != nil {
		t.Fatal(err)
	}
	all := a.kept(t)
	if len(all) != 1 || all[0].Step != "charge" || all[0].Direction != "action" || all[0].Rejected {
		t.Fatalf("kept is %+v", all)
	}
	var response struct{ Body struct{ ID string } }
	if err := json.Unmarshal(all[0].Response, &response); err != nil || response.Body.ID != "c-1" {
		t.Errorf("the response is %s, %v", all[0].Response, err)
	}
}

func TestAnAnswerCanBeADefiniteNo(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	if err := a.Handle(t.Context(), "shop/events", incoming(map[string]string{"ce-sagarejected": "true"}, `{"reason":"Declined","message":"no \u0000money"}`)); err != nil {
		t.Fatal(err)
	}
	if all := a.kept(t); len(all) != 1 || !all[0].Rejected || all[0].Reason != "Declined" || all[0].Message != "no money" {
		t.Errorf("kept is %+v", all)
	}
}

func TestWhatIsNoAnswerIsDroppedAndChangesNothing(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	for what, in := range map[string]outbox.Incoming{
		"no CloudEvent":         {Body: []byte("hello")},
		"no correlation":        incoming(map[string]string{"ce-correlationid": "x"}, `{}`),
		"of an unknown saga":    incoming(map[string]string{"ce-correlationid": uuid.NewString() + "/charge/action"}, `{}`),
		"of no direction":       incoming(map[string]string{"ce-correlationid": uid + "/charge/sideways"}, `{}`),
		"of a step with a NUL":  incoming(map[string]string{"ce-correlationid": uid + "/char\x00ge/action"}, `{}`),
		"deeper than it may be": incoming(nil, strings.Repeat("[", 100_000)),
	} {
		if err := a.Handle(t.Context(), "shop/events", in); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := a.Handle(t.Context(), "bank/events", incoming(nil, `{}`)); err != nil {
		t.Error(err)
	}
	for _, answer := range a.kept(t) {
		if answer.Step != "charge" || string(answer.Response) == "" {
			t.Errorf("kept is %+v", answer)
		}
	}
}

func TestAnAnswerThatCannotBeKeptComesAgain(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	a.Store = away{a.Store}
	if err := a.Handle(t.Context(), "shop/events", incoming(nil, `{}`)); !errors.Is(err, eventstore.ErrUnavailable) {
		t.Errorf("the error is %v", err)
	}
}

// away is a store whose answers cannot be kept at the moment.
type away struct{ eventstore.Store }

func (away) PutAnswer(context.Context, eventstore.Answer) (bool, error) {
	return false, eventstore.ErrUnavailable
}
