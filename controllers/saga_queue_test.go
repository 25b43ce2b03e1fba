package controllers

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/util/workqueue"

	"github.com/vextrus/saga-operator/internal/engine"
)

func testQueue(t *testing.T) (*SagaReconciler, queue) {
	t.Helper()
	r := &SagaReconciler{}
	q := r.newQueue("", workqueue.NewTypedItemExponentialFailureRateLimiter[engine.Key](time.Second, time.Minute))
	t.Cleanup(q.ShutDown)
	return r, q
}

// sagaKey returns the key of a saga whose name begins with its namespace.
func sagaKey(name string) engine.Key { return engine.Key{Namespace: name[:1], Name: name} }

// next returns the names of all sagas that wait, in their order.
func next(q queue) string {
	var names []string
	for q.Len() > 0 {
		k, _ := q.Get()
		q.Done(k)
		names = append(names, k.Name)
	}
	return strings.Join(names, " ")
}

func TestQueueOneNamespaceDoesNotHoldUpAnother(t *testing.T) {
	t.Parallel()
	r, q := testQueue(t)
	for _, name := range strings.Fields("a1 a2 a3 a4") {
		q.Add(sagaKey(name))
		r.Enqueue(sagaKey(name)) // an outcome waits
	}
	q.Add(sagaKey("b1"))
	if got, want := next(q), "a1 b1 a2 a3 a4"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
}

func TestQueueSagasThatHaveBegunComeFirst(t *testing.T) {
	t.Parallel()
	r, q := testQueue(t)
	for _, name := range strings.Fields("a1 a2 a3") {
		q.Add(sagaKey(name))
	}
	r.Enqueue(sagaKey("a3"))
	r.Enqueue(sagaKey("a4"))
	if got, want := next(q), "a3 a4 a1 a2"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
	q.Add(sagaKey("a1"))
	q.Add(sagaKey("a3"))
	if got, want := next(q), "a1 a3"; got != want {
		t.Errorf("the order is %q, want %q: an outcome counts once", got, want)
	}
}

func TestQueueOutcomeWhileReconciledComesFirst(t *testing.T) {
	t.Parallel()
	r, q := testQueue(t)
	q.Add(sagaKey("a1"))
	k, _ := q.Get()
	q.Add(sagaKey("a2"))
	r.Enqueue(k)
	q.Done(k)
	if got, want := next(q), "a1 a2"; got != want {
		t.Errorf("the order is %q, want %q", got, want)
	}
}

func TestQueueEarliestTimeHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, q := testQueue(t)
		k, began := sagaKey("a1"), time.Now()
		q.AddAfter(k, time.Hour)
		q.AddAfter(k, time.Minute)
		q.AddAfter(k, 2*time.Minute)
		q.Get()
		if waited := time.Since(began); waited != time.Minute {
			t.Errorf("the saga waited %s, want a minute", waited)
		}
		q.Done(k)
		q.AddRateLimited(k)
		q.AddRateLimited(k)
		q.Get()
		if waited := time.Since(began); waited != time.Minute+time.Second || q.NumRequeues(k) != 2 {
			t.Errorf("the saga waited %s, and has failed %d times", waited, q.NumRequeues(k))
		}
		if q.Forget(k); q.NumRequeues(k) != 0 {
			t.Error("failures are not forgotten")
		}
	})
}

// TestQueueForgetsTimeOfSagaHandedOut keeps sagas that have ended from being remembered until their deadline.
func TestQueueForgetsTimeOfSagaHandedOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, q := testQueue(t)
		k := sagaKey("a1")
		q.AddAfter(k, time.Hour)
		q.Add(k)
		q.Get()
		q.Done(k)
		if later := q.(*fairQueue).later; len(later) != 0 {
			t.Errorf("%d times are remembered", len(later))
		}
		<-time.After(2 * time.Hour)
		synctest.Wait()
		if q.Len() != 0 {
			t.Error("the saga came again")
		}
	})
}

func TestQueueHandsOutNothingAfterShutDown(t *testing.T) {
	t.Parallel()
	_, q := testQueue(t)
	q.Add(sagaKey("a1"))
	q.AddAfter(sagaKey("a2"), time.Hour)
	q.ShutDown()
	if k, down := q.Get(); !down {
		t.Errorf("%s is handed out", k.Name)
	}
	q.AddAfter(sagaKey("a3"), time.Hour)
	if later := q.(*fairQueue).later; len(later) != 0 {
		t.Errorf("%d times are remembered", len(later))
	}
}
