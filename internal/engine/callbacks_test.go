package engine

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// called is a participant that asks for a callback for the actions of one step, and hands it and the call to the test.
type called struct {
	*scripted
	callbacks *Callbacks
}

type issued struct {
	call  participant.Call
	token string
}

const agreed = time.Hour

// callsBack accepts the actions of a step. then sees each with its token before the acceptance is recorded.
func callsBack(t *testing.T, c *Callbacks, step string, then func(issued)) *called {
	p := &called{callbacks: c}
	p.scripted = later(step, agreed, func(call participant.Call) {
		token, err := c.Issue(context.Background(), call, agreed)
		if err != nil {
			t.Error(err)
		}
		then(issued{call, token})
	})
	return p
}

func paid(id string) CallbackAnswer {
	return CallbackAnswer{Response: map[string]any{"status": 200, "headers": map[string]any{}, "body": map[string]any{"id": id}}}
}

// answering is a saga that waits for the callback of its first step, accepted and recorded.
func answering(t *testing.T, store eventstore.Store, c *Callbacks) (*bench, Key, issued) {
	t.Helper()
	tokens := make(chan issued, 1)
	def := definition("pay", "ship")
	def.Steps[0].Output = map[string]string{"id": "${response.body.id}"}
	b := newBench(t, store, callsBack(t, c, "pay", func(i issued) { tokens <- i }).scripted, start(def)).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	i := <-tokens
	recorded(t, store, k, "AttemptAccepted")
	return b, k, i
}

func answered(t *testing.T, c *Callbacks, token string, a CallbackAnswer, want error) {
	t.Helper()
	if err := c.Answer(t.Context(), token, a); !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("the callback came to %v, want %v", err, want)
	}
}

func TestACallbackEndsTheAttemptThatItWasGivenTo(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	b, _, i := answering(t, store, c)
	answered(t, c, i.token, paid("p-1"), nil)
	if err := b.engine.Answered(t.Context(), b.queue.Enqueue); err != nil {
		t.Fatal(err)
	}
	r := b.await()
	if r.State.Phase != saga.Completed || string(r.State.Step("pay").Output) != `{"id":"p-1"}` {
		t.Errorf("the saga is %s with output %s", r.State.Phase, r.State.Step("pay").Output)
	}
	answered(t, c, i.token, paid("p-1"), nil) // the participant may not have seen that it was taken
	answered(t, c, i.token, paid("p-2"), ErrCallbackUsed)
}

func TestCallbacksFindNamespaceOfSaga(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	_, k, i := answering(t, store, c)
	if namespace, err := c.Find(t.Context(), i.token); err != nil || namespace != k.Namespace {
		t.Errorf("Find = %q, %v, want %q", namespace, err, k.Namespace)
	}
	if _, err := c.Find(t.Context(), "forged"); !errors.Is(err, ErrNoCallback) {
		t.Errorf("a forged token: %v, want %v", err, ErrNoCallback)
	}
}

func TestACallbackThatComesBeforeTheAcceptanceIsKept(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	p := callsBack(t, c, "pay", func(i issued) { answered(t, c, i.token, paid("p-1"), nil) })
	b := newBench(t, store, p.scripted, start(definition("pay", "ship"))).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Completed {
		t.Errorf("the saga is %s", r.State.Phase)
	}
	if got := strings.Join(history(t, store, k), " "); !strings.Contains(got, "AttemptAccepted AttemptSucceeded") {
		t.Errorf("the history is %s", got)
	}
}

func TestARejectingCallbackRollsTheSagaBack(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	b, _, i := answering(t, store, c)
	no := CallbackAnswer{Rejected: true, Reason: "Declined", Message: "the card was declined"}
	answered(t, c, i.token, no, nil)
	answered(t, c, i.token, paid("p-1"), ErrCallbackUsed)
	answered(t, c, i.token, no, nil)
	if err := b.engine.Answered(t.Context(), b.queue.Enqueue); err != nil {
		t.Fatal(err)
	}
	if r := b.await(); r.State.Phase != saga.Compensated || r.State.Failure.Reason != "Declined" {
		t.Errorf("the saga is %s: %+v", r.State.Phase, r.State.Failure)
	}
}

