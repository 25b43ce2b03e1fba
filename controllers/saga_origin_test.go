package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

func TestSagaRecordsUIDOfItsNamespace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	o := r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	var ns corev1.Namespace
	if err := r.kube.Get(t.Context(), types.NamespacedName{Name: r.ns}, &ns); err != nil {
		t.Fatal(err)
	}
	events, err := r.store.Load(t.Context(), engine.StreamOf(string(o.UID)), 1, 1)
	if err != nil || len(events) != 1 {
		t.Fatalf("the first event is %v (%v)", events, err)
	}
	first, err := saga.Unmarshal(events[0].Type, events[0].SchemaVersion, events[0].Data)
	if started, ok := first.(saga.SagaStarted); err != nil || !ok || started.NamespaceUID != string(ns.UID) {
		t.Errorf("the first event is %s (%v), want %s in it", events[0].Data, err, ns.UID)
	}
}

// namespaceReader is an API server with one namespace, and with a saga of its own of each name.
type namespaceReader struct {
	client.Reader
	created time.Time
	uid     types.UID
	err     error
	gone    error // what it says of the saga
}

func (n namespaceReader) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	switch o := o.(type) {
	case *metav1.PartialObjectMetadata:
		if key != (client.ObjectKey{Name: "shop"}) {
			return fmt.Errorf("%s is asked for, and not the saga's namespace", key)
		}
		o.UID, o.CreationTimestamp = "namespace", metav1.NewTime(n.created)
	case *v1.Saga:
		if key != (client.ObjectKey{Namespace: "shop", Name: "order"}) {
			return fmt.Errorf("%s is asked for, and not the saga", key)
		}
		o.UID = n.uid
		return n.gone
	}
	return n.err
}

func TestSagaBelongsToOlderNamespaceOnly(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_900_000_000, 0)
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "namespaces"}, "shop", errors.New("no right"))
	gone := apierrors.NewNotFound(schema.GroupResource{Resource: "sagas"}, "order")
	for what, test := range map[string]struct {
		kube  namespaceReader
		fails string // a part of the error; empty for success
	}{
		"an older namespace":                        {kube: namespaceReader{created: now.Add(-time.Second)}},
		"a younger namespace":                       {kube: namespaceReader{created: now.Add(time.Second)}, fails: "younger"},
		"the same second":                           {kube: namespaceReader{created: now, uid: "saga"}},
		"the same second, another saga of its name": {kube: namespaceReader{created: now, uid: "other"}, fails: "another saga"},
		"the same second, the saga is gone":         {kube: namespaceReader{created: now, uid: "saga", gone: gone}, fails: "looking for saga shop/order"},
		"no right":                                  {kube: namespaceReader{err: forbidden}, fails: "ClusterRole"},
	} {
		o := &v1.Saga{}
		o.Namespace, o.Name, o.UID, o.CreationTimestamp = "shop", "order", "saga", metav1.NewTime(now)
		uid, err := (&SagaReconciler{Live: test.kube}).namespaceUIDOf(t.Context(), o)
		switch {
		case test.fails == "" && (err != nil || uid != "namespace"):
			t.Errorf("%s: %q, %v", what, uid, err)
		case test.fails != "" && (err == nil || uid != "" || !strings.Contains(err.Error(), test.fails)):
			t.Errorf("%s: %q, %v", what, uid, err)
		}
	}
}
