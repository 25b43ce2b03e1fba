package server

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the API's. Labels are operations of the document, classes of statuses and kinds of limits.
type metrics struct {
	total     *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	inFlight  prometheus.Gauge
	followers prometheus.Gauge
	limited   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "saga_api_requests_total", Help: "Requests to the API, by operation and class of status."}, []string{"operation", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "saga_api_request_duration_seconds", Help: "How long requests to the API took; those that follow a saga until they ended.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}, []string{"operation"}),
		inFlight:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "saga_api_requests_in_flight", Help: "Requests to the API that are being served."}),
		followers: prometheus.NewGauge(prometheus.GaugeOpts{Name: "saga_api_followers", Help: "Clients that follow a saga."}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "saga_api_limited_total", Help: "Requests to the API that were turned away, by the limit that they met."}, []string{"limit"}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.total, m.seconds, m.inFlight, m.followers, m.limited} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("registering the API's metrics: %w", err)
	}
	return m, nil
}

func (m *metrics) observe(operation string, status int, took time.Duration) {
	const hundred = 100
	class := "none"
	if status >= hundred {
		class = strconv.Itoa(status/hundred) + "xx"
	}
	m.total.WithLabelValues(operation, class).Inc()
	m.seconds.WithLabelValues(operation).Observe(took.Seconds())
}
