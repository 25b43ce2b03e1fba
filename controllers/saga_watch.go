package controllers

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// sagas is the source of keys from the objects that users write.
func (r *SagaReconciler) sagas(c cache.Cache) source.TypedSource[engine.Key] {
	return source.TypedKind(c, &v1.Saga{}, r.handlers())
}

// handlers queue the keys of objects that have changed. What only our own status write has changed is no reason to look again, unless it is waited for.
func (r *SagaReconciler) handlers() handler.TypedFuncs[*v1.Saga, engine.Key] {
	return handler.TypedFuncs[*v1.Saga, engine.Key]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*v1.Saga], q queue) {
			defer guard(r.Logger, "taking in a new saga")
			q.Add(keyOf(e.Object))
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*v1.Saga], q queue) {
			defer guard(r.Logger, "taking in a changed saga")
			if e.ObjectOld.UID != e.ObjectNew.UID { // deleted and made again between two looks
				q.Add(keyOf(e.ObjectOld))
			}
			if k := keyOf(e.ObjectNew); wantsMore(e.ObjectOld, e.ObjectNew) || r.notes.get(k).lagging > 0 {
				q.Add(k)
			}
			if finished(e.ObjectNew) {
				r.notes.shown(keyOf(e.ObjectNew))
			}
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*v1.Saga], q queue) {
			defer guard(r.Logger, "taking in a deleted saga")
			if finished(e.Object) {
				r.notes.shown(keyOf(e.Object))
			} else { // somebody took the finalizer off by force
				q.Add(keyOf(e.Object))
			}
		},
	}
}

func keyOf(o *v1.Saga) engine.Key {
	return engine.Key{Namespace: o.Namespace, Name: o.Name, UID: string(o.UID)}
}

// wantsMore reports whether a change is one that the user, or somebody else than this controller, made.
func wantsMore(before, after *v1.Saga) bool {
	return before.UID != after.UID || before.Generation != after.Generation || before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
		!slices.Equal(before.Finalizers, after.Finalizers)
}

// finished reports whether the status says that the saga has ended for good.
func finished(o *v1.Saga) bool {
	return saga.Phase(o.Status.Phase).Terminal()
}

// Transform is what the cache keeps of a Saga: managed fields never, of a finished saga only what expiry and
// deletion need, and no large spec. Ten thousand finished sagas, or a thousand that wait, must not fill the
// operator's memory. Because of it a cached object is never written back: only patches are.
func Transform(in any) (_ any, err error) {
	defer func() { // a panic would end the process
		if p := recover(); p != nil {
			err = fmt.Errorf("preparing a saga for the cache panicked: %v", p)
		}
	}()
	o, ok := in.(*v1.Saga)
	if !ok {
		return in, nil
	}
	o.ManagedFields = nil
	delete(o.Annotations, corev1.LastAppliedConfigAnnotation)
	if finished(o) {
		o.Spec = v1.SagaSpec{TTLAfterFinished: o.Spec.TTLAfterFinished}
		o.Status = v1.SagaStatus{Phase: o.Status.Phase, RecordedVersion: o.Status.RecordedVersion, EndedAt: o.Status.EndedAt}
		o.Labels, o.Annotations, o.OwnerReferences = nil, nil, nil
		return o, nil
	}
	strip(o)
	return o, nil
}
