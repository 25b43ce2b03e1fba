package outbox

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetricsIgnoreLateCallsOfRemovedSink(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m, err := newMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	record := func() {
		m.took("shop/events", time.Second)
		m.failed("shop/events", true)
		m.failed("shop/events", false)
		m.called("shop/events", time.Second)
		m.stands(&Status{Name: "shop/events", Backlog: 1})
	}
	series := func() int {
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	m.begin("shop/events")
	m.begin("shop/events") // it is being replaced
	m.end("shop/events")
	record()
	if n := series(); n != 8 {
		t.Errorf("a sink that is set has %d of 8 metrics", n)
	}
	m.end("shop/events")
	if n := series(); n != 0 {
		t.Errorf("a sink that was removed has %d metrics", n)
	}
	record()
	if n := series(); n != 0 {
		t.Errorf("late calls of a sink that was removed have made %d metrics", n)
	}
}
