package engine

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/saga"
)

// metrics carry no object's name: their number must not grow with the number of sagas.
type metrics struct {
	inFlight  prometheus.Gauge
	conflicts prometheus.Counter
	attempts  *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	phases    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "saga_attempts_in_flight", Help: "Attempts that are being carried out right now."}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "saga_append_conflicts_total", Help: "Appends that lost the compare-and-set and were decided again."}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "saga_attempts_total", Help: "Attempts that have ended, by kind of participant, direction and outcome."}, []string{"kind", "direction", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "saga_attempt_duration_seconds", Help: "How long attempts took.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}, []string{"kind", "direction"}),
		phases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "saga_phase_changes_total", Help: "Sagas that have entered a phase."}, []string{"phase"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.inFlight, m.conflicts, m.attempts, m.seconds, m.phases} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) attempt(kind string, o saga.Outcome, took time.Duration) {
	dir := string(o.Attempt.Direction)
	outcome := string(o.Kind)
	if o.Accepted {
		outcome = "Accepted"
	}
	m.attempts.WithLabelValues(kind, dir, outcome).Inc()
	m.seconds.WithLabelValues(kind, dir).Observe(took.Seconds())
}
