package cqrs

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// localBus is what the label subscription says of a Local bus.
const localBus = "local"

// How a handler's turn with an event ended.
const (
	outcomeHandled = "handled"
	outcomeFailed  = "failed"
	outcomeDead    = "dead"
	outcomeMissed  = "missed"
)

// eventMetrics name subscriptions and handlers, which are the code's, and no object.
type eventMetrics struct {
	total   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	waiting *prometheus.GaugeVec
	dead    *prometheus.GaugeVec
	behind  *prometheus.GaugeVec
}

func newEventMetrics(reg prometheus.Registerer) (m eventMetrics, err error) {
	one, two := []string{"subscription"}, []string{"subscription", "handler"}
	gauge := func(name, help string) (*prometheus.GaugeVec, error) {
		return registered(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, one))
	}
	m.total, err = registered(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "saga_event_handlers_total", Help: "Events that handlers were to be given, by how that ended: handled, failed (tried again in a subscription), dead (a dead letter), missed (a full queue)."}, append(two, "outcome")))
	if err != nil {
		return m, err
	}
	m.seconds, err = registered(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "saga_event_handler_duration_seconds", Help: "How long handlers took for an event.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}, two))
	if err != nil {
		return m, err
	}
	if m.waiting, err = gauge("saga_event_handlers_waiting_streams", "Streams of which an event is to be tried again."); err != nil {
		return m, err
	}
	if m.dead, err = gauge("saga_event_handlers_dead_letters", "Streams that wait behind a dead letter for a person."); err != nil {
		return m, err
	}
	m.behind, err = gauge("saga_event_handlers_lag_events", "Positions between the subscription and the newest event; at least as many as events are left to read. Reported by the process that reads.")
	return m, err
}

func (m *eventMetrics) handled(subscription string, r *reaction, outcome string, began time.Time) {
	m.total.WithLabelValues(subscription, r.handler, outcome).Inc()
	m.seconds.WithLabelValues(subscription, r.handler).Observe(time.Since(began).Seconds())
}
