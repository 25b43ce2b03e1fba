package controllers

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

// order is a saga of three steps, each with a compensation. A participant that a test holds up is waited for as long as that takes.
const order = `
input: {orderId: "1042", amount: 12}
steps:
- name: reserve
  http: {method: POST, url: "SERVICE/reserve", body: {order: "${input.orderId}"}}
  attemptTimeout: 1h
  output: {id: "${response.body.id}"}
  compensation: {http: {method: DELETE, url: "SERVICE/reserve"}, attemptTimeout: 1h, retry: {maxAttempts: 2, initialBackoff: 10ms, maxBackoff: 20ms}}
- name: charge
  http: {method: POST, url: "SERVICE/charge", body: {amount: "${input.amount}", reservation: "${steps.reserve.output.id}"}}
  attemptTimeout: 1h
  retry: {maxAttempts: 3, initialBackoff: 10ms, maxBackoff: 50ms}
  compensation: {http: {method: DELETE, url: "SERVICE/charge"}, attemptTimeout: 1h}
- name: ship
  http: {method: POST, url: "SERVICE/ship"}
  attemptTimeout: 1h
  compensation: {http: {method: DELETE, url: "SERVICE/ship"}, attemptTimeout: 1h}
`

// orderToEnd is the same for tests that end the saga while it ships: the undo of shipping waits until the call, which may still arrive, can do no more.
var orderToEnd = strings.Replace(order, "SERVICE/ship\"}\n  attemptTimeout: 1h", "SERVICE/ship\"}\n  attemptTimeout: 5s", 1)

func TestASagaCompletes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.create("order", order)
	o := r.waitPhase("order", v1.PhaseCompleted)
	if diff := cmp.Diff([]string{"POST /reserve", "POST /charge", "POST /ship"}, r.svc.called()); diff != "" {
		t.Errorf("what the participants were asked (-want +got):\n%s", diff)
	}
	if o.Status.Progress != "3/3" || o.Status.Reason != "" || o.Status.RecordedVersion != int64(len(r.history(o))) {
		t.Errorf("progress %q, reason %q, recorded version %d; want 3/3, none, %d", o.Status.Progress, o.Status.Reason, o.Status.RecordedVersion, len(r.history(o)))
	}
	if !holds(condition(o.Status.Conditions, v1.ConditionCompleted)) || !holds(condition(o.Status.Conditions, v1.ConditionReady)) {
		t.Errorf("Completed and Ready do not hold: %v", o.Status.Conditions)
	}
	r.waitEvents(o, "Normal Completed")
	if key := r.svc.keys["POST /charge"]; key != string(o.UID)+"/charge/action" {
		t.Errorf("idempotency key %q", key)
	}
}

func TestARejectedStepRollsBackWhatWasDone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	undo := newGate(t)
	r.svc.on("POST /charge", answer(http.StatusPaymentRequired, `{"detail":"card declined"}`))
	r.svc.on("DELETE /reserve", undo.then(answer(http.StatusOK, `{}`)))
	r.create("order", order)
	o := r.waitPhase("order", v1.PhaseCompensating)
	if o.Status.Progress != "1/3" || o.Status.Step != "charge" || o.Status.Reason != "card declined (402)" {
		t.Errorf("progress %q, step %q, reason %q; want 1/3, charge, card declined (402)", o.Status.Progress, o.Status.Step, o.Status.Reason)
	}
	if !holds(condition(o.Status.Conditions, v1.ConditionProgressing)) {
		t.Errorf("Progressing does not hold while the saga is rolled back: %v", o.Status.Conditions)
	}
	undo.open()
	o = r.waitPhase("order", v1.PhaseCompensated)
	if diff := cmp.Diff([]string{"POST /reserve", "POST /charge", "DELETE /reserve"}, r.svc.called()); diff != "" {
		t.Errorf("what the participants were asked (-want +got):\n%s", diff)
	}
	if f := o.Status.Failure; f == nil || f.Step != "charge" || !strings.Contains(f.Message, "card declined") {
		t.Errorf("failure %+v, want that of step charge", f)
	}
	r.waitEvents(o, "Warning Compensating", "Normal Compensated")
}

