package controllers

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/quota"
)

// held is a saga of one step, which its participant can hold up.
const held = `
steps:
- name: ship
  http: {method: POST, url: "SERVICE/ship"}
  attemptTimeout: 1h
`

// newQuotaRig is a rig whose namespace has a quota, and whose participant holds up what it is asked until
// the gate is open.
func newQuotaRig(t *testing.T, l quota.Limits) (*rig, *quota.Table, *gate) {
	t.Helper()
	r := newRigWithoutOperator(t, memory.New())
	table := quota.NewTable(l)
	r.onStart = func(s *SagaReconciler) { s.Quotas = table }
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	r.startOperator()
	return r, table, ship
}

// newFullQuotaRig is a rig whose namespace may have one unfinished saga, and has it: first, which runs until
// the gate is open.
func newFullQuotaRig(t *testing.T) (*rig, *quota.Table, *gate) {
	t.Helper()
	limits := quota.None()
	limits.UnfinishedSagas = 1
	r, table, ship := newQuotaRig(t, limits)
	r.create("first", held)
	r.waitPhase("first", v1.PhaseRunning)
	return r, table, ship
}

// waitForQuota waits until a saga waits for its quota.
func (r *rig) waitForQuota(name string) *v1.Saga {
	r.Helper()
	return r.wait(name, "waiting for its quota", func(o *v1.Saga) bool {
		if o.Status.RecordedVersion > 0 {
			r.Fatalf("saga %s is %s, and should wait for its quota", name, o.Status.Phase)
		}
		c := condition(o.Status.Conditions, v1.ConditionProgressing)
		return holds(c) && c.Reason == reasonQuotaExceeded
	})
}

func TestSagaWaitsForTheQuotaOfItsNamespace(t *testing.T) {
	t.Parallel()
	r, _, ship := newFullQuotaRig(t)
	r.create("second", held)
	o := r.waitForQuota("second")
	if o.Status.Phase != v1.PhasePending || len(o.Finalizers) > 0 || len(r.history(o)) > 0 {
		t.Errorf("the saga that waits is %s, with finalizers %v and %d events", o.Status.Phase, o.Finalizers, len(r.history(o)))
	}
	message := condition(o.Status.Conditions, v1.ConditionProgressing).Message
	for _, part := range []string{r.ns, "1 sagas", "when others have ended", v1.MaxUnfinishedSagasAnnotation} {
		if !strings.Contains(message, part) {
			t.Errorf("the message lacks %q: %s", part, message)
		}
	}
	if !strings.Contains(o.Status.Reason, "use up its quota") {
		t.Errorf("the column Reason says %q", o.Status.Reason)
	}
	ship.open()
	r.waitPhase("first", v1.PhaseCompleted)
	if o = r.waitPhase("second", v1.PhaseCompleted); o.Status.Reason != "" {
		t.Errorf("the reason stays: %q", o.Status.Reason)
	}
}

func TestSagaStartsWhenItsQuotaIsRaised(t *testing.T) {
	t.Parallel()
	r, table, _ := newFullQuotaRig(t)
	r.create("second", held)
	r.waitForQuota("second")
	if err := table.Set(r.ns, map[string]string{v1.MaxUnfinishedSagasAnnotation: "2"}); err != nil {
		t.Fatal(err)
	}
	r.waitPhase("second", v1.PhaseRunning)
}

func TestSagaThatWaitsForItsQuotaCanBeDeleted(t *testing.T) {
	t.Parallel()
	r, _, ship := newFullQuotaRig(t)
	second := r.create("second", held)
	r.waitForQuota("second")
	r.create("third", held)
	r.waitForQuota("third")
	r.delete("second")
	r.waitGone("second")
	ship.open()
	r.waitPhase("third", v1.PhaseCompleted)
	if n := len(r.history(second)); n > 0 {
		t.Errorf("the deleted saga has %d events", n)
	}
}

func TestSagaThatWaitsForItsQuotaCanBeCancelled(t *testing.T) {
	t.Parallel()
	r, _, _ := newFullQuotaRig(t)
	r.create("second", held)
	r.waitForQuota("second")
	r.mustPatch("second", `{"spec":{"cancel":true}}`)
	r.waitPhase("second", v1.PhaseCompensated)
	if n := r.svc.count("POST /ship"); n != 1 {
		t.Errorf("the participant was called %d times, want once, for the first saga", n)
	}
}

