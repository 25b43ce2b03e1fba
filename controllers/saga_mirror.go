package controllers

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// When the status is written. An object costs the API server far more than a saga costs PostgreSQL.
const (
	// settleTime is how long the first mirror of a saga that has started waits: one that ends within it is mirrored once. Where the API server is slow it is settleWrites times what
	// a write takes, up to maxSettleTime: an API server that has too much to do is not helped by showing what is about to change.
	settleTime    = 300 * time.Millisecond
	settleWrites  = 16
	maxSettleTime = 5 * time.Second
	// mirrorEvery is how often the status of a saga that moves within one phase is written.
	mirrorEvery = time.Second
	// quick is the age within which a rollback is not shown where the saga was shown as running: most are over by then, and their end is always shown at once.
	quick = time.Second
	// cacheLag is how long to wait for the cache to catch up with a write if no event tells that it has; doubled so often at most.
	cacheLag        = 50 * time.Millisecond
	maxLagDoublings = 6
	// mirrorRetry is the pause after a write that failed. It is no reason to hold the saga up.
	mirrorRetry = 2 * time.Second
	// refusedRetry is the longest pause after a write that was refused. The first is mirrorRetry, doubled each time: an API server that has just started refuses what it allows a moment later.
	refusedRetry        = time.Minute
	maxRefusedDoublings = 5
)

// mirror writes the status when it differs and it is time to. It is at most one write, and never an older state over a newer one: the object was looked
// at before the stream was, and the patch names the object's resource version. A write that fails is tried again and holds nothing else up.
func (r *SagaReconciler) mirror(ctx context.Context, s *sighting) {
	if s.object == nil {
		return
	}
	if finished(s.object) && s.result.State.Version == 0 {
		// An end never changes: what the status says was true, and is all that can be said as long as nothing is known.
		s.mirrored = true
		r.explain(s)
		return
	}
	next := statusOf(view{
		name: s.object.Name, namespace: s.object.Namespace, generation: s.object.Generation, deleting: s.deleting(), now: r.Clock(),
		state: &s.result.State, problem: s.problem, unstarted: s.unstarted, previous: &s.object.Status,
	})
	previous := s.object.Status
	if equality.Semantic.DeepEqual(previous, next) {
		s.mirrored = true
		r.cacheCaughtUp(s)
		return
	}
	if s.cacheIsBehind() {
		r.awaitCache(s)
		return
	}
	if wait := r.mirrorDelay(s, &previous, &next); wait > 0 {
		s.wakeAt(r.Clock().Add(wait))
		return
	}
	switch err := r.writeStatus(ctx, s, next); {
	case err == nil:
		s.mirrored = true
		r.announce(s.object, &previous, &next)
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		r.awaitCache(s)
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err):
		s.unwritable = true
		r.Logger.Error("the API server refuses the status", "saga", s.key, "error", err)
		s.wakeAt(r.Clock().Add(r.jitter(min(mirrorRetry<<min(s.note.refused, maxRefusedDoublings), refusedRetry))))
		s.note = r.notes.change(s.key, func(n *note) { n.refused++ })
	default:
		r.Logger.Warn("the status could not be written; trying again", "saga", s.key, "error", err)
		s.wakeAt(r.Clock().Add(r.jitter(mirrorRetry)))
	}
}

// cacheIsBehind reports whether the object is one that a write of this process has replaced.
func (s *sighting) cacheIsBehind() bool {
	v := s.object.ResourceVersion
	return v != "" && (v == s.note.wroteOver || v == s.note.heldOver)
}

// awaitCache has the saga looked at again when the cache has caught up: with the event that shows it, and if that is missed, after a while.
func (r *SagaReconciler) awaitCache(s *sighting) {
	s.wakeAt(r.Clock().Add(cacheLag << min(s.note.lagging, maxLagDoublings)))
	s.note = r.notes.change(s.key, func(n *note) { n.lagging++ })
}

func (r *SagaReconciler) cacheCaughtUp(s *sighting) {
	if s.note.lagging > 0 {
		s.note = r.notes.change(s.key, func(n *note) { n.lagging = 0 })
	}
}

// mirrorDelay says how long a write has to wait.
func (r *SagaReconciler) mirrorDelay(s *sighting, previous, next *v1.SagaStatus) time.Duration {
	now := r.Clock()
	switch {
	case fresh(previous) && settling(next) && s.problem == nil && !s.result.State.Suspended:
		settle := min(max(settleTime, settleWrites*r.writes.recent()), maxSettleTime)
		return min(s.result.State.StartedAt.Add(settle).Sub(now), settle)
	case previous.Phase == v1.PhaseRunning && next.Phase == v1.PhaseCompensating && previous.ObservedGeneration == next.ObservedGeneration && s.problem == nil &&
		now.Before(s.result.State.StartedAt.Add(quick)):
		return min(s.result.State.StartedAt.Add(quick).Sub(now), quick)
	case urgent(previous, next):
		return 0
	default:
		return s.note.wroteAt.Add(max(mirrorEvery, settleWrites*r.writes.recent())).Sub(now)
	}
}

// settling reports whether a status may soon be that of a saga which has ended.
func settling(s *v1.SagaStatus) bool {
	return s.Phase == v1.PhaseRunning || s.Phase == v1.PhaseCompensating
}

// fresh reports whether a status shows nothing of its saga yet.
func fresh(s *v1.SagaStatus) bool { return s.Phase == "" || s.Phase == v1.PhasePending }

// urgent reports whether somebody may be waiting for a change: of the phase, of what was asked for, of a condition.
func urgent(previous, next *v1.SagaStatus) bool {
	if previous.Phase != next.Phase || previous.ObservedGeneration != next.ObservedGeneration {
		return true
	}
	for i := range next.Conditions {
		c := &next.Conditions[i]
		if p := condition(previous.Conditions, c.Type); p == nil || p.Status != c.Status {
			return true
		}
	}
	return false
}

func (r *SagaReconciler) writeStatus(ctx context.Context, s *sighting, next v1.SagaStatus) error {
	before := identity(s.object)
	before.Status = s.object.Status
	after := before.DeepCopy()
	after.Status = next
	over := s.object.ResourceVersion
	began := time.Now()
	defer func() { r.writes.add(time.Since(began)) }()
	if err := r.Client.Status().Patch(ctx, after, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("writing the status of saga %s: %w", s.key, err)
	}
	s.object = after
	s.note = r.notes.change(s.key, func(n *note) { n.wroteAt, n.wroteOver, n.lagging, n.refused = r.Clock(), over, 0, 0 })
	return nil
}

// latency is about how long something has taken lately. It is safe for concurrent use; what two add at once may count as one.
type latency struct{ nanoseconds atomic.Int64 }

// add takes a measurement in, weighing it an eighth.
func (l *latency) add(d time.Duration) {
	was := l.nanoseconds.Load()
	l.nanoseconds.Store(was + (int64(d)-was)/8)
}

func (l *latency) recent() time.Duration { return time.Duration(l.nanoseconds.Load()) }
