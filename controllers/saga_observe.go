package controllers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/manifest"
	"github.com/vextrus/saga-operator/internal/saga"
)

// sighting is what one reconcile knows of one saga. It is filled in from top to bottom.
type sighting struct {
	key  engine.Key
	note note
	// object is the saga's object; nil when it is gone, or another object has taken its name.
	object *v1.Saga
	// settled is true when the saga has finished and its status says so: there is nothing to drive.
	settled bool
	// unshown is true when its end has been written, and the cache does not show that yet.
	unshown bool
	// observed is what the engine is told, invalid what is wrong with the definition.
	observed engine.Observation
	invalid  []saga.FieldError
	// held is why the saga may not start yet, by the quotas of its namespace; uncounted is true while these
	// are not known.
	held      *problem
	uncounted bool
	// result is where the saga stands, problem what keeps it from moving. After an error nothing is known, and the result is zero.
	result  engine.Result
	problem *problem
	// unstarted is true when the engine has looked and found no event of the saga, nor has its status ever shown one. A zero result alone does not say so.
	unstarted bool
	// over is true when the saga finished so long ago that its history has been removed.
	over bool
	// mirrored is true when the status shows all of it.
	mirrored bool
	// unwritable is true when the API server refuses the status. It must not hold an object up that is to go.
	unwritable bool
	// wake is when to look again; zero for not before something happens.
	wake time.Time
}

func (s *sighting) deleting() bool { return s.object == nil || !s.object.DeletionTimestamp.IsZero() }

// wakeAt has the saga looked at again at a time, or sooner.
func (s *sighting) wakeAt(t time.Time) {
	if !t.IsZero() && (s.wake.IsZero() || t.Before(s.wake)) {
		s.wake = t
	}
}

// again turns the time of the next look into what the work queue understands.
func (s *sighting) again(now time.Time) reconcile.Result {
	if s.wake.IsZero() {
		return reconcile.Result{}
	}
	return reconcile.Result{RequeueAfter: max(s.wake.Sub(now), time.Millisecond)}
}

// observe looks the saga's object up. What the cache holds is enough as long as it is the same object; that it is gone has to be heard from the
// API server itself, because its saga will be undone for it.
func (r *SagaReconciler) observe(ctx context.Context, key engine.Key) (*sighting, error) {
	s := &sighting{key: key, note: r.notes.get(key)}
	if s.note.gone {
		return s, nil
	}
	cached := &v1.Saga{}
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: key.Namespace, Name: key.Name}, cached)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return nil, fmt.Errorf("looking for saga %s in the cache: %w", key, err)
	case err != nil || string(cached.UID) != key.UID:
	case !finished(cached):
		s.object = cached
		s.unshown = s.note.ended && s.cacheIsBehind()
		return s, nil
	case cached.DeletionTimestamp.IsZero() && !s.note.doubted:
		s.object, s.settled = cached, true
		r.notes.shown(key)
		return s, nil
	}
	// The cache does not have it, or has only what is kept of a finished saga.
	return s, r.observeLive(ctx, s)
}

func (r *SagaReconciler) observeLive(ctx context.Context, s *sighting) error {
	live := &v1.Saga{}
	err := r.Live.Get(ctx, types.NamespacedName{Namespace: s.key.Namespace, Name: s.key.Name}, live)
	switch {
	case apierrors.IsNotFound(err) || err == nil && string(live.UID) != s.key.UID:
		s.note = r.notes.change(s.key, func(n *note) { n.gone = true })
	case err != nil:
		return fmt.Errorf("looking for saga %s at the API server: %w", s.key, err)
	default:
		s.object = live
	}
	return nil
}

// define works out what the engine is told. The definition is needed only to start: a saga that has started goes by the one in its stream, also
// when this version of the operator would refuse it. The error is engine.ErrPreparing while the definition is being compiled.
func (r *SagaReconciler) define(ctx context.Context, s *sighting) error {
	s.observed = wishes(s)
	if s.object == nil || s.note.recorded || s.object.Status.RecordedVersion > 0 || !r.admit(s) {
		return nil
	}
	if size, ok := stripped(s.object); ok {
		if s.invalid = manifest.CheckSize(size); len(s.invalid) > 0 {
			return nil
		}
		s.object = nil
		err := r.observeLive(ctx, s)
		if s.observed = wishes(s); err != nil || s.object == nil {
			return err
		}
	}
	def, input, invalid := manifest.Read(s.object)
	wrong, err := r.Engine.Check(s.key, def)
	if err != nil {
		return err
	}
	if s.invalid = manifest.Report(invalid, wrong); len(s.invalid) > 0 {
		return nil
	}
	if s.observed.NamespaceUID, err = r.namespaceUIDOf(ctx, s.object); err != nil {
		return err
	}
	s.observed.Definition, s.observed.Input, s.observed.CreatedBy = &def, input, r.creatorOf(ctx, s.object)
	return nil
}

// wishes returns the observation of an object without its definition.
func wishes(s *sighting) engine.Observation {
	if s.object == nil {
		return engine.Observation{Delete: true}
	}
	o := s.object
	return engine.Observation{
		Suspend: o.Spec.Suspend, Cancel: o.Spec.Cancel, Delete: s.deleting(), Generation: o.Generation,
		TraceParent: o.Annotations[v1.TraceParentAnnotation], Labels: labels(o.Labels),
	}
}

// labels are those of a saga that its messages carry: the first ones by name, where there are too many.
func labels(all map[string]string) map[string]string {
	if len(all) <= engine.MaxLabels {
		return all
	}
	some := make(map[string]string, engine.MaxLabels)
	for _, name := range slices.Sorted(maps.Keys(all))[:engine.MaxLabels] {
		some[name] = all[name]
	}
	return some
}