func TestAForgedCallbackChangesNothing(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	_, k, i := answering(t, store, c)
	for _, token := range []string{"", "x", strings.Repeat("A", len(i.token)), i.token + "=", i.token[:len(i.token)-1], strings.ToUpper(i.token), k.UID} {
		answered(t, c, token, paid("p-1"), ErrNoCallback)
	}
	if got, err := store.Answers(t.Context(), uuid.MustParse(k.UID), eventstore.MaxAnswerBytes, "pay"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// besides is a saga with two steps beside each other, whose actions and compensations are all
// answered by callback, and one after them that is rejected.
func besides() *saga.Definition {
	def := definition("pay", "ship", "book")
	def.Steps[1].DependsOn, def.Steps[2].DependsOn = nil, []string{"pay", "ship"}
	return def
}

// issues waits for the tokens of an effect of both parallel steps.
func issues(t *testing.T, tokens <-chan issued, dir saga.Direction) map[string]issued {
	t.Helper()
	all := map[string]issued{}
	for len(all) < 2 {
		select {
		case i := <-tokens:
			if i.call.Attempt.Direction != dir {
				t.Fatalf("%s asks for a callback", i.call.Attempt)
			}
			all[i.call.Attempt.Step] = i
		case <-time.After(patience):
			t.Fatalf("no tokens of the %ss", dir)
		}
	}
	return all
}

// answersAre checks which effects of a saga have been answered, each by what it says of itself.
func answersAre(t *testing.T, store eventstore.Store, uid string, want ...string) {
	t.Helper()
	all, err := store.Answers(t.Context(), uuid.MustParse(uid), eventstore.MaxAnswerBytes, "pay", "ship", "book")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]string, len(all))
	for i := range all {
		got[i] = all[i].Step + " " + all[i].Direction + " " + string(all[i].Response)
	}
	for i, effect := range want {
		want[i] = effect + ` {"body":{"id":"p-1"},"headers":{},"status":200}`
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the answers are %q, want %q", got, want)
	}
}

// TestACallbackAnswersItsOwnSagaStepAndDirectionOnly has everything answered with the same words,
// so that nothing but the token tells one answer from another.
func TestACallbackAnswersItsOwnSagaStepAndDirectionOnly(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	tokens := make(chan issued, 4)
	p := &scripted{do: func(_ context.Context, call participant.Call) participant.Result {
		if call.Attempt.Step == "book" {
			return participant.Result{Kind: saga.Rejected, Author: saga.AuthorParticipant}
		}
		token, err := c.Issue(context.Background(), call, agreed)
		if err != nil {
			t.Error(err)
		}
		tokens <- issued{call, token}
		return participant.Result{Accepted: true, AnswerWithin: agreed}
	}}
	b := newBench(t, store, p, start(besides()))
	k, other := newKey(t), newKey(t)
	// advance goes on until all that was called has been recorded, and returns how the two effects stand.
	advance := func(k Key, dir saga.Direction) (pay, ship saga.EffectStatus) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; runtime.Gosched() {
			r, err := b.engine.Advance(t.Context(), k, b.obs)
			if err != nil {
				t.Fatal(err)
			}
			pay, ship = r.State.Step("pay").Effect(dir).Status, r.State.Step("ship").Effect(dir).Status
			if pay != saga.InProgress && ship != saga.InProgress || time.Now().After(deadline) {
				return pay, ship
			}
		}
	}
	t.Cleanup(func() { _ = b.engine.Shutdown(context.Background()) })
	are := func(k Key, dir saga.Direction, wantPay, wantShip saga.EffectStatus) {
		t.Helper()
		if pay, ship := advance(k, dir); pay != wantPay || ship != wantShip {
			t.Fatalf("the %s of pay is %s and the one of ship is %s, want %s and %s", dir, pay, ship, wantPay, wantShip)
		}
	}
	are(other, saga.Action, saga.Accepted, saga.Accepted)
	issues(t, tokens, saga.Action)
	are(k, saga.Action, saga.Accepted, saga.Accepted)
	actions := issues(t, tokens, saga.Action)

	answered(t, c, actions["ship"].token, paid("p-1"), nil)
	answersAre(t, store, k.UID, "ship action")
	are(k, saga.Action, saga.Accepted, saga.Done)
	answered(t, c, actions["pay"].token, paid("p-1"), nil)
	answersAre(t, store, k.UID, "pay action", "ship action")
	are(k, saga.Action, saga.Done, saga.Done)

	// The rollback finds the answers to the actions, which say nothing of it.
	compensations := rolledBack(t, b, k, tokens)
	are(k, saga.Compensation, saga.Accepted, saga.Accepted)
	answered(t, c, actions["pay"].token, paid("p-1"), nil) // which was said before
	are(k, saga.Compensation, saga.Accepted, saga.Accepted)
	answered(t, c, compensations["ship"].token, paid("p-1"), nil)
	answersAre(t, store, k.UID, "pay action", "ship action", "ship compensation")
	are(k, saga.Compensation, saga.Accepted, saga.Done)
	answersAre(t, store, other.UID)
	are(other, saga.Action, saga.Accepted, saga.Accepted)
}