// TestSagaCountsAfterARestart has an operator find a saga that another has started.
func TestSagaCountsAfterARestart(t *testing.T) {
	t.Parallel()
	limits := quota.None()
	limits.UnfinishedSagas = 1
	r := newRigWithoutOperator(t, memory.New())
	r.onStart = func(s *SagaReconciler) { s.Quotas = quota.NewTable(limits) }
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	stop := r.startOperator()
	r.create("first", held)
	r.waitPhase("first", v1.PhaseRunning)
	stop()
	r.create("second", held)
	r.startOperator()
	r.waitForQuota("second")
	ship.open()
	r.waitPhase("second", v1.PhaseCompleted)
}

// TestRecoveryCountsSagasBeforeNewOnesStart has a new process find a saga that another has started.
func TestRecoveryCountsSagasBeforeNewOnesStart(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	stop := r.startOperator()
	first := r.create("first", held)
	r.waitPhase("first", v1.PhaseRunning)
	stop()
	limits := quota.None()
	limits.UnfinishedSagas = 1
	s := &SagaReconciler{Client: r.kube, Live: r.kube, Quotas: quota.NewTable(limits)}
	var err error
	if s.Engine, err = engine.New(engine.Options{Store: r.store, Participants: participantKinds(t), Notify: s.Enqueue}); err != nil {
		t.Fatal(err)
	}
	q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[engine.Key]())
	defer q.ShutDown()
	s.Drive(q)
	second := engine.Key{Namespace: r.ns, Name: "second", UID: "2"}
	if got := s.unfinished.Admit(r.ns, second, 1); got != quota.Uncounted {
		t.Errorf("before recovery a new saga gets the verdict %d, want %d", got, quota.Uncounted)
	}
	if err := s.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.unfinished.Admit(r.ns, second, 1); got != quota.Full || !s.unfinished.Counts(r.ns, keyOf(first)) {
		t.Errorf("after recovery a new saga gets the verdict %d, want %d", got, quota.Full)
	}
}

func TestSagaWaitsForTheBytesOfItsNamespace(t *testing.T) {
	t.Parallel()
	limits := quota.None()
	limits.UnfinishedBytes = 1500
	r, _, ship := newQuotaRig(t, limits)
	large := strings.Replace(held, "\nsteps:", "\ninput: {text: "+strings.Repeat("x", 1000)+"}\nsteps:", 1)
	r.create("first", large)
	r.waitPhase("first", v1.PhaseRunning)
	r.create("second", large)
	r.waitForQuota("second")
	r.create("largest", strings.Replace(held, "\nsteps:", "\ninput: {text: "+strings.Repeat("x", 1600)+"}\nsteps:", 1))
	o := r.waitStalled("largest", reasonQuotaExceeded)
	message := condition(o.Status.Conditions, v1.ConditionStalled).Message
	for _, part := range []string{"may have 1500", v1.MaxUnfinishedBytesAnnotation} {
		if !strings.Contains(message, part) {
			t.Errorf("the message lacks %q: %s", part, message)
		}
	}
	ship.open()
	r.waitPhase("second", v1.PhaseCompleted)
}

// TestNamespaceQuotasFollowAnnotations has a namespace with a quota, which changes.
func TestNamespaceQuotasFollowAnnotations(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	o := managerOptions(t, r.ns)
	mgr, err := ctrl.NewManager(apiServer(t), o)
	if err != nil {
		t.Fatal(err)
	}
	annotate := func(value string) {
		t.Helper()
		ns := &corev1.Namespace{}
		ns.Name = r.ns
		patch := `{"metadata":{"annotations":{"` + v1.MaxSinksAnnotation + `":` + value + `}}}`
		if err := r.kube.Patch(t.Context(), ns, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	annotate(`"5"`)
	table := quota.NewTable(quota.None())
	quotas := NewNamespaceQuotas(table, mgr.GetCache(), slog.New(slog.NewTextHandler(&r.log, nil)))
	if err := mgr.Add(quotas); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- mgr.Start(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-quotas.Read()
	if got := table.Of(r.ns).Sinks; got != 5 {
		t.Errorf("when all have been read the namespace may have %d sinks, want 5", got)
	}
	await := func(want int64) {
		t.Helper()
		r.eventually(func() error {
			if got := table.Of(r.ns).Sinks; got != want {
				return fmt.Errorf("the namespace may have %d sinks, want %d", got, want)
			}
			return nil
		})
	}
	annotate(`"6"`)
	await(6)
	annotate(`"six"`)
	await(quota.Unlimited)
	r.eventually(func() error {
		if log := r.log.String(); !strings.Contains(log, r.ns) || !strings.Contains(log, v1.MaxSinksAnnotation) {
			return fmt.Errorf("the log does not name the annotation")
		}
		return nil
	})
	annotate(`"7"`)
	await(7)
	annotate(`null`)
	await(quota.Unlimited)
}
