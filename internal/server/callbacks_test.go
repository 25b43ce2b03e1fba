package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/operations"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/testenv/driver"
)

// carrier is a participant that accepts the actions of the step book, and is told its callback before that is recorded. All else it does at once.
type carrier struct {
	callbacks *engine.Callbacks
	accepting func(call participant.Call, token string)
}

func (*carrier) Check(map[string]any) []saga.FieldError { return nil }

// agreed is how long a callback is good for.
const agreed = time.Hour

func (p *carrier) Do(ctx context.Context, call participant.Call) participant.Result {
	if call.Attempt.Step != "book" || call.Attempt.Direction != saga.Action {
		return participant.Result{Kind: saga.Succeeded}
	}
	token, err := p.callbacks.Issue(ctx, call, agreed)
	if err != nil {
		return participant.Result{Kind: saga.Retryable, Reason: "NoCallback", Message: err.Error()}
	}
	p.accepting(call, token)
	return participant.Result{Accepted: true, AnswerWithin: agreed}
}

// callbackRig is the API with the engine behind it, and PostgreSQL behind that. Nothing in it is a fake but the participant and the time.
type callbackRig struct {
	*rig
	engine  *engine.Engine
	runner  *driver.Runner
	carrier *carrier
	tokens  chan string
	ended   chan engine.Result

	mu     sync.Mutex
	now    time.Time
	cancel bool
	ends   map[engine.Key]int64 // the version at which each saga has ended last
}

func newCallbackRig(t *testing.T) *callbackRig {
	t.Helper()
	r := &callbackRig{tokens: make(chan string, 10), ended: make(chan engine.Result, 10), now: time.Now(), ends: map[engine.Key]int64{}}
	var callbacks *engine.Callbacks
	r.rig = newRig(t, func(o *operations.Options, _ *Options) {
		callbacks = &engine.Callbacks{Store: storepg.New(o.Database), Clock: r.clock}
		o.Callbacks = callbacks
	})
	r.carrier = &carrier{callbacks: callbacks, accepting: func(_ participant.Call, token string) { r.tokens <- token }}
	r.runner = &driver.Runner{Workers: 2, Retry: time.Millisecond, Observe: r.observe, Finished: r.finished}
	var err error
	r.engine, err = engine.New(engine.Options{Store: callbacks.Store, Participants: participant.Registry{"test": r.carrier}, Notify: r.runner.Enqueue})
	r.ok(err)
	r.runner.Engine = r.engine
	r.background(func(ctx context.Context) {
		_ = r.runner.Run(ctx)
		_ = r.engine.Shutdown(ctx)
	})
	return r
}

// finished notes that a saga has ended. The runner says it again of one that is queued once more.
func (r *callbackRig) finished(k engine.Key, res engine.Result) {
	r.mu.Lock()
	again := r.ends[k] == res.State.Version
	r.ends[k] = res.State.Version
	r.mu.Unlock()
	if !again {
		r.ended <- res
	}
}