func TestBranchesRunInParallelAndJoin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	both := newGate(t)
	yes := answer(http.StatusOK, `{"id":"x"}`)
	r.svc.on("POST /left", both.then(yes))
	r.svc.on("POST /right", both.then(yes))
	r.create("diamond", `
steps:
- {name: top, http: {method: POST, url: "SERVICE/top"}}
- {name: left, dependsOn: [top], attemptTimeout: 1h, http: {method: POST, url: "SERVICE/left"}}
- {name: right, dependsOn: [top], attemptTimeout: 1h, http: {method: POST, url: "SERVICE/right"}}
- {name: bottom, dependsOn: [left, right], http: {method: POST, url: "SERVICE/bottom"}}
`)
	o := r.wait("diamond", "at left and right at once", func(o *v1.Saga) bool { return o.Status.Step == "left +1" })
	if o.Status.Progress != "1/4" {
		t.Errorf("progress %q, want 1/4", o.Status.Progress)
	}
	both.open()
	r.waitPhase("diamond", v1.PhaseCompleted)
	calls := r.svc.called()
	if len(calls) != 4 || calls[0] != "POST /top" || calls[3] != "POST /bottom" {
		t.Errorf("the participants were asked %v", calls)
	}
}

func TestACompensationThatFailsParksTheSagaLoudly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.svc.on("POST /charge", answer(http.StatusPaymentRequired, `{"detail":"card declined"}`))
	r.svc.on("DELETE /reserve", answer(http.StatusNotFound, `{"message":"no such reservation"}`))
	r.create("order", order)
	o := r.waitPhase("order", v1.PhaseCompensationFailed)
	stalled := condition(o.Status.Conditions, v1.ConditionStalled)
	if !holds(stalled) || !strings.Contains(stalled.Message, "no such reservation") {
		t.Errorf("Stalled does not say why: %+v", stalled)
	}
	r.waitEvents(o, "Warning CompensationFailed")
	r.delete("order")
	o = r.wait("order", "held, with a way out", func(o *v1.Saga) bool {
		c := condition(o.Status.Conditions, v1.ConditionCompensationFailed)
		return holds(c) && strings.Contains(c.Message, "kubectl patch")
	})
	if !slices.Contains(o.Finalizers, v1.Finalizer) {
		t.Errorf("the finalizer is gone although the saga was not undone")
	}
	r.mustPatch("order", `{"metadata":{"finalizers":null}}`)
	r.waitGone("order")
}

func TestAStepIsRetriedAndTheColumnSaysSo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.svc.on("POST /charge", answer(http.StatusServiceUnavailable, `{"message":"come back later"}`))
	r.create("order", strings.Replace(order, "maxAttempts: 3, initialBackoff: 10ms, maxBackoff: 50ms", "maxAttempts: 100, initialBackoff: 1s, maxBackoff: 1m", 1))
	o := r.wait("order", "seen retrying", func(o *v1.Saga) bool { return strings.HasPrefix(o.Status.Reason, "retrying: come back later") })
	if o.Status.Phase != v1.PhaseRunning || o.Status.Step != "charge" {
		t.Errorf("phase %s, step %q; want Running, charge", o.Status.Phase, o.Status.Step)
	}
	r.svc.on("POST /charge", answer(http.StatusOK, `{"id":"c"}`))
	r.waitPhase("order", v1.PhaseCompleted)
}

func TestASuspendedSagaStartsNothingUntilItIsResumed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.create("order", "suspend: true\n"+order)
	o := r.wait("order", "suspended", func(o *v1.Saga) bool { return o.Status.Reason == "suspended" })
	if ready := condition(o.Status.Conditions, v1.ConditionReady); ready.Reason != "Suspended" {
		t.Errorf("Ready says %q, want Suspended", ready.Reason)
	}
	if calls := r.svc.called(); len(calls) != 0 {
		t.Errorf("a suspended saga asked %v", calls)
	}
	r.mustPatch("order", `{"spec":{"suspend":false}}`)
	r.waitPhase("order", v1.PhaseCompleted)
}

func TestACancelledSagaIsRolledBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	r.create("order", orderToEnd)
	r.wait("order", "shipping", func(o *v1.Saga) bool { return o.Status.Step == "ship" })
	r.mustPatch("order", `{"spec":{"cancel":true}}`)
	o := r.waitPhase("order", v1.PhaseCompensated)
	if o.Status.Failure.Cause != "Cancelled" || r.svc.count("DELETE /ship") != 1 || r.svc.count("DELETE /reserve") != 1 {
		t.Errorf("cause %s, asked %v", o.Status.Failure.Cause, r.svc.called())
	}
}

func TestADeadlineRollsBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.svc.on("POST /charge", answer(http.StatusTooManyRequests, `{}`))
	r.create("order", "deadline: 1s\n"+strings.Replace(order, "maxAttempts: 3", "maxAttempts: 100", 1))
	o := r.waitPhase("order", v1.PhaseCompensated)
	if o.Status.Failure.Cause != "DeadlineExceeded" {
		t.Errorf("cause %s, want DeadlineExceeded", o.Status.Failure.Cause)
	}
}

