package operations

import (
	"context"
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// The name of a namespace can be given again, to a namespace of other people. The database keeps records
// of sagas whose namespace is gone; they are told apart by the uid of the namespace.

// namespaceUID returns the uid of the namespace that has a name now. It is empty if there is none.
func (h *handlers) namespaceUID(ctx context.Context, name string) (string, error) {
	return namespaceUID(ctx, h.Client, name)
}

func namespaceUID(ctx context.Context, kube client.Reader, name string) (string, error) {
	ns := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
	err := kube.Get(ctx, client.ObjectKey{Name: name}, ns)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fromAPIServer("reading namespace "+name, err)
	}
	return string(ns.UID), nil
}

// allowedEverywhere reports whether the caller has a right in all namespaces.
func (h *handlers) allowedEverywhere(ctx context.Context, p Permission) (bool, error) {
	who, ok := CallerOf(ctx)
	if !ok {
		return false, errNobody
	}
	return h.hasEverywhere(ctx, who, p)
}

func (h *handlers) hasEverywhere(ctx context.Context, who Caller, p Permission) (bool, error) {
	p.Namespace, p.Name = "", ""
	err := h.Access.Allowed(ctx, who, p)
	var forbidden *ForbiddenError
	if errors.As(err, &forbidden) {
		return false, nil
	}
	return err == nil, err
}

// namespacedKeys keeps the idempotency keys of namespaces apart that have the same name one after the
// other. The realm of a key begins with the name.
type namespacedKeys struct {
	cqrs.IdempotencyStore
	kube client.Reader
}

// Begin implements cqrs.IdempotencyStore. The claim that it returns has the whole realm.
func (n namespacedKeys) Begin(ctx context.Context, k idempotency.Key, f idempotency.Fingerprint) (idempotency.Begun, error) {
	namespace, user, _ := strings.Cut(k.Realm, "/")
	uid, err := namespaceUID(ctx, n.kube, namespace)
	if err != nil {
		return idempotency.Begun{}, err
	}
	k.Realm = realm(namespace+"@"+uid, user)
	return n.IdempotencyStore.Begin(ctx, k, f)
}
