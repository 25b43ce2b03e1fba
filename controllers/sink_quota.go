package controllers

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// overQuota returns why a sink is not published to by the quota of its namespace; nil where it may be. The
// oldest Sinks may, so that all replicas agree. ClusterSinks have no quota: administrators make them.
func (r *SinkReconciler) overQuota(s *sinkObject) *sinkProblem {
	limit := r.Quotas.Of(s.GetNamespace()).Sinks
	if s.cluster != nil || limit < 0 || int64(r.order.rank(s)) < limit {
		return nil
	}
	return &sinkProblem{v1.SinkReasonQuotaExceeded, fmt.Sprintf(
		"Namespace %s may have %d Sinks, and has as many older ones. Delete one of these, or have an administrator change the quota by the annotation %s of the Namespace.",
		s.GetNamespace(), limit, v1.MaxSinksAnnotation)}
}

// lookAtAll queues all Sinks of a namespace whose quota has changed.
func (r *SinkReconciler) lookAtAll(namespace string) {
	q := r.queue.Load()
	if q == nil {
		return
	}
	for _, p := range r.order.all(namespace) {
		(*q).Add(p.request(namespace))
	}
}

// orderSource keeps the order of Sinks, and queues the one for which the quota has a place because another
// is gone, or has no place any more.
func (r *SinkReconciler) orderSource(c cache.Cache) source.TypedSource[reconcile.Request] {
	return source.TypedKind(c, &v1.Sink{}, handler.TypedFuncs[*v1.Sink, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[*v1.Sink], q sinkQueue) {
			defer guard(r.Logger, "counting a new sink")
			r.orderGains(e.Object, q)
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[*v1.Sink], q sinkQueue) {
			defer guard(r.Logger, "counting a changed sink")
			if e.ObjectOld.UID != e.ObjectNew.UID { // deleted and made again between two looks
				r.orderLoses(e.ObjectOld, q)
				r.orderGains(e.ObjectNew, q)
			}
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[*v1.Sink], q sinkQueue) {
			defer guard(r.Logger, "counting a deleted sink")
			r.orderLoses(e.Object, q)
		},
	})
}

// orderGains adds a sink to the order. It may come before others of the same second, as their uids have it.
func (r *SinkReconciler) orderGains(o client.Object, q sinkQueue) {
	r.order.add(o)
	all, limit := r.order.all(o.GetNamespace()), r.Quotas.Of(o.GetNamespace()).Sinks
	if limit >= 0 && int64(len(all)) > limit {
		q.Add(all[limit].request(o.GetNamespace()))
	}
}

// orderLoses takes a sink out of the order. The last one that the quota allows may be new among these.
func (r *SinkReconciler) orderLoses(o client.Object, q sinkQueue) {
	r.order.remove(o)
	all, limit := r.order.all(o.GetNamespace()), r.Quotas.Of(o.GetNamespace()).Sinks
	if limit > 0 && int64(len(all)) >= limit {
		q.Add(all[limit-1].request(o.GetNamespace()))
	}
}

// sinkOrder has the Sinks of each namespace, the oldest first. Its zero value is ready to use.
type sinkOrder struct {
	mu         sync.Mutex
	namespaces map[string][]sinkPlace
}

// sinkPlace is the place of a Sink in the order.
type sinkPlace struct {
	created   time.Time
	uid, name string
}

func placeOf(o client.Object) sinkPlace {
	return sinkPlace{created: o.GetCreationTimestamp().Time, uid: string(o.GetUID()), name: o.GetName()}
}

func (p sinkPlace) request(namespace string) reconcile.Request {
	return reconcile.Request{NamespacedName: client.ObjectKey{Namespace: namespace, Name: p.name}}
}

func (p sinkPlace) compare(other sinkPlace) int {
	return cmp.Or(p.created.Compare(other.created), cmp.Compare(p.uid, other.uid))
}

func (o *sinkOrder) add(s client.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.namespaces == nil {
		o.namespaces = map[string][]sinkPlace{}
	}
	all := o.namespaces[s.GetNamespace()]
	if i, found := slices.BinarySearchFunc(all, placeOf(s), sinkPlace.compare); !found {
		o.namespaces[s.GetNamespace()] = slices.Insert(all, i, placeOf(s))
	}
}

func (o *sinkOrder) remove(s client.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.namespaces[s.GetNamespace()]
	if i, found := slices.BinarySearchFunc(all, placeOf(s), sinkPlace.compare); found {
		all = slices.Delete(all, i, i+1)
	}
	if o.namespaces[s.GetNamespace()] = all; len(all) == 0 {
		delete(o.namespaces, s.GetNamespace())
	}
}

// rank returns how many Sinks of the namespace are older.
func (o *sinkOrder) rank(s client.Object) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, _ := slices.BinarySearchFunc(o.namespaces[s.GetNamespace()], placeOf(s), sinkPlace.compare)
	return i
}

func (o *sinkOrder) all(namespace string) []sinkPlace {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.namespaces[namespace])
}
