package outbox

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics carry the sink's name and no other object's. A sink that is not set has no series: neither
// one from before it was removed, nor one from a call that ends later. Quotas limit the sinks.
type metrics struct {
	mu  sync.RWMutex
	set map[string]int // how often a sink of the name is set: twice while it is being replaced

	published *prometheus.CounterVec
	failures  *prometheus.CounterVec
	dead      *prometheus.CounterVec
	calls     *prometheus.HistogramVec
	delay     *prometheus.HistogramVec
	backlog   *prometheus.GaugeVec
	oldest    *prometheus.GaugeVec
	letters   *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	labels := []string{"sink"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "saga_outbox_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "saga_outbox_" + name, Help: help}, labels)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "saga_outbox_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 4, 10)}, labels)
	}
	m := &metrics{
		set:       map[string]int{},
		published: counter("published_total", "Messages that the sink has taken."),
		failures:  counter("retries_total", "Messages that the sink did not take and that are tried again."),
		dead:      counter("dead_letters_total", "Messages that have become dead letters."),
		calls:     histogram("publish_seconds", "Time of one call of the sink's broker."),
		delay:     histogram("delay_seconds", "Time from the commit of a message to its acknowledgement."),
		backlog:   gauge("backlog", "Messages that wait for the sink, at most; those of all its shards. Reported by the process that has its first shard."),
		oldest:    gauge("oldest_seconds", "Age of the oldest message that waits for the sink; 0 when there is none."),
		letters:   gauge("dead_letters", "Dead letters that wait for a person."),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.published, m.failures, m.dead, m.calls, m.delay, m.backlog, m.oldest, m.letters} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering the outbox's metrics: %w", err)
		}
	}
	return m, nil
}

// begin lets a sink have series.
func (m *metrics) begin(sink string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set[sink]++
}

// end takes back one begin, and with the last one the sink's series.
func (m *metrics) end(sink string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.set[sink]--; m.set[sink] > 0 {
		return
	}
	delete(m.set, sink)
	m.forget(sink)
	m.published.DeleteLabelValues(sink)
	m.failures.DeleteLabelValues(sink)
	m.dead.DeleteLabelValues(sink)
	m.calls.DeleteLabelValues(sink)
	m.delay.DeleteLabelValues(sink)
}

// record calls f if the sink is set.
func (m *metrics) record(sink string, f func()) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.set[sink] > 0 {
		f()
	}
}

func (m *metrics) took(sink string, delay time.Duration) {
	m.record(sink, func() {
		m.published.WithLabelValues(sink).Inc()
		m.delay.WithLabelValues(sink).Observe(max(delay, 0).Seconds())
	})
}

func (m *metrics) failed(sink string, dead bool) {
	m.record(sink, func() {
		if dead {
			m.dead.WithLabelValues(sink).Inc()
		} else {
			m.failures.WithLabelValues(sink).Inc()
		}
	})
}

func (m *metrics) called(sink string, took time.Duration) {
	m.record(sink, func() { m.calls.WithLabelValues(sink).Observe(took.Seconds()) })
}

func (m *metrics) stands(s *Status) {
	m.record(s.Name, func() {
		m.backlog.WithLabelValues(s.Name).Set(float64(s.Backlog))
		m.letters.WithLabelValues(s.Name).Set(float64(s.DeadLetters))
		m.oldest.WithLabelValues(s.Name).Set(s.OldestAge.Seconds())
	})
}

// forget drops what this process says of a sink's backlog: another one may say it now.
func (m *metrics) forget(sink string) {
	m.backlog.DeleteLabelValues(sink)
	m.letters.DeleteLabelValues(sink)
	m.oldest.DeleteLabelValues(sink)
}
