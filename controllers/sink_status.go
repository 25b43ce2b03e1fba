package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// report writes the status of a sink where it differs from what is to be read.
func (r *SinkReconciler) report(ctx context.Context, s *sinkObject, e *sinkEntry) error {
	previous := s.status
	if e.written != nil && s.GetResourceVersion() == e.wroteOver {
		previous = e.written // the cache does not show it yet
	}
	next := r.statusOf(e, previous)
	if equality.Semantic.DeepEqual(previous, next) {
		return nil
	}
	base, status := s.copied()
	*status = *previous
	o, status := s.copied()
	*status = *next
	if err := r.Client.Status().Patch(ctx, o, client.MergeFrom(base)); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil // it has gone meanwhile
		}
		return fmt.Errorf("writing the status of sink %s: %w", s.title, err)
	}
	e.written, e.wroteOver = next, s.GetResourceVersion()
	return nil
}

// statusOf works the status out, from what is remembered of the sink and from where it stands in the outbox.
func (r *SinkReconciler) statusOf(e *sinkEntry, previous *v1.SinkStatus) *v1.SinkStatus {
	next := previous.DeepCopy()
	next.ObservedGeneration, next.Kind = e.generation, e.kind
	standing, known := r.standing(e.id)
	if known || next.Backlog == nil {
		next.Backlog, next.Published, next.DeadLetters = new(standing.Backlog), new(standing.Published), new(standing.DeadLetters)
		next.OldestAge = nil
		if age := coarse(standing.OldestAge); age > 0 {
			next.OldestAge = &metav1.Duration{Duration: age}
		}
	}
	problem := e.trouble(standing)
	ready := metav1.Condition{
		Type: v1.ConditionReady, Status: metav1.ConditionTrue, ObservedGeneration: e.generation, Reason: v1.SinkReasonReady, Message: "The destination takes messages.",
	}
	if problem != nil {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, problem.reason, clip(problem.message, maxConditionMessage)
	}
	now := metav1.NewTime(r.Clock().Truncate(time.Second))
	before := condition(previous.Conditions, v1.ConditionReady)
	if ready.LastTransitionTime = now; before != nil && before.Status == ready.Status {
		ready.LastTransitionTime = before.LastTransitionTime
	}
	next.Conditions = []metav1.Condition{ready}
	if problem != nil && problem.reason != v1.SinkReasonSuspended {
		last := next.LastError
		if last == nil || holds(before) || last.Reason != ready.Reason || last.Message != ready.Message {
			next.LastError = &v1.SinkError{Reason: ready.Reason, Message: ready.Message, Time: &now}
		}
	}
	return next
}

// trouble is why a sink is not ready: for itself, for what the last check came to, unless messages went through all the same, or for what whoever publishes to it has met.
func (e *sinkEntry) trouble(standing outbox.Status) *sinkProblem {
	switch {
	case e.problem != nil:
		return e.problem
	case e.failure != nil && (standing.Published <= e.publishedThen || standing.Trouble != ""):
		return e.failure
	case standing.Trouble != "" && standing.Backlog > 0:
		reason := standing.Reason
		if reason == "" {
			reason = outbox.ReasonConnectionFailed
		}
		return &sinkProblem{reason, advised(standing.Trouble, reason)}
	}
	return nil
}

// standing returns where a sink stands in the outbox, as of the last look, and whether there was one.
func (r *SinkReconciler) standing(id string) (outbox.Status, bool) {
	all := r.standings.Load()
	if all == nil {
		return outbox.Status{}, false
	}
	return (*all)[id], true
}

// coarse rounds an age for display: to the second at first and to the minute later, so that the status of a sink whose messages wait for days is not written every few seconds.
// An age below a second is shown as a second, because a backlog is never shown without an age.
func coarse(age time.Duration) time.Duration {
	const young = 2 * time.Minute
	switch {
	case age <= 0:
		return 0
	case age < time.Second:
		return time.Second
	case age < young:
		return age.Truncate(time.Second)
	}
	return age.Truncate(time.Minute)
}
