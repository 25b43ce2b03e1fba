package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
	r.waitQuiet("cycle")
	if writes := r.writes("cycle"); writes != 1 {
		t.Errorf("its status was written %d times, want once", writes)
	}
}

func TestAStreamThatCannotBeReadStallsOnlyItsSaga(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	o := r.create("order", order)
	_, err := r.store.Append(t.Context(), eventstore.Append{
		Stream: engine.StreamOf(string(o.UID)),
		Events: []eventstore.Event{{ID: uuid.Must(uuid.NewV7()), Type: "SagaStarted", SchemaVersion: 1, Data: []byte(`{"at":7}`)}},
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

func TestASagaThatWaitsForTheEventStoreSaysSoOnceAndGoesOn(t *testing.T) {
	t.Parallel()
	away := &awayStore{Store: memory.New()}
	away.away.Store(true)
	r := newRigWithoutOperator(t, away)
	r.onStart = trying(minBackoff, 4*minBackoff)
	r.startOperator()
	r.create("order", order)
	o := r.wait("order", "waiting for the event store", func(o *v1.Saga) bool {
		c := condition(o.Status.Conditions, v1.ConditionReady)
		return c != nil && c.Reason == engine.ReasonEventStoreUnavailable
	})
	if holds(condition(o.Status.Conditions, v1.ConditionStalled)) {
		t.Errorf("a saga that waits for the event store is Stalled")
	}
	said := r.reconciles("order")
	r.eventually(func() error {
		if n := r.reconciles("order") - said; n < 4 {
			return fmt.Errorf("it was tried %d times more", n)
		}
		return nil
	})
	if writes := r.writes("order"); writes != 1 {
		t.Errorf("the status was written %d times while it waited, want once", writes)
	}
	away.away.Store(false)
	r.waitPhase("order", v1.PhaseCompleted)
}

func TestASagaGoesOnWhenTheEventStoreIsBackAndNotOnlyWhenItsTimeHasCome(t *testing.T) {
	t.Parallel()
	away := &awayStore{Store: memory.New()}
	away.away.Store(true)
	r := newRigWithoutOperator(t, away)
	r.onStart = trying(time.Hour, time.Hour)
	r.startOperator()
	r.createHeld("order", order) // so that no event comes but for its creation
	r.eventually(func() error {
		if n := r.tally("order", nil); n.ended == 0 {
			return errors.New("it has not been tried yet")
		}
		return nil
	})
	away.away.Store(false)
	r.waitPhase("order", v1.PhaseCompleted)
}

// trying has a saga that fails tried again after so long, doubled each time.
func trying(first, longest time.Duration) func(*SagaReconciler) {
	return func(s *SagaReconciler) {
		s.limiter = workqueue.NewTypedItemExponentialFailureRateLimiter[engine.Key](first, longest)
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
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprintf("order-%d", i)
		r.create(names[i], order)
	}
	for _, name := range names {
		r.checkWrites(name, v1.PhaseCompleted)
	}
	r.waitQuiet(names...)
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
	gates := make([]*gate, sagas)
	for i := range sagas { // these are shown running before they are declined
		name := fmt.Sprintf("shown-%d", i)
		gates[i] = newGate(t)
		r.svc.on("POST /decline-"+name, gates[i].then(declined))
		r.create(name, strings.Replace(order, "SERVICE/charge", "SERVICE/decline-"+name, 1))
	}
	for i := range sagas {
		r.waitPhase(fmt.Sprintf("shown-%d", i), v1.PhaseRunning)
		gates[i].open()
	}
	for i := range sagas {
		r.checkWrites(fmt.Sprintf("shown-%d", i), v1.PhaseCompensated)
	}
}

// checkWrites waits for the end of a saga and checks how often its status was written until then, if it ended within a second. However slow the machine is, what was written before the
// decision that ended the saga was written at an earlier time than that decision's.
func (r *rig) checkWrites(name string, end v1.SagaPhase) {
	r.Helper()
	o := r.waitPhase(name, end)
	state := r.fold(o)
	took := state.EndedAt.Sub(state.StartedAt)
	if writes := r.writes(name); writes > 2 && took < quick || writes > 1 && took < settleTime {
		r.Errorf("the status of %s, which took %s, was written %d times", name, took, writes)
	}
}

func TestAStatusThatMovesFastIsWrittenOncePerSecond(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	var last time.Time
	taken := 0
	r.beforeStatus = func(o client.Object) error { // one at a time
		if o.(*v1.Saga).Status.Phase != v1.PhaseRunning {
			return nil
		}
		now, written := time.Now(), r.tally("order", nil).written
		if gap := now.Sub(last); written > taken && gap < mirrorEvery {
			t.Errorf("the status was written again after %s", gap)
		}
		last, taken = now, written
		return nil
	}
	r.startOperator()
	r.svc.on("POST /charge", answer(429, `{"message":"busy"}`))
	r.create("order", "deadline: 4s\n"+strings.Replace(order, "maxAttempts: 3, initialBackoff: 10ms, maxBackoff: 50ms", "maxAttempts: 100, initialBackoff: 100ms, maxBackoff: 100ms", 1))
	r.waitPhase("order", v1.PhaseCompensated)
	t.Logf("the status was written %d times", r.writes("order"))
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
