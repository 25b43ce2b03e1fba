package controllers

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

// cycle is accepted by the schema and cannot be started.
const cycle = `
steps:
- {name: a, dependsOn: [b], http: {method: POST, url: "SERVICE/a"}}
- {name: b, dependsOn: [a], http: {method: POST, url: "SERVICE/b"}}
`

func TestAnInvalidSagaStallsAloneAndNamesTheField(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.create("cycle", cycle)
	r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	o := r.waitStalled("cycle", "InvalidDefinition")
	message := condition(o.Status.Conditions, v1.ConditionStalled).Message
	if o.Status.Phase != v1.PhasePending || !strings.Contains(message, "spec.steps[") {
		t.Errorf("phase %s, message %q; want Pending and the field", o.Status.Phase, message)
	}
	r.waitEvents(o, "Warning InvalidDefinition")
	reconciles, writes := r.counts("cycle")
	<-time.After(time.Second) // nothing is waited for here: nothing must happen
	if again, _ := r.counts("cycle"); again != reconciles || reconciles > 4 || writes != 1 {
		t.Errorf("it was reconciled %d times, then %d, and its status written %d times; want few, no more, once", reconciles, again, writes)
	}
}

func TestAStreamThatCannotBeReadStallsOnlyItsSaga(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	o := r.create("order", order)
	_, err := r.store.Append(t.Context(), eventstore.Append{
		Stream: engine.StreamOf(string(o.UID)),
		Events: []eventstore.Event{{ID: uuid.Must(uuid.NewV7()), Type: "SagaStartedTomorrow", SchemaVersion: 99, Data: []byte(`{}`)}},
		State:  &eventstore.SagaState{UID: uuid.MustParse(string(o.UID)), Namespace: r.ns, Name: "order", Phase: "Running", State: []byte(`{}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.startOperator()
	r.create("other", order)
	r.waitStalled("order", engine.ReasonStreamUnreadable)
	r.waitPhase("other", v1.PhaseCompleted)
}

func TestALostStreamStallsInsteadOfStartingAgain(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	r.create("order", order)
	r.mustPatchStatus("order", `{"status":{"phase":"Running","recordedVersion":7,"startedAt":"2030-01-02T03:04:05Z"}}`)
	r.startOperator()
	r.waitStalled("order", reasonStreamMissing)
	if calls := r.svc.called(); len(calls) != 0 {
		t.Errorf("participants were asked %v", calls)
	}
}

func TestAStatusThatLiesIsCorrectedFromTheStream(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	stop := r.startOperator()
	r.create("order", "suspend: true\n"+order)
	r.wait("order", "suspended", func(o *v1.Saga) bool { return o.Status.Reason == "suspended" })
	stop()
	r.mustPatchStatus("order", `{"status":{"phase":"Completed","reason":null,"endedAt":"2030-01-02T03:04:05Z","steps":null,"conditions":null}}`)
	r.startOperator()
	r.waitPhase("order", v1.PhaseRunning)
	r.mustPatch("order", `{"spec":{"suspend":false}}`)
	r.waitPhase("order", v1.PhaseCompleted)
	if r.svc.count("POST /ship") != 1 {
		t.Errorf("the participants were asked %v", r.svc.called())
	}
}

func TestSagasWaitForAnEventStoreThatIsAwayAndGoOn(t *testing.T) {
	t.Parallel()
	away := &awayStore{Store: memory.New()}
	away.away.Store(true)
	r := newRigWithoutOperator(t, away)
	r.startOperator()
	r.create("order", order)
	o := r.wait("order", "waiting for the event store", func(o *v1.Saga) bool {
		c := condition(o.Status.Conditions, v1.ConditionReady)
		return c != nil && c.Reason == engine.ReasonEventStoreUnavailable
	})
	if holds(condition(o.Status.Conditions, v1.ConditionStalled)) {
		t.Errorf("a saga that waits for the event store is Stalled")
	}
	came := time.Now()
	away.away.Store(false)
	r.waitPhase("order", v1.PhaseCompleted)
	// The status says so after the attempt at 6.4 s; by backing off alone the next one would be 6.4 s later.
	if took := time.Unix(0, away.back.Load()).Sub(came); took > 4*time.Second {
		t.Errorf("it took %s to go on", took)
	}
	if _, writes := r.counts("order"); writes > 3 {
		t.Errorf("the status was written %d times, want 3 at most", writes)
	}
}

func TestAnOperatorThatIsStartedAgainGoesOnWhereTheOtherStopped(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	stop := r.startOperator()
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(200, `{}`)))
	o := r.create("order", order)
	r.wait("order", "shipping", func(o *v1.Saga) bool { return o.Status.Step == "ship" })
	stop()
	ship.open()
	r.startOperator()
	r.waitPhase("order", v1.PhaseCompleted)
	if n := r.svc.count("POST /ship"); n != 2 || r.svc.count("POST /charge") != 1 {
		t.Errorf("the participants were asked %v; want only the attempt that was under way sent again", r.svc.called())
	}
	if s := r.fold(o); s.Step("ship").Do.Attempts != 1 {
		t.Errorf("ship took %d attempts, want the same one again", s.Step("ship").Do.Attempts)
	}
}

// awayStore is a store that can be away.
type awayStore struct {
	eventstore.Store
	away atomic.Bool
	back atomic.Int64 // when the first append was let through, in nanoseconds
}

func (s *awayStore) check(doing string) error {
	if s.away.Load() {
		return fmt.Errorf("%s: %w", doing, eventstore.ErrUnavailable)
	}
	return nil
}

func (s *awayStore) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if err := s.check("appending"); err != nil {
		return eventstore.Appended{}, err
	}
	s.back.CompareAndSwap(0, time.Now().UnixNano())
	return s.Store.Append(ctx, a)
}

func (s *awayStore) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	if err := s.check("loading"); err != nil {
		return nil, err
	}
	return s.Store.Load(ctx, stream, from, limit)
}

func (s *awayStore) UnfinishedSagas(ctx context.Context, after uuid.UUID, limit int) ([]eventstore.SagaState, error) {
	if err := s.check("looking"); err != nil {
		return nil, err
	}
	return s.Store.UnfinishedSagas(ctx, after, limit)
}

func TestTheStatusIsWrittenTwiceAtMostForASagaThatFinishesQuickly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const sagas = 20
	for i := range sagas {
		r.create(fmt.Sprintf("order-%d", i), order)
	}
	most := 0
	for i := range sagas {
		name := fmt.Sprintf("order-%d", i)
		o := r.waitPhase(name, v1.PhaseCompleted)
		state := r.fold(o)
		took := state.EndedAt.Sub(state.StartedAt)
		r.checkWrites(name, v1.PhaseCompleted)
		most += 5 // the object, its finalizer, three outcomes
		if took >= 150*time.Millisecond {
			most += 2 // and the timer of the first mirror, and one to spare
		}
	}
	<-time.After(time.Second) // nothing is waited for here: nothing must happen
	before := r.totalReconciles()
	if before > most {
		t.Errorf("%d sagas were reconciled %d times, want %d at most", sagas, before, most)
	}
	<-time.After(time.Second)
	if after := r.totalReconciles(); after != before {
		t.Errorf("finished sagas were reconciled %d times more", after-before)
	}
}

func TestTheStatusIsWrittenTwiceAtMostForASagaThatIsRolledBackQuickly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	declined := answer(http.StatusPaymentRequired, `{"detail":"card declined"}`)
	r.svc.on("POST /decline", declined)
	const sagas = 20
	for i := range sagas {
		r.create(fmt.Sprintf("quick-%d", i), strings.Replace(order, "SERVICE/charge", "SERVICE/decline", 1))
	}
	for i := range sagas {
		r.checkWrites(fmt.Sprintf("quick-%d", i), v1.PhaseCompensated)
	}
	for i := range sagas { // these are shown running before they are declined
		name := fmt.Sprintf("shown-%d", i)
		decline := newGate(t)
		r.svc.on("POST /decline-"+name, decline.then(declined))
		r.create(name, strings.Replace(order, "SERVICE/charge", "SERVICE/decline-"+name, 1))
		r.wait(name, "shown running", func(o *v1.Saga) bool { return o.Status.Phase == v1.PhaseRunning })
		decline.open()
		r.checkWrites(name, v1.PhaseCompensated)
	}
}

// checkWrites waits for the end of a saga and checks how often its status was written until then, if it ended within a second.
func (r *rig) checkWrites(name string, end v1.SagaPhase) {
	r.Helper()
	o := r.waitPhase(name, end)
	state := r.fold(o)
	took := state.EndedAt.Sub(state.StartedAt)
	if _, writes := r.counts(name); writes > 2 && took <= time.Second || writes > 1 && took < 150*time.Millisecond {
		r.Errorf("the status of %s, which took %s, was written %d times", name, took, writes)
	}
}

func TestAStatusThatMovesFastIsWrittenOncePerSecond(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.svc.on("POST /charge", answer(503, `{"message":"busy"}`))
	r.create("order", "deadline: 5s\n"+strings.Replace(order, "maxAttempts: 3", "maxAttempts: 100", 1))
	r.waitPhase("order", v1.PhaseCompensated)
	if _, writes := r.counts("order"); writes > 10 {
		t.Errorf("the status was written %d times within 5 seconds", writes)
	}
}

func TestTheCacheKeepsLittleOfAFinishedSaga(t *testing.T) {
	t.Parallel()
	o := &v1.Saga{ObjectMeta: metav1.ObjectMeta{
		Name: "order", UID: "u", Finalizers: []string{v1.Finalizer}, Labels: map[string]string{"a": "b"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
	}}
	o.Spec.Steps = make([]v1.Step, 3)
	o.Spec.TTLAfterFinished = &metav1.Duration{Duration: time.Hour}
	o.Status = v1.SagaStatus{Phase: v1.PhaseRunning, Steps: make([]v1.StepStatus, 3)}
	out, err := Transform(o.DeepCopy())
	if kept := out.(*v1.Saga); err != nil || kept.ManagedFields != nil || len(kept.Spec.Steps) != 3 || len(kept.Status.Steps) != 3 {
		t.Errorf("of a running saga the cache keeps %+v (%v)", out, err)
	}
	o.Status.Phase, o.Status.EndedAt = v1.PhaseCompleted, timeOf(ended)
	out, err = Transform(o.DeepCopy())
	if kept := out.(*v1.Saga); err != nil || kept.Spec.Steps != nil || kept.Status.Steps != nil || kept.Status.EndedAt == nil || kept.Spec.TTLAfterFinished == nil ||
		len(kept.Finalizers) != 1 || kept.UID != "u" {
		t.Errorf("of a finished saga the cache keeps %+v (%v)", out, err)
	}
	if _, err := Transform("something else"); err != nil {
		t.Errorf("something else: %v", err)
	}
}
