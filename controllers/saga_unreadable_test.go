package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/saga"
)

// recordByNewer records what a newer operator has done for an object: begun, with a definition that this one does not understand, and reserved.
func (r *rig) recordByNewer(o *v1.Saga) {
	r.Helper()
	uid := string(o.UID)
	def := saga.Definition{Steps: []saga.Step{{Name: "reserve", DependsOn: []string{"what-only-the-newer-one-knows"}, Do: saga.Effect{Kind: "http", With: json.RawMessage(`{}`)}}}}
	attempt := saga.Attempt{EffectID: saga.EffectID{Step: "reserve", Direction: saga.Action}, Number: 1}
	a := eventstore.Append{Stream: engine.StreamOf(uid), State: &eventstore.SagaState{
		UID: uuid.MustParse(uid), Namespace: o.Namespace, Name: o.Name, Phase: "Running", Version: 3, State: []byte(`{}`),
	}}
	for _, e := range []saga.Event{
		saga.SagaStarted{UID: uid, Namespace: o.Namespace, Name: o.Name, Definition: def}, saga.AttemptStarted{Attempt: attempt}, saga.AttemptSucceeded{Attempt: attempt},
	} {
		typ, schema, data, err := saga.Marshal(e)
		if err != nil {
			r.Fatal(err)
		}
		a.Events = append(a.Events, eventstore.Event{ID: uuid.Must(uuid.NewV7()), Type: typ, SchemaVersion: schema, Data: data})
	}
	if _, err := r.store.Append(r.Context(), a); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) createHeld(name, spec string) *v1.Saga {
	r.Helper()
	o, err := r.parse(name, spec)
	if err != nil {
		r.Fatal(err)
	}
	o.Finalizers = []string{v1.Finalizer}
	if err := r.kube.Create(r.Context(), o); err != nil {
		r.Fatal(err)
	}
	return o
}

func TestASagaWhoseRecordedDefinitionCannotBeReadIsHeldUntilSomebodyCan(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]string{
		"as it was shown":            `{"status":{"phase":"Running","recordedVersion":3,"startedAt":"2030-01-02T03:04:05Z"}}`,
		"with a status that is lost": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRigWithoutOperator(t, memory.New())
			o := r.createHeld("order", order)
			r.recordByNewer(o)
			if r.tampered = true; status != "" {
				r.mustPatchStatus("order", status)
			}
			r.startOperator()
			o = r.waitStalled("order", "DefinitionUnreadable")
			message := condition(o.Status.Conditions, v1.ConditionStalled).Message
			if strings.Contains(message, "not started") || !strings.Contains(message, "what-only-the-newer-one-knows") || !strings.Contains(message, "newer version") {
				t.Errorf("the message does not say what to do: %s", message)
			}
			r.delete("order")
			o = r.wait("order", "held, with a way out", func(o *v1.Saga) bool {
				c := condition(o.Status.Conditions, v1.ConditionStalled)
				return holds(c) && strings.Contains(c.Message, "kubectl patch")
			})
			if !slices.Contains(o.Finalizers, v1.Finalizer) {
				t.Error("the finalizer is gone, and what was reserved stays so")
			}
			r.mustPatch("order", `{"metadata":{"finalizers":null}}`)
			r.waitGone("order")
		})
	}
}

func TestAnOrphanWhoseDefinitionCannotBeReadIsToldLoudly(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	o := r.create("order", order)
	r.recordByNewer(o)
	r.delete("order")
	r.waitGone("order")
	r.startOperator()
	r.eventually(func() error {
		for line := range strings.Lines(r.log.String()) {
			if strings.Contains(line, "level=ERROR") && strings.Contains(line, "object is gone") && strings.Contains(line, string(o.UID)) && strings.Contains(line, "newer version") {
				return nil
			}
		}
		return fmt.Errorf("nobody is told of it:\n%s", r.log.String())
	})
}

// An operator of another version may have started what this one refuses to start, and the status that says so may be lost.
func TestASagaTooLargeToStartIsLetGoOnlyWhenItNeverStarted(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, &fullStore{memory.New()})
	r.createHeld("order", order)
	r.startOperator()
	o := r.waitStalled("order", engine.ReasonTooLarge)
	if message := condition(o.Status.Conditions, v1.ConditionStalled).Message; !strings.Contains(message, "not started") {
		t.Errorf("the message does not say that it was not started: %s", message)
	}
	r.delete("order")
	r.waitGone("order")
}

func TestASagaThatGrewTooLargeIsHeld(t *testing.T) {
	t.Parallel()
	full := &fullStore{memory.New()}
	r := newRigWithoutOperator(t, full.Store)
	stop := r.startOperator()
	ship := newGate(t)
	r.svc.on("POST /ship", ship.then(answer(http.StatusOK, `{}`)))
	r.create("order", order)
	r.wait("order", "shipping", func(o *v1.Saga) bool { return o.Status.Step == "ship" })
	stop()
	r.store = full
	r.startOperator()
	r.delete("order")
	r.waitStalled("order", engine.ReasonTooLarge)
	o := r.wait("order", "held, with a way out", func(o *v1.Saga) bool {
		c := condition(o.Status.Conditions, v1.ConditionStalled)
		return holds(c) && strings.Contains(c.Message, "kubectl patch")
	})
	if !slices.Contains(o.Finalizers, v1.Finalizer) || strings.Contains(condition(o.Status.Conditions, v1.ConditionStalled).Message, "not started") {
		t.Errorf("a saga that has begun is let go: finalizers %v, %s", o.Finalizers, condition(o.Status.Conditions, v1.ConditionStalled).Message)
	}
	r.mustPatch("order", `{"metadata":{"finalizers":null}}`)
}

// fullStore takes no appends of sagas.
type fullStore struct{ eventstore.Store }

func (s *fullStore) Append(_ context.Context, a eventstore.Append) (eventstore.Appended, error) {
	return eventstore.Appended{}, fmt.Errorf("appending to stream %q: %w: it is too large", a.Stream, eventstore.ErrInvalid)
}
