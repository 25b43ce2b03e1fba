package projection

import (
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics carry the projection's name and generation: both are the code's, and few.
type metrics struct {
	events     *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	lagEvents  *prometheus.GaugeVec
	lagSeconds *prometheus.GaugeVec
	failed     *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	labels := []string{"projection", "generation"}
	m := &metrics{
		events:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "saga_projection_events_total", Help: "Events handled."}, labels),
		seconds:    prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "saga_projection_page_seconds", Help: "Time to handle a page of events and commit.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}, labels),
		lagEvents:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "saga_projection_lag_events", Help: "Positions between the read model and the newest event; at least as many as events are left to handle."}, labels),
		lagSeconds: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "saga_projection_lag_seconds", Help: "Age of the oldest event left to handle, or of the last one handled, while there are more to handle; 0 when there are none."}, labels),
		failed:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "saga_projection_stopped", Help: "1 while the projection has stopped at an event and waits for a person."}, labels),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.events, m.seconds, m.lagEvents, m.lagSeconds, m.failed} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering the projections' metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) handled(name string, generation, n int, took time.Duration) {
	g := strconv.Itoa(generation)
	m.events.WithLabelValues(name, g).Add(float64(n))
	m.seconds.WithLabelValues(name, g).Observe(took.Seconds())
}

func (m *metrics) lag(name string, generation int, behind int64, age time.Duration) {
	g := strconv.Itoa(generation)
	m.lagEvents.WithLabelValues(name, g).Set(float64(behind))
	m.lagSeconds.WithLabelValues(name, g).Set(age.Seconds())
}

func (m *metrics) stopped(name string, generation int, yes bool) {
	v := 0.0
	if yes {
		v = 1
	}
	m.failed.WithLabelValues(name, strconv.Itoa(generation)).Set(v)
}

// forget drops what this process says about a generation that it feeds no more: somebody else may.
func (m *metrics) forget(name string, generation int) {
	g := strconv.Itoa(generation)
	m.lagEvents.DeleteLabelValues(name, g)
	m.lagSeconds.DeleteLabelValues(name, g)
	m.failed.DeleteLabelValues(name, g)
}
