package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// sinkSource is the source of keys from sinks of one kind. What only our own status write has changed is no reason to look again.
func sinkSource[T client.Object](c cache.Cache, log *slog.Logger, kind T) source.TypedSource[reconcile.Request] {
	add := func(o T, q sinkQueue) {
		q.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o)})
	}
	return source.TypedKind(c, kind, handler.TypedFuncs[T, reconcile.Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[T], q sinkQueue) {
			defer guard(log, "taking in a new sink")
			add(e.Object, q)
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[T], q sinkQueue) {
			defer guard(log, "taking in a changed sink")
			if e.ObjectOld.GetUID() != e.ObjectNew.GetUID() || e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() {
				add(e.ObjectNew, q)
			}
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[T], q sinkQueue) {
			defer guard(log, "taking in a deleted sink")
			add(e.Object, q)
		},
	})
}

// sinkTender does for all sinks together what one replica, the leader, has to do from time to time.
type sinkTender struct{ r *SinkReconciler }

// Start implements manager.Runnable. It runs only while this process leads.
func (t *sinkTender) Start(ctx context.Context) error {
	select {
	case <-t.r.Elected: // which the manager says only after it has started this
	case <-ctx.Done():
		return nil
	}
	t.r.enqueueAll() // they were not checked before
	var wg sync.WaitGroup
	wg.Go(func() { t.r.every(ctx, t.r.pace.refresh, "looking where the sinks stand", t.r.refresh) })
	wg.Go(func() { t.r.every(ctx, t.r.pace.forget, "looking for sinks that are gone", t.r.forget) })
	wg.Wait()
	return nil
}

// every does something now and then. What fails is told when it begins to, and tried again.
func (r *SinkReconciler) every(ctx context.Context, pause time.Duration, doing string, f func(context.Context) error) {
	failing := false
	once := func() {
		defer guard(r.Logger, doing)
		err := f(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			r.Logger.Warn(doing+" failed; it is tried again", "error", err)
		}
		failing = err != nil
	}
	for ctx.Err() == nil {
		once()
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// enqueueAll queues the sinks for which a change is shown; all where none is given.
func (r *SinkReconciler) enqueueAll(wanted ...func(id string) bool) {
	q := r.queue.Load()
	if q == nil {
		return // nothing has begun yet
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, e := range r.entries {
		if len(wanted) == 0 || wanted[0](e.id) {
			(*q).Add(key)
		}
	}
}

// refresh looks up where all sinks stand, and queues those whose status that changes.
func (r *SinkReconciler) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	list, err := r.Relay.Statuses(ctx)
	if err != nil {
		return err
	}
	all := make(map[string]outbox.Status, len(list))
	for _, s := range list {
		s.OldestAge = coarse(s.OldestAge)
		all[s.ID] = s
	}
	before := r.standings.Swap(&all)
	r.enqueueAll(func(id string) bool { return before == nil || (*before)[id] != all[id] })
	return nil
}

// forget drops what is kept of sinks that are gone. That one is gone is what the API server says, when it is asked after the outbox was: a cache may be behind, and it may not
// show every namespace.
func (r *SinkReconciler) forget(ctx context.Context) error {
	known, err := r.Relay.Statuses(ctx)
	if err != nil {
		return err
	}
	missing := map[string]string{}
	for _, s := range known {
		if _, err := uuid.Parse(s.ID); err == nil { // what has another ID is no object's
			missing[s.ID] = s.Name
		}
	}
	r.mu.Lock()
	for _, e := range r.entries {
		delete(missing, e.id)
	}
	r.mu.Unlock()
	if len(missing) == 0 {
		return nil
	}
	for _, kind := range []string{"SinkList", "ClusterSinkList"} {
		if err := r.strikeExisting(ctx, kind, missing); err != nil {
			return err
		}
	}
	for id, name := range missing {
		forgotten, err := r.Relay.Forget(ctx, id)
		if err != nil {
			return err
		}
		if forgotten { // otherwise a replica has not heard yet, and it is the next time
			r.Logger.Info("forgot a sink that is gone", "sink", name, "id", id)
		}
	}
	return nil
}

// strikeExisting takes out of a set of IDs those of objects of a kind that the API server has.
func (r *SinkReconciler) strikeExisting(ctx context.Context, kind string, ids map[string]string) error {
	const page = 500
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(v1.GroupVersion.WithKind(kind))
	for {
		if err := r.Live.List(ctx, list, client.Limit(page), client.Continue(list.Continue)); err != nil {
			return fmt.Errorf("listing the sinks: %w", err)
		}
		for i := range list.Items {
			delete(ids, string(list.Items[i].UID))
		}
		if list.Continue == "" {
			return nil
		}
	}
}
