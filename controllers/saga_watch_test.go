package controllers

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/event"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
)

// TestOnlyWhatSomebodyElseHasChangedIsAReasonToLookAgain asks what is queued for a change of an object, and of which saga a note is kept then.
func TestOnlyWhatSomebodyElseHasChangedIsAReasonToLookAgain(t *testing.T) {
	t.Parallel()
	running := func() *v1.Saga {
		o := &v1.Saga{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "order", UID: "1", Generation: 1, Finalizers: []string{v1.Finalizer}}}
		o.Status.Phase = v1.PhaseRunning
		return o
	}
	end := func(o *v1.Saga) { o.Status.Phase = v1.PhaseCompleted }
	for name, c := range map[string]struct {
		note   note
		change func(*v1.Saga)
		queued int
		kept   bool
	}{
		"its status":                         {note{recorded: true}, func(o *v1.Saga) { o.Status.Step = "ship" }, 0, true},
		"its status, which is waited for":    {note{lagging: 1}, func(o *v1.Saga) { o.Status.Step = "ship" }, 1, true},
		"its end":                            {note{ended: true}, end, 0, false},
		"its end, which is waited for":       {note{ended: true, lagging: 1}, end, 1, false},
		"its end, which is doubted":          {note{doubted: true}, end, 0, true},
		"it has ended, and cannot be let go": {note{failingSince: ended}, end, 0, true},
		"its spec":                           {note{}, func(o *v1.Saga) { o.Generation++ }, 1, true},
		"its finalizers":                     {note{}, func(o *v1.Saga) { o.Finalizers = nil }, 1, true},
		"it is to be deleted":                {note{}, func(o *v1.Saga) { o.DeletionTimestamp = new(metav1.Now()) }, 1, true},
		"another has its name":               {note{}, func(o *v1.Saga) { o.UID = "2" }, 2, true},
	} {
		r := &SagaReconciler{}
		q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[engine.Key]())
		before, after := running(), running()
		c.change(after)
		r.notes.change(keyOf(before), func(n *note) { *n = c.note })
		r.handlers().Update(t.Context(), event.TypedUpdateEvent[*v1.Saga]{ObjectOld: before, ObjectNew: after}, q)
		if q.Len() != c.queued {
			t.Errorf("%s: %d keys are queued, want %d", name, q.Len(), c.queued)
		}
		if _, kept := r.notes.m[keyOf(before)]; kept != c.kept {
			t.Errorf("%s: a note is kept: %t, want %t", name, kept, c.kept)
		}
		q.ShutDown()
	}
}