func TestAFinishedSagaIsDeletedWhenItsTimeIsUp(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	deleted := make(chan time.Time, 1)
	r.beforeDelete = func(o client.Object) {
		if o.GetName() == "order" {
			select {
			case deleted <- time.Now():
			default: // it was tried before
			}
		}
	}
	r.startOperator()
	o := r.create("order", "ttlAfterFinished: 2s\n"+order)
	kept := r.create("kept", order)
	r.waitGone("order")
	if due := timeOf(r.fold(o).EndedAt).Add(2 * time.Second); (<-deleted).Before(due) {
		t.Errorf("it was deleted before %s", due)
	}
	r.waitPhase("kept", v1.PhaseCompleted)
	// Who asks for it later gets it then.
	r.mustPatch("kept", `{"spec":{"ttlAfterFinished":"1s"}}`)
	r.waitGone("kept")
	if h := r.history(kept); h[len(h)-1] != "SagaCompleted" {
		t.Errorf("the history of a saga that is gone: %v", h)
	}
}

func TestTheUserWhoMadeASagaAndTheTraceItBelongsToAreInItsFirstEvent(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	r.onStart = func(s *SagaReconciler) { s.Creators = protection(true) }
	r.startOperator()
	o, err := r.parse("order", order)
	if err != nil {
		t.Fatal(err)
	}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	o.Annotations = map[string]string{v1.CreatedByAnnotation: "jane", v1.TraceParentAnnotation: parent}
	if err := r.kube.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	r.waitPhase("order", v1.PhaseCompleted)
	events, err := r.store.Load(t.Context(), engine.StreamOf(string(o.UID)), 1, 1)
	if err != nil || len(events) != 1 || events[0].Metadata.Actor != "jane" || events[0].Metadata.TraceParent != parent {
		t.Errorf("the first event is %+v (%v), want jane as its actor, and her trace", events, err)
	}
}

// protection is a cluster that protects the names of creators, or does not.
type protection bool

func (p protection) Protected(context.Context, time.Time) bool { return bool(p) }

func TestSagaRecordsNoCreatorThatCouldBeForged(t *testing.T) {
	t.Parallel()
	for name, creators := range map[string]Creators{"no check": nil, "no policy": protection(false)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRigWithoutOperator(t, memory.New())
			r.onStart = func(s *SagaReconciler) { s.Creators = creators }
			r.startOperator()
			o, err := r.parse("order", order)
			if err != nil {
				t.Fatal(err)
			}
			o.Annotations = map[string]string{v1.CreatedByAnnotation: "jane"}
			if err := r.kube.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			r.waitPhase("order", v1.PhaseCompleted)
			events, err := r.store.Load(t.Context(), engine.StreamOf(string(o.UID)), 1, 1)
			if err != nil || len(events) != 1 || events[0].Metadata.Actor != "" || strings.Contains(string(events[0].Data), "jane") {
				t.Errorf("the first event is %+v (%v), want no creator in it", events, err)
			}
		})
	}
}

func TestWhatIsFrozenCannotBeChanged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.create("order", "suspend: true\n"+order)
	for _, change := range []string{
		`{"spec":{"input":{"orderId":"2"}}}`, `{"spec":{"deadline":"5m"}}`, `{"spec":{"steps":[{"name":"a","http":{"method":"GET","url":"http://a"}}]}}`,
	} {
		if err := r.patch("order", change); err == nil {
			t.Errorf("%s was accepted", change)
		}
	}
	r.mustPatch("order", `{"spec":{"suspend":false,"ttlAfterFinished":"1h"}}`)
	r.waitPhase("order", v1.PhaseCompleted)
}

func TestConditionsAtEachStage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusConflict, `{"title":"no carrier"}`)))
	r.create("order", order)
	stage := func(p v1.SagaPhase, want ...string) {
		t.Helper()
		o := r.waitPhase("order", p)
		var got []string
		for _, c := range o.Status.Conditions {
			if c.Status == metav1.ConditionTrue {
				got = append(got, c.Type)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the conditions that hold while %s (-want +got):\n%s", p, diff)
		}
	}
	stage(v1.PhaseRunning, v1.ConditionProgressing)
	undo := newGate(t)
	r.svc.on("DELETE /charge", undo.then(answer(http.StatusOK, `{}`)))
	ship.open()
	stage(v1.PhaseCompensating, v1.ConditionProgressing)
	undo.open()
	stage(v1.PhaseCompensated, v1.ConditionCompensated, v1.ConditionReady)
}
