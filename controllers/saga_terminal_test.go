package controllers

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	eventsv1 "k8s.io/api/events/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

// waitToldUntouched waits until a Kubernetes event gives a reason, and fails when the saga's status has become another until then.
func (r *rig) waitToldUntouched(done *v1.Saga, reason string) {
	r.Helper()
	r.eventually(func() error {
		o, err := r.get(done.Name)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(done.Status, o.Status); diff != "" {
			r.Fatalf("the status of a saga that has ended was changed (-before +after):\n%s", diff)
		}
		var list eventsv1.EventList
		if err := r.kube.List(r.Context(), &list, client.InNamespace(r.ns)); err != nil {
			return err
		}
		for _, e := range list.Items {
			if e.Regarding.UID == done.UID && e.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("no event says why %s is still there", done.Name)
	})
}

func TestAFinishedStatusIsLeftAloneWhileTheEventStoreIsAway(t *testing.T) {
	t.Parallel()
	away := &awayStore{Store: memory.New()}
	r := newRigWithoutOperator(t, away)
	r.startOperator()
	r.create("order", order)
	done := r.waitPhase("order", v1.PhaseCompleted)
	away.away.Store(true)
	r.delete("order")
	r.waitToldUntouched(done, engine.ReasonEventStoreUnavailable)
	away.away.Store(false)
	r.waitGone("order")
}

func TestAFinishedStatusIsLeftAloneWhenTheStreamCannotBeRead(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	stop := r.startOperator()
	r.create("order", order)
	done := r.waitPhase("order", v1.PhaseCompleted)
	stop()
	if _, err := r.store.Append(t.Context(), eventstore.Append{
		Stream: engine.StreamOf(string(done.UID)), Expected: done.Status.RecordedVersion,
		Events: []eventstore.Event{{ID: uuid.Must(uuid.NewV7()), Type: "SagaAuditedTomorrow", SchemaVersion: 99, Data: []byte(`{}`)}},
	}); err != nil {
		t.Fatal(err)
	}
	r.delete("order")
	r.startOperator()
	r.waitToldUntouched(done, engine.ReasonDefinitionUnreadable)
	r.mustPatch("order", `{"metadata":{"finalizers":null}}`)
	r.waitGone("order")
}