// rolledBack advances a saga until both its compensations have their tokens.
func rolledBack(t *testing.T, b *bench, k Key, tokens <-chan issued) map[string]issued {
	t.Helper()
	for deadline := time.Now().Add(patience); len(tokens) < 2 && !time.Now().After(deadline); runtime.Gosched() {
		if _, err := b.engine.Advance(t.Context(), k, b.obs); err != nil {
			t.Fatal(err)
		}
	}
	return issues(t, tokens, saga.Compensation)
}

func TestACallbackIsOfNoUseAfterItsEnd(t *testing.T) {
	t.Parallel()
	store := memory.New()
	now := newClock()
	c := &Callbacks{Store: store, Clock: now.Now}
	_, k, i := answering(t, store, c)
	now.forward(agreed)
	answered(t, c, i.token, paid("p-1"), ErrCallbackExpired)
	if got, err := store.Answers(t.Context(), uuid.MustParse(k.UID), eventstore.MaxAnswerBytes, "pay"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	now.forward(-time.Microsecond)
	answered(t, c, i.token, paid("p-1"), nil)
}

func TestACallbackAfterTheDeadlineChangesNothing(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	tokens, now := make(chan issued, 1), newClock()
	def := definition("pay")
	def.Deadline = time.Minute
	b := newBench(t, store, callsBack(t, c, "pay", func(i issued) { tokens <- i }).scripted, start(def))
	b.engine.Clock = now.Now
	b.run()
	k := newKey(t)
	b.queue.Enqueue(k)
	i := <-tokens
	recorded(t, store, k, "AttemptAccepted")
	now.forward(def.Deadline)
	b.queue.Enqueue(k)
	if r := b.await(); r.State.Phase != saga.Compensated || r.State.Failure.Cause != saga.CauseDeadlineExceeded {
		t.Fatalf("the saga is %s: %+v", r.State.Phase, r.State.Failure)
	}
	answered(t, c, i.token, paid("p-1"), ErrCallbackOver)
	if got, err := store.Answers(t.Context(), uuid.MustParse(i.call.Saga.UID), eventstore.MaxAnswerBytes, "pay"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestACallbackDuringTheRollbackChangesNothing(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	tokens, undoing, goOn := make(chan issued, 1), make(chan struct{}), make(chan struct{})
	p := callsBack(t, c, "pay", func(i issued) { tokens <- i })
	accept := p.do
	p.do = func(ctx context.Context, call participant.Call) participant.Result {
		if call.Attempt.Direction == saga.Compensation {
			close(undoing)
			<-goOn
		}
		return accept(ctx, call)
	}
	def := definition("pay")
	def.Deadline = time.Minute
	now := newClock()
	b := newBench(t, store, p.scripted, start(def))
	b.engine.Clock = now.Now
	b.run()
	k := newKey(t)
	b.queue.Enqueue(k)
	i := <-tokens
	recorded(t, store, k, "AttemptAccepted")
	now.forward(def.Deadline)
	b.queue.Enqueue(k)
	<-undoing
	answered(t, c, i.token, paid("p-1"), ErrCallbackOver)
	if got, err := store.Answers(t.Context(), uuid.MustParse(i.call.Saga.UID), eventstore.MaxAnswerBytes, "pay"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	close(goOn)
	if r := b.await(); r.State.Phase != saga.Compensated {
		t.Errorf("the saga is %s", r.State.Phase)
	}
}

func TestOfManyCallbacksAtOnceOneIsTaken(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	_, k, i := answering(t, store, c)
	var wg sync.WaitGroup
	var mu sync.Mutex
	taken := 0
	for n := range 16 {
		wg.Go(func() {
			err := c.Answer(t.Context(), i.token, paid(string(rune('a'+n))))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				taken++
			} else if !errors.Is(err, ErrCallbackUsed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := store.Answers(t.Context(), uuid.MustParse(k.UID), eventstore.MaxAnswerBytes, "pay"); err != nil || len(got) != 1 || taken != 1 {
		t.Errorf("%d were taken, and %v kept: %v", taken, got, err)
	}
}

func TestAnEarlierAttemptsCallbackSettlesTheEffect(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	var first string
	p := &scripted{}
	p.do = func(_ context.Context, call participant.Call) participant.Result {
		if call.Attempt.Step != "pay" || call.Attempt.Direction != saga.Action {
			return participant.Result{Kind: saga.Succeeded}
		}
		token, err := c.Issue(context.Background(), call, agreed)
		if err != nil {
			t.Error(err)
		}
		if call.Attempt.Number == 1 { // the answer 202 was lost, and the participant knows this token alone
			first = token
			return participant.Result{Kind: saga.Unknown, Reason: "ConnectionBroken"}
		}
		answered(t, c, first, paid("p-1"), nil)
		return participant.Result{Accepted: true, AnswerWithin: agreed}
	}
	b := newBench(t, store, p, start(definition("pay", "ship"))).run()
	b.queue.Enqueue(newKey(t))
	if r := b.await(); r.State.Phase != saga.Completed || r.State.Step("pay").Do.Attempts != 2 {
		t.Errorf("the saga is %s after %d attempts", r.State.Phase, r.State.Step("pay").Do.Attempts)
	}
}

// TestACompensationThatIsTriedAgainByDecisionIsAnsweredAnew has a compensation rejected by its callback, and a person have it tried again: what was answered before does not count.
func TestACompensationThatIsTriedAgainByDecisionIsAnsweredAnew(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c := &Callbacks{Store: store}
	tokens := make(chan issued, 1)
	p := &scripted{}
	p.do = func(_ context.Context, call participant.Call) participant.Result {
		switch {
		case call.Attempt.Direction == saga.Compensation:
			token, err := c.Issue(context.Background(), call, agreed)
			if err != nil {
				t.Error(err)
			}
			tokens <- issued{call, token}
			return participant.Result{Accepted: true, AnswerWithin: agreed}
		case call.Attempt.Step == "ship":
			return participant.Result{Kind: saga.Rejected}
		}
		return participant.Result{Kind: saga.Succeeded}
	}
	b := newBench(t, store, p, start(definition("pay", "ship"))).run()
	k := newKey(t)
	b.queue.Enqueue(k)
	tell := func() {
		t.Helper()
		if err := b.engine.Answered(t.Context(), b.queue.Enqueue); err != nil {
			t.Fatal(err)
		}
	}
	first, no := <-tokens, CallbackAnswer{Rejected: true, Reason: "Closed", Message: "the account is closed"}
	recorded(t, store, k, "AttemptAccepted")
	answered(t, c, first.token, no, nil)
	tell()
	if r := b.await(); r.State.Phase != saga.CompensationFailed {
		t.Fatalf("the saga is %s", r.State.Phase)
	}
	if err := b.engine.Decide(t.Context(), k, saga.Decision{Verdict: saga.Retried, By: "ann"}); err != nil {
		t.Fatal(err)
	}
	tell()
	second := <-tokens
	recorded(t, store, k, "AttemptAccepted") // and not rejected once more
	answered(t, c, first.token, no, nil)     // the participant may not have seen that it was taken
	answered(t, c, first.token, paid("late"), ErrCallbackOver)
	answered(t, c, second.token, paid("back"), nil)
	answered(t, c, second.token, no, ErrCallbackUsed)
	tell()
	if r := b.await(); r.State.Phase != saga.Compensated {
		t.Errorf("the saga is %s", r.State.Phase)
	}
}
