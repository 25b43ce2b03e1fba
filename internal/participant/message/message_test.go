package message

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storemem "github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// sinks are found by their names. They listen at answers, those called deaf at nothing.
type sinks map[string]outbox.Publisher

func (s sinks) Sink(name string) (outbox.Sink, bool) {
	p, ok := s[name]
	if name == "shop/deaf" {
		return outbox.Sink{Name: name, Publisher: p}, ok
	}
	return outbox.Sink{Name: name, Publisher: p, Replies: "answers"}, ok
}

const uid = "019391c5-0000-7000-8000-000000000001"

func call(with map[string]any) participant.Call {
	a := saga.Attempt{EffectID: saga.EffectID{Step: "charge", Direction: saga.Action}, Number: 1}
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

func TestAnAnswerThatNoSinkCouldHearIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	broker := &memory.Publisher{}
	p := New(sinks{"shop/deaf": broker}, source)
	r := p.Do(t.Context(), call(settingsOf(t, `{"sink":"deaf","type":"t","reply":{"timeout":"10m"}}`)))
	if r.Kind != saga.Rejected || r.Author != saga.AuthorOperator || r.Accepted || !strings.HasPrefix(r.Message, "reply: ") || !strings.Contains(r.Message, "spec.replies") {
		t.Errorf("%+v", r)
	}
	if n := len(broker.Taken()); n != 0 {
		t.Errorf("%d messages were published", n)
	}
	if r := p.Do(t.Context(), call(settingsOf(t, `{"sink":"deaf","type":"t"}`))); r.Kind != saga.Succeeded {
		t.Errorf("without an answer: %+v", r)
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
		{&outbox.Error{Kind: outbox.Unavailable, Reason: outbox.ReasonTimeout, Open: true, Err: errors.New("504 Gateway Timeout")}, saga.Unknown},
		{outbox.Errorf(outbox.Rejected, outbox.ReasonTooLarge, "too large"), saga.Rejected},
		{outbox.Errorf(outbox.Failed, outbox.ReasonTimeout, "no word"), saga.Unknown},
		{errors.New("something else"), saga.Unknown},
	} {
		p := New(sinks{"shop/events": &memory.Publisher{Fault: func(context.Context, *outbox.Message) error { return c.fault }}}, source)
		r := p.Do(t.Context(), call(settingsOf(t, `{"sink":"events","type":"t"}`)))
		if r.Kind != c.want || c.fault != nil && !strings.Contains(r.Message, c.fault.Error()) {
			t.Errorf("%v: %+v", c.fault, r)
		}
		if (r.Author == saga.AuthorOperator) != (c.want == saga.Rejected) {
			t.Errorf("%v: it is by %q, but a broker's no says nothing of earlier attempts", c.fault, r.Author)
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

// reply is a message that asks for an answer.
const reply = `{"sink":"events","type":"t","reply":{"timeout":"10m"}}`

// fixture is a store with one saga whose first step, charge, waits for the answer to its message. Its other steps are of other kinds, to another sink, ask for nothing, or have not begun.
func fixture(t *testing.T) *Answers {
	t.Helper()
	step := func(name, kind, with string, after ...string) saga.Step {
		return saga.Step{Name: name, DependsOn: after, Do: saga.Effect{Kind: kind, With: json.RawMessage(with), AttemptTimeout: time.Minute, Retry: saga.Retry{MaxAttempts: 1}}}
	}
	waits := accepting{}
	def := saga.Definition{Steps: []saga.Step{
		step("charge", Kind, reply), step("elsewhere", Kind, strings.ReplaceAll(reply, "events", "other")), step("callback", "test", `{}`),
		step("later", Kind, reply, "charge"),
	}}
	store := storemem.New()
	broker := &memory.Publisher{}
	e, err := engine.New(engine.Options{Store: store, Notify: func(engine.Key) {}, Participants: participant.Registry{
		Kind: New(sinks{"shop/events": broker, "shop/other": broker}, source), "test": waits,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Shutdown(context.Background()) })
	if _, err := e.Advance(t.Context(), engine.Key{Namespace: "shop", Name: "order-1", UID: uid}, engine.Observation{Definition: &def}); err != nil {
		t.Fatal(err)
	}
	return &Answers{Store: store, Logger: slog.New(slog.DiscardHandler)}
}

// accepting is a participant that answers later, by other means.
type accepting struct{}

func (accepting) Check(map[string]any) []saga.FieldError { return nil }

func (accepting) Do(context.Context, participant.Call) participant.Result {
	return participant.Result{Accepted: true, AnswerWithin: time.Hour}
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
	all, err := a.Store.Answers(t.Context(), uuid.MustParse(uid), eventstore.MaxAnswerBytes, "charge", "elsewhere", "callback", "later", "none")
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

func TestAnswersKeepNoCallbackToken(t *testing.T) {
	t.Parallel()
	token := callbacktoken.New()
	for _, headers := range []map[string]string{nil, {"ce-sagarejected": "true"}} {
		a := fixture(t)
		if err := a.Handle(t.Context(), "shop/events", incoming(headers, `{"reason":"r `+token+`","message":"m `+token+`"}`)); err != nil {
			t.Fatal(err)
		}
		all := a.kept(t)
		if len(all) != 1 || !strings.Contains(string(all[0].Response), "m [redacted]") {
			t.Fatalf("kept is %+v", all)
		}
		if texts := all[0].Reason + all[0].Message + string(all[0].Response); strings.Contains(texts, token) {
			t.Errorf("the token is kept: %s", texts)
		}
	}
}

func TestWhatIsNoAnswerIsDroppedAndChangesNothing(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	to := func(correlation string) outbox.Incoming {
		return incoming(map[string]string{"ce-correlationid": correlation}, `{}`)
	}
	for what, in := range map[string]outbox.Incoming{
		"no CloudEvent":                       {Body: []byte("hello")},
		"no correlation":                      to("x"),
		"of an unknown saga":                  to(uuid.NewString() + "/charge/action"),
		"of no direction":                     to(uid + "/charge/sideways"),
		"of a step with a NUL":                to(uid + "/char\x00ge/action"),
		"of a step that is not there":         to(uid + "/none/action"),
		"of a step that has not begun":        to(uid + "/later/action"),
		"of a direction that has not begun":   to(uid + "/charge/compensation"),
		"of a step that waits for a callback": to(uid + "/callback/action"),
		"of another sink's message":           to(uid + "/elsewhere/action"),
		"larger than it may be":               incoming(nil, `"`+strings.Repeat("x", eventstore.MaxAnswerBytes)+`"`),
	} {
		if err := a.Handle(t.Context(), "shop/events", in); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if kept := a.kept(t); len(kept) > 0 {
			t.Fatalf("%s: kept is %+v", what, kept)
		}
	}
}

func TestAReplyAddressAnswersNoSagaOfAnotherNamespace(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	if err := a.Handle(t.Context(), "bank/events", incoming(nil, `{}`)); err != nil {
		t.Error(err)
	}
	if kept := a.kept(t); len(kept) > 0 {
		t.Errorf("kept is %+v", kept)
	}
}

func TestAnAnswerThatIsNoJSONIsKeptAsText(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	if err := a.Handle(t.Context(), "shop/events", incoming(nil, strings.Repeat("[", 100_000))); err != nil {
		t.Fatal(err)
	}
	if kept := a.kept(t); len(kept) != 1 || !strings.Contains(string(kept[0].Response), `"[[[`) {
		t.Errorf("kept are %d", len(kept))
	}
}

func TestAnAnswerThatCannotBeKeptComesAgain(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	for _, err := range []error{eventstore.ErrUnavailable, errors.New("permission denied for table saga_answers"), context.Canceled} {
		broken := &Answers{Store: away{a.Store, err}, Logger: a.Logger}
		if got := broken.Handle(t.Context(), "shop/events", incoming(nil, `{}`)); !errors.Is(got, err) {
			t.Errorf("the error is %v", got)
		}
	}
}

// TestAReplyToASagaOfANewerVersionComesAgain: whether that saga waits for it, only the newer version can tell.
func TestAReplyToASagaOfANewerVersionComesAgain(t *testing.T) {
	t.Parallel()
	a := fixture(t)
	row, err := a.Store.SagaState(t.Context(), uuid.MustParse(uid))
	if err != nil {
		t.Fatal(err)
	}
	row.State = json.RawMessage(`{"needs": {"Step.when": "2.0.0"}}`)
	if _, err := a.Store.Append(t.Context(), eventstore.Append{Stream: "saga-" + uid, Expected: row.Version, State: &row, Events: []eventstore.Event{
		{ID: uuid.New(), Type: "StepSkipped", SchemaVersion: 1, Data: json.RawMessage(`{}`)},
	}}); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	a.Logger = slog.New(slog.NewTextHandler(&log, nil))
	if err, newer := a.Handle(t.Context(), "shop/events", incoming(nil, `{}`)), new(saga.NewerError); !errors.As(err, &newer) {
		t.Errorf("the error is %v", err)
	}
	if !strings.Contains(log.String(), "Step.when (since release 2.0.0)") {
		t.Errorf("the log does not say why: %s", log.String())
	}
}

// away is a store whose answers cannot be kept at the moment.
type away struct {
	eventstore.Store
	err error
}

func (a away) PutAnswer(context.Context, eventstore.Answer) (bool, error) { return false, a.err }

// byStep says yes to everything but the action of ship.
type byStep struct{}

func (byStep) Check(map[string]any) []saga.FieldError { return nil }

func (byStep) Do(_ context.Context, c participant.Call) participant.Result {
	if c.Attempt.Step == "ship" {
		return participant.Result{Kind: saga.Rejected, Author: saga.AuthorParticipant}
	}
	return participant.Result{Kind: saga.Succeeded}
}

// retriedOnce is a store with a saga whose compensation of charge was rejected by a reply, and which a person has had retried: its second attempt waits for a reply.
func retriedOnce(t *testing.T) *Answers {
	t.Helper()
	undo := saga.Effect{Kind: Kind, With: json.RawMessage(reply), AttemptTimeout: time.Minute, Retry: saga.Retry{MaxAttempts: 1}}
	do := saga.Effect{Kind: "test", With: json.RawMessage(`{}`), AttemptTimeout: time.Minute, Retry: saga.Retry{MaxAttempts: 1}}
	def := saga.Definition{Steps: []saga.Step{{Name: "charge", Do: do, Compensation: &undo}, {Name: "ship", DependsOn: []string{"charge"}, Do: do}}}
	store, key := storemem.New(), engine.Key{Namespace: "shop", Name: "order-1", UID: uid}
	e, err := engine.New(engine.Options{Store: store, Notify: func(engine.Key) {}, Participants: participant.Registry{
		Kind: New(sinks{"shop/events": &memory.Publisher{}}, source), "test": byStep{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Shutdown(context.Background()) })
	until := func(is func(saga.State) bool) {
		t.Helper()
		for t.Context().Err() == nil {
			r, err := e.Advance(t.Context(), key, engine.Observation{Definition: &def})
			if err != nil {
				t.Fatal(err)
			}
			if is(r.State) {
				return
			}
			runtime.Gosched()
		}
	}
	accepted := func(n int) func(saga.State) bool {
		return func(s saga.State) bool {
			c := s.Step("charge").Compensation
			return c.Status == saga.Accepted && c.Attempts == n
		}
	}
	until(accepted(1))
	a := &Answers{Store: store, Logger: slog.New(slog.DiscardHandler)}
	no := incoming(map[string]string{"ce-correlationid": uid + "/charge/compensation", "ce-sagarejected": "true", "ce-sagaattempt": "1"}, `{}`)
	if err := a.Handle(t.Context(), "shop/events", no); err != nil {
		t.Fatal(err)
	}
	until(func(s saga.State) bool { return s.Phase == saga.CompensationFailed })
	if err := e.Decide(t.Context(), key, saga.Decision{Verdict: saga.Retried, By: "ann"}); err != nil {
		t.Fatal(err)
	}
	until(accepted(2))
	return a
}

// TestAnswersDropRepliesOfAnEarlierRound has a person retry a compensation after its first attempt. The broker delivers again what was said before.
func TestAnswersDropRepliesOfAnEarlierRound(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		attempt  string
		rejected string
		kept     bool
	}{
		"a rejection of the first attempt":      {"1", "true", false},
		"a success of the first attempt":        {"1", "", false},
		"a rejection that names no attempt":     {"", "true", false},
		"a success that names no attempt":       {"", "", true},
		"a rejection of the second attempt":     {"2", "true", true},
		"a success of the second attempt":       {"2", "", true},
		"a rejection of something unreadable":   {"two", "true", false},
		"a rejection of a number below the one": {"-1", "true", false},
	} {
		a := retriedOnce(t)
		headers := map[string]string{"ce-correlationid": uid + "/charge/compensation", "ce-sagaattempt": c.attempt, "ce-sagarejected": c.rejected}
		for name, value := range headers {
			if value == "" {
				delete(headers, name)
			}
		}
		if err := a.Handle(t.Context(), "shop/events", incoming(headers, `{}`)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		kept := slices.DeleteFunc(a.kept(t), func(kept eventstore.Answer) bool { return kept.Round == 0 })
		if len(kept) == 1 != c.kept {
			t.Errorf("%s: kept are %+v", what, kept)
		}
	}
}
