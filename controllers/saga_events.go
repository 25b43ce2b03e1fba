package controllers

import (
	"context"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// Bounds of Kubernetes events, most of them the API server's.
const (
	maxEventNote     = 1000
	maxEventInstance = 128
	maxEventNamed    = 200
	eventQueue       = 1024
	eventWriters     = 4
	eventTimeout     = 10 * time.Second
)

// announce makes one Kubernetes event for a change of phase, for a stall, or for a compensation that is refused, that the status shows now.
func (r *SagaReconciler) announce(o *v1.Saga, previous, next *v1.SagaStatus) {
	ready, stalled := condition(next.Conditions, v1.ConditionReady), condition(next.Conditions, v1.ConditionStalled)
	newlyStalled := holds(stalled) && !holds(condition(previous.Conditions, v1.ConditionStalled))
	moved := previous.Phase != next.Phase && next.Phase != v1.PhasePending
	// The first time that a compensation is refused: a person may have to look, long before the saga is parked.
	before := condition(previous.Conditions, v1.ConditionReady)
	resisted := ready != nil && ready.Reason == ReasonCompensationRefused && (before == nil || before.Reason != ready.Reason)
	if r.events == nil || ready == nil || !moved && !newlyStalled && !resisted {
		return
	}
	kind := corev1.EventTypeNormal
	if next.Phase == v1.PhaseCompensating || holds(stalled) {
		kind = corev1.EventTypeWarning
	}
	r.events.send(r.event(o, next, kind, ready.Reason, ready.Message))
}

// explain makes one Kubernetes event about the object of a saga that has ended, and that is to be deleted but cannot be let go: its status says how it ended and
// changes no more.
func (r *SagaReconciler) explain(s *sighting) {
	if r.events == nil || s.problem == nil || s.over || !s.deleting() {
		return
	}
	note := s.problem.message
	if !s.problem.transient {
		note = problemMessage(view{name: s.object.Name, namespace: s.object.Namespace, deleting: true, problem: s.problem, unstarted: s.unstarted})
	}
	r.events.send(r.event(s.object, &s.object.Status, corev1.EventTypeWarning, s.problem.reason, note))
}

// event makes an event. Its name is derived from what it tells, so that however many operators tell it, it is there once.
func (r *SagaReconciler) event(o *v1.Saga, s *v1.SagaStatus, kind, reason, note string) *eventsv1.Event {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s/%d", o.UID, reason, s.RecordedVersion)
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name[:min(len(o.Name), maxEventNamed)] + "." + hex.EncodeToString(h.Sum(nil))},
		EventTime:  metav1.NewMicroTime(r.Clock()),
		Regarding: corev1.ObjectReference{
			APIVersion: v1.GroupVersion.String(), Kind: "Saga", Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion,
		},
		ReportingController: "saga.vextrus.io/operator", ReportingInstance: r.events.instance,
		Type: kind, Reason: reason, Action: "Advance", Note: clip(note, maxEventNote),
	}
}

// eventWriter writes Kubernetes events beside the reconciles, which never wait for it. Events are a courtesy: those that do not fit into its queue, or that
// the API server refuses, are dropped. (client-go's recorder would keep each for minutes, which with thousands of sagas is most of the memory.)
type eventWriter struct {
	client   client.Client
	log      *slog.Logger
	instance string
	timeout  time.Duration
	queue    chan *eventsv1.Event
}

func newEventWriter(c client.Client, log *slog.Logger) *eventWriter {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return &eventWriter{client: c, log: log, instance: clip("saga-operator-"+host, maxEventInstance), timeout: eventTimeout, queue: make(chan *eventsv1.Event, eventQueue)}
}

func (w *eventWriter) send(e *eventsv1.Event) {
	select {
	case w.queue <- e:
	default:
		w.log.Debug("a Kubernetes event was dropped: too many are waiting", "event", e.Name)
	}
}

// Start implements manager.Runnable.
func (w *eventWriter) Start(ctx context.Context) error {
	var writers sync.WaitGroup
	for range eventWriters {
		writers.Go(func() { w.work(ctx) })
	}
	writers.Wait()
	return nil
}

func (w *eventWriter) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-w.queue:
			w.write(ctx, e)
		}
	}
}

func (w *eventWriter) write(ctx context.Context, e *eventsv1.Event) {
	defer guard(w.log, "writing a Kubernetes event")
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	// A namespace that is being deleted takes no more events.
	if err := w.client.Create(ctx, e); err != nil && !apierrors.IsAlreadyExists(err) {
		w.log.Debug("a Kubernetes event was not written", "event", e.Name, "error", err)
	}
}
