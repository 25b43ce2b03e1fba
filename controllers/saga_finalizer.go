package controllers

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// holdObject puts the finalizer on the object before anything is recorded: from the first effect on, deleting must undo. Where the admission policy is
// installed it is there already. The patch names the resource version, so it also finds out that a cached object has been deleted meanwhile.
func (r *SagaReconciler) holdObject(ctx context.Context, s *sighting) error {
	if s.deleting() || len(s.invalid) > 0 || s.held != nil || s.uncounted || controllerutil.ContainsFinalizer(s.object, v1.Finalizer) {
		return nil
	}
	over := s.object.ResourceVersion
	if s.note.heldOver != "" && s.note.heldOver == over {
		return nil // it is on, and the cache does not show it yet
	}
	if err := r.patchFinalizers(ctx, s, append(slices.Clone(s.object.Finalizers), v1.Finalizer)); err != nil {
		return err
	}
	s.note = r.notes.change(s.key, func(n *note) { n.heldOver = over })
	return nil
}

// releaseObject takes the finalizer off.
func (r *SagaReconciler) releaseObject(ctx context.Context, s *sighting) error {
	if !controllerutil.ContainsFinalizer(s.object, v1.Finalizer) {
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(s.object.Finalizers), func(f string) bool { return f == v1.Finalizer })
	return client.IgnoreNotFound(r.patchFinalizers(ctx, s, left))
}

// patchFinalizers writes the finalizers and nothing else: what the cache holds is not the whole object.
func (r *SagaReconciler) patchFinalizers(ctx context.Context, s *sighting, finalizers []string) error {
	before := identity(s.object)
	before.Finalizers = s.object.Finalizers
	after := before.DeepCopy()
	after.Finalizers = finalizers
	if err := r.Client.Patch(ctx, after, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("writing the finalizers of saga %s: %w", s.key, err)
	}
	s.object = after
	s.note = r.notes.change(s.key, func(n *note) { n.wroteOver = before.ResourceVersion })
	return nil
}

// identity returns an object that is the same as o to the API server and carries nothing else: the base of a patch.
func identity(o *v1.Saga) *v1.Saga {
	id := &v1.Saga{}
	id.Namespace, id.Name, id.UID, id.ResourceVersion = o.Namespace, o.Name, o.UID, o.ResourceVersion
	return id
}
