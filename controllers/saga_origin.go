package controllers

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// creatorOf returns the user who created a saga. It is empty if the annotation that names them can be
// forged.
func (r *SagaReconciler) creatorOf(ctx context.Context, o *v1.Saga) string {
	name := o.Annotations[v1.CreatedByAnnotation]
	if name == "" || r.Creators == nil || !r.Creators.Protected(ctx, o.CreationTimestamp.Time) {
		return ""
	}
	return name
}

// namespaceUIDOf returns the uid of the namespace that an object is in. The object was seen before the
// namespace is read, so its namespace exists or is gone together with the object. If another one has its
// name, that one is younger than the object. The API server's times have whole seconds, so the object is
// looked for again if the two may be of the same second.
func (r *SagaReconciler) namespaceUIDOf(ctx context.Context, o *v1.Saga) (string, error) {
	ns := namespaceKind()
	if err := r.Live.Get(ctx, types.NamespacedName{Name: o.Namespace}, ns); err != nil {
		err = fmt.Errorf("reading namespace %s, whose uid is recorded with saga %s: %w", o.Namespace, o.Name, err)
		if apierrors.IsForbidden(err) {
			err = fmt.Errorf("%w; allow the operator's ClusterRole to get namespaces", err)
		}
		return "", err
	}
	switch {
	case o.CreationTimestamp.After(ns.CreationTimestamp.Time):
		return string(ns.UID), nil
	case o.CreationTimestamp.Time.Before(ns.CreationTimestamp.Time):
		return "", fmt.Errorf("reading namespace %s: it is younger than its saga %s, which must be gone", o.Namespace, o.Name)
	}
	again := &v1.Saga{}
	if err := r.Live.Get(ctx, types.NamespacedName{Namespace: o.Namespace, Name: o.Name}, again); err != nil {
		return "", fmt.Errorf("looking for saga %s/%s in its namespace: %w", o.Namespace, o.Name, err)
	}
	if again.UID != o.UID {
		return "", fmt.Errorf("looking for saga %s/%s in its namespace: another saga has its name", o.Namespace, o.Name)
	}
	return string(ns.UID), nil
}
