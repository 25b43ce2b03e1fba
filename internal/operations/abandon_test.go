package operations

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestAbandonNeedsRightOfItsOwn(t *testing.T) {
	t.Parallel()
	ref := Ref{Namespace: "shop", Name: "order-1"}
	want := Permission{Verb: "update", Subresource: "abandon", Namespace: "shop", Name: "order-1"}
	if got := (AbandonSaga{Ref: ref}).Needs(); got != want {
		t.Errorf("abandoning needs %+v, want %+v", got, want)
	}
	for name, other := range map[string]guarded{"DecideSaga": DecideSaga{Ref: ref}, "CancelSaga": CancelSaga{Ref: ref}, "SuspendSaga": SuspendSaga{Ref: ref}} {
		if other.Needs() == want {
			t.Errorf("who may send %s may abandon", name)
		}
	}
}

// recorded is an engine that has the events of one saga, of a namespace with a uid.
type recorded struct {
	key          engine.Key
	namespaceUID string
}

func (recorded) Abandon(context.Context, engine.Key, engine.Abandonment) (saga.State, error) {
	return saga.State{}, errors.ErrUnsupported
}

func (r recorded) Recorded(context.Context, uuid.UUID) (engine.Key, string, error) {
	return r.key, r.namespaceUID, nil
}

// namespaces is a cluster in which each namespace has this uid.
type namespaces struct {
	client.Client
	uid types.UID
}

func (n namespaces) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	o.(*metav1.PartialObjectMetadata).UID = n.uid
	return nil
}

// rights are those of every caller: in all namespaces, or in each one by its name.
type rights struct{ everywhere bool }

func (r rights) Allowed(_ context.Context, who Caller, what Permission) error {
	if what.Namespace == "" && !r.everywhere {
		return &ForbiddenError{User: who.Name, Permission: what}
	}
	return nil
}

func TestAbandonFindsSagaOfItsNamespaceOnly(t *testing.T) {
	t.Parallel()
	uid := uuid.NewString()
	command := AbandonSaga{Ref: Ref{Namespace: "shop", Name: "order-1"}, UID: uid}
	own := recorded{engine.Key{Namespace: "shop", Name: "order-1", UID: uid}, "now"}
	for what, c := range map[string]struct {
		saga       recorded
		everywhere bool
		found      bool
	}{
		"a saga of the namespace":               {own, false, true},
		"one of a former namespace":             {recorded{own.key, "before"}, false, false},
		"one of an unknown namespace":           {recorded{own.key, ""}, false, false},
		"one of a former, with all rights":      {recorded{own.key, "before"}, true, true},
		"one of another namespace":              {recorded{engine.Key{Namespace: "bank", Name: "order-1", UID: uid}, "now"}, false, false},
		"one of another, with all rights":       {recorded{engine.Key{Namespace: "bank", Name: "order-1", UID: uid}, "now"}, true, false},
		"one with another name, with all right": {recorded{engine.Key{Namespace: "shop", Name: "order-2", UID: uid}, "now"}, true, false},
	} {
		h := &handlers{Options: Options{Client: namespaces{uid: "now"}, Access: rights{c.everywhere}, Abandoner: c.saga}}
		key, err := h.findOrphan(WithCaller(t.Context(), Caller{Name: "ada"}), command)
		var missing *NotFoundError
		if (err == nil) != c.found || err != nil && !errors.As(err, &missing) || err == nil && key != c.saga.key {
			t.Errorf("%s: %v, %v", what, key, err)
		}
	}
}
