package controllers

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// expiry returns when a finished saga is to be deleted; zero for never.
func expiry(o *v1.Saga) time.Time {
	if o.Spec.TTLAfterFinished == nil || o.Status.EndedAt == nil || !o.DeletionTimestamp.IsZero() {
		return time.Time{}
	}
	return o.Status.EndedAt.Add(o.Spec.TTLAfterFinished.Duration)
}

// expire deletes the object of a finished saga when its time is up. Its history stays in the event store.
func (r *SagaReconciler) expire(ctx context.Context, s *sighting) (reconcile.Result, error) {
	at := expiry(s.object)
	s.wakeAt(at)
	if at.IsZero() || r.Clock().Before(at) {
		return s.again(r.Clock()), nil
	}
	// The resource version makes sure that nobody has changed the time to live meanwhile.
	exactly := client.Preconditions{UID: &s.object.UID, ResourceVersion: &s.object.ResourceVersion}
	err := r.Client.Delete(ctx, identity(s.object), exactly)
	switch {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: cacheLag}, nil
	case client.IgnoreNotFound(err) != nil:
		return reconcile.Result{}, fmt.Errorf("deleting saga %s, whose time to live is over: %w", s.key, err)
	}
	return reconcile.Result{}, nil
}