func (r *callbackRig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// observe is what all sagas here are: book, which is answered later, and ship, which needs what was answered.
func (r *callbackRig) observe(engine.Key) engine.Observation {
	effect := func() saga.Effect {
		return saga.Effect{Kind: "test", With: json.RawMessage(`{}`), AttemptTimeout: saga.MaxAttemptTimeout, Retry: saga.Retry{MaxAttempts: 3, InitialBackoff: time.Millisecond, MaxBackoff: time.Millisecond}}
	}
	undo := effect()
	def := &saga.Definition{Steps: []saga.Step{
		{Name: "book", Do: effect(), Compensation: &undo, Output: map[string]string{"booking": "${response.body}"}},
		{Name: "ship", Do: effect(), DependsOn: []string{"book"}},
	}}
	r.mu.Lock()
	defer r.mu.Unlock()
	return engine.Observation{Definition: def, Input: json.RawMessage(`{}`), Cancel: r.cancel}
}

// begin starts a saga.
func (r *callbackRig) begin() engine.Key {
	k := engine.Key{Namespace: r.ns, Name: "order", UID: uuid.Must(uuid.NewV7()).String()}
	r.runner.Enqueue(k)
	return k
}

// waiting is a saga whose step was accepted and waits for its callback, with that.
func (r *callbackRig) waiting() (k engine.Key, token string) {
	r.Helper()
	k = r.begin()
	token = <-r.tokens
	r.until("the acceptance is recorded", func() bool { return strings.Contains(r.recorded(k), "AttemptAccepted") })
	return k, token
}

// recorded are the types of a saga's events.
func (r *callbackRig) recorded(k engine.Key) string {
	r.Helper()
	all, err := r.store.Load(context.Background(), engine.StreamOf(k.UID), 1, 100)
	r.ok(err)
	var types []string
	for _, e := range all {
		types = append(types, e.Type)
	}
	return strings.Join(types, " ")
}

// posted posts a callback and holds the answer against what it should be.
func (r *callbackRig) posted(what, token, body string, status int, reason string) {
	r.Helper()
	a := r.do(call{method: "POST", path: "/v1/callbacks/" + token, body: body})
	if a.status != status {
		r.Errorf("%s: %d %s, want %d", what, a.status, a.body, status)
	} else if status != http.StatusNoContent && a.problem(r).Reason != reason {
		r.Errorf("%s: %s, want reason %s", what, a.body, reason)
	}
}

// end has the saga learn what was answered, and waits until one ends.
func (r *callbackRig) end() engine.Result {
	r.Helper()
	r.ok(r.engine.Answered(context.Background(), r.runner.Enqueue))
	select {
	case res := <-r.ended:
		return res
	case <-time.After(patience):
		r.Fatal("the saga does not end")
		panic("unreachable")
	}
}

const booked, other = `{"outcome":"Succeeded","body":{"id":"b-7"}}`, `{"outcome":"Succeeded","body":{"id":"b-8"}}`

func TestACallbackEndsItsStepHoweverOftenItComes(t *testing.T) {
	t.Parallel()
	r := newCallbackRig(t)
	k, token := r.waiting()
	r.posted("while it is waited for", token, booked, http.StatusNoContent, "")
	r.posted("twice", token, `{"body": {"id": "b-7"}, "outcome": "Succeeded"}`, http.StatusNoContent, "")
	r.posted("another answer", token, other, http.StatusConflict, "Used")
	r.posted("a refusal after all", token, `{"outcome":"Rejected","reason":"Full"}`, http.StatusConflict, "Used")
	if res := r.end(); res.State.Phase != saga.Completed || string(res.State.Step("book").Output) != `{"booking":{"id":"b-7"}}` {
		t.Errorf("the saga is %s with output %s", res.State.Phase, res.State.Step("book").Output)
	}
	before := r.recorded(k)
	r.posted("twice, when the saga has finished", token, booked, http.StatusNoContent, "")
	r.posted("another answer, when the saga has finished", token, other, http.StatusConflict, "Used")
	if after := r.recorded(k); after != before || strings.Count(after, "AttemptSucceeded") != 2 {
		t.Errorf("before it was %s, and then %s", before, after)
	}
}

func TestACallbackThatIsFasterThanTheAcceptanceCounts(t *testing.T) {
	t.Parallel()
	r := newCallbackRig(t)
	r.carrier.accepting = func(_ participant.Call, token string) {
		r.posted("before the participant has answered", token, booked, http.StatusNoContent, "")
		r.posted("twice", token, booked, http.StatusNoContent, "")
		r.posted("another answer", token, other, http.StatusConflict, "Used")
	}
	k := r.begin()
	if res := r.end(); res.State.Phase != saga.Completed || !strings.Contains(r.recorded(k), "AttemptAccepted AttemptSucceeded") {
		t.Errorf("the saga is %s by %s", res.State.Phase, r.recorded(k))
	}
}

func TestARejectingCallbackRollsItsSagaBack(t *testing.T) {
	t.Parallel()
	r := newCallbackRig(t)
	k, token := r.waiting()
	r.posted("a refusal", token, `{"outcome":"Rejected","reason":"Full","message":"no truck on that day"}`, http.StatusNoContent, "")
	res := r.end()
	if f := res.State.Failure; res.State.Phase != saga.Compensated || f == nil || f.Reason != "Full" || f.Message != "no truck on that day" {
		t.Errorf("the saga is %s: %+v", res.State.Phase, f)
	}
	if got := r.recorded(k); strings.Contains(got, "AttemptSucceeded") {
		t.Errorf("what was refused has been undone: %s", got)
	}
	r.posted("twice", token, `{"outcome":"Rejected","reason":"Full","message":"no truck on that day"}`, http.StatusNoContent, "")
	r.posted("with another message", token, `{"outcome":"Rejected","reason":"Full"}`, http.StatusConflict, "Used")
}

// TestACallbackToASagaOfANewerVersionHasToComeAgain: whether that saga waits for it, only the newer version can tell.
func TestACallbackToASagaOfANewerVersionHasToComeAgain(t *testing.T) {
	t.Parallel()
	r := newCallbackRig(t)
	k, token := r.waiting()
	row, err := r.store.SagaState(t.Context(), uuid.MustParse(k.UID))
	r.ok(err)
	row.State = json.RawMessage(`{"needs": {"Step.when": "2.0.0"}}`)
	_, err = r.store.Append(t.Context(), eventstore.Append{Stream: engine.StreamOf(k.UID), Expected: row.Version, State: &row, Events: []eventstore.Event{
		{ID: uuid.Must(uuid.NewV7()), Type: "StepSkipped", SchemaVersion: 1, Data: json.RawMessage(`{"needs": {"Step.when": "2.0.0"}}`)},
	}})
	r.ok(err)
	r.posted("to an operator that is too old", token, booked, http.StatusServiceUnavailable, "Unavailable")
	r.until("the log says why", func() bool { return strings.Contains(r.log.String(), "Step.when (since release 2.0.0)") })
}

func TestACallbackThatComesTooLateIsGone(t *testing.T) {
	t.Parallel()
	r := newCallbackRig(t)
	k, cancelled := r.waiting()
	r.mu.Lock()
	r.cancel = true
	r.mu.Unlock()
	r.runner.Enqueue(k)
	if res := r.end(); res.State.Phase != saga.Compensated {
		t.Fatalf("the saga is %s", res.State.Phase)
	}
	r.posted("after a rollback", cancelled, booked, http.StatusGone, "Over")
	r.mu.Lock()
	r.cancel = false
	r.mu.Unlock()
	k, late := r.waiting()
	before := r.recorded(k)
	r.mu.Lock()
	r.now = r.now.Add(agreed + time.Second)
	r.mu.Unlock()
	r.posted("after its time", late, booked, http.StatusGone, "Over")
	r.ok(r.engine.Answered(t.Context(), func(k engine.Key) { t.Errorf("an answer was kept for %s", k) }))
	if after := r.recorded(k); after != before {
		t.Errorf("before it was %s, and then %s", before, after)
	}
}

func TestACallbackIsForOneSagaAndForNobodyWhoGuesses(t *testing.T) {
	t.Parallel()
	r := newCallbackRig(t)
	mine, token := r.waiting()
	theirs, another := r.waiting()
	before := r.recorded(theirs)
	for _, guess := range []string{strings.Repeat("A", len(token)), token[1:], token + "=", strings.ToUpper(token), token[:20] + another[20:], mine.UID, theirs.UID, "x"} {
		r.posted(fmt.Sprintf("forged as %q", guess), guess, booked, http.StatusNotFound, "NotFound")
	}
	r.posted("of this saga", token, booked, http.StatusNoContent, "")
	if res := r.end(); res.State.UID != mine.UID || res.State.Phase != saga.Completed {
		t.Errorf("saga %s is %s", res.State.UID, res.State.Phase)
	}
	if after := r.recorded(theirs); after != before {
		t.Errorf("the other saga was at %s, and then at %s", before, after)
	}
	r.posted("of the other saga, with another answer", another, other, http.StatusNoContent, "")
	if res := r.end(); res.State.UID != theirs.UID || string(res.State.Step("book").Output) != `{"booking":{"id":"b-8"}}` {
		t.Errorf("saga %s has output %s", res.State.UID, res.State.Step("book").Output)
	}
}

func TestNumbersOfACallbackArriveAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	r := newCallbackRig(t)
	_, token := r.waiting()
	const body = `{"outcome":"Succeeded","body":{"account":9007199254740993,"least":-9223372036854775808,"price":0.1}}`
	r.posted("large numbers", token, body, http.StatusNoContent, "")
	var kept string
	r.ok(r.pool.QueryRow(t.Context(), `SELECT response ->> 'body' FROM saga_answers`).Scan(&kept))
	if want := `{"account":9007199254740993,"least":-9223372036854775808,"price":0.1}`; kept != want {
		t.Errorf("kept was %s", kept)
	}
	res := r.end()
	if got, want := string(res.State.Step("book").Output), `{"booking":{"account":9007199254740993,"least":-9223372036854775808,"price":0.1}}`; got != want {
		t.Errorf("the output is\n%s, want\n%s", got, want)
	}
	_, token = r.waiting()
	r.posted("a float that is whole", token, `{"outcome":"Succeeded","body":{"price":1.0,"large":1e20}}`, http.StatusNoContent, "")
	r.ok(r.pool.QueryRow(t.Context(), `SELECT response ->> 'body' FROM saga_answers WHERE response ->> 'body' LIKE '%price":1%'`).Scan(&kept))
	if kept != `{"large":1e20,"price":1.0}` { // so that output expressions see a double, as in an answer that comes at once
		t.Errorf("kept was %s", kept)
	}
}
