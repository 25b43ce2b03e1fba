package outbox_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

// gauges are the values of the counters and gauges of a registry by their names. Whatever carries another label than the sink's name is an error.
func gauges(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() != "sink" || l.GetValue() != "shop/events" {
					t.Errorf("%s carries %s=%s", f.GetName(), l.GetName(), l.GetValue())
				}
			}
			all[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}

func TestMetricsTellOfEachSinkWhatBecameOfItsMessages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var refusals atomic.Int32
	p := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		switch {
		case m.Key == "never":
			return outbox.Errorf(outbox.Rejected, outbox.ReasonTooLarge, "too large")
		case m.Key == "later" && refusals.Add(1) == 1:
			return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "not now")
		}
		return nil
	}}
	reg := prometheus.NewRegistry()
	r.relay(outbox.Options{Metrics: reg}, to(p))
	r.commit(r.message("never"), r.message("never"), r.message("later"), r.message("now"))
	want := map[string]float64{
		"saga_outbox_published_total": 2, "saga_outbox_retries_total": 1, "saga_outbox_dead_letters_total": 1,
		"saga_outbox_delay_seconds": 2, "saga_outbox_backlog": 1, "saga_outbox_dead_letters": 1,
	}
	r.eventually("the metrics say so", func() bool {
		got := gauges(t, reg)
		for name, value := range want {
			if got[name] != value {
				return false
			}
		}
		return got["saga_outbox_publish_seconds"] > 0 && got["saga_outbox_oldest_seconds"] > 0
	})
}

// TestRelayDropsMetricsOfRemovedSink has a sink removed while a call of its publisher is under way,
// whose end is recorded last. One that is replaced keeps its series.
func TestRelayDropsMetricsOfRemovedSink(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	calls, release := make(chan struct{}, 16), make(chan struct{})
	slow := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "slow" {
			calls <- struct{}{}
			<-release
		}
		return nil
	}}
	reg := prometheus.NewRegistry()
	relay, _ := r.relay(outbox.Options{Metrics: reg}, to(&memory.Publisher{}))
	r.commit(r.message("first"))
	r.eventually("the sink has series", func() bool { return gauges(t, reg)["saga_outbox_published_total"] == 1 })
	r.set(relay, to(slow))
	r.commit(r.message("second"))
	r.eventually("a sink that is replaced keeps its series", func() bool { return gauges(t, reg)["saga_outbox_published_total"] == 2 })
	r.commit(r.message("slow"))
	select {
	case <-calls:
	case <-r.ctx.Done():
		t.Fatal("the publisher was not called")
	}
	relay.Remove("sink-1")
	close(release)
	r.eventually("a removed sink has no series", func() bool { return len(gauges(t, reg)) == 0 })
}
