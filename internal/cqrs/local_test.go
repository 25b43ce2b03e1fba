package cqrs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

func newLocal(t *testing.T, o cqrs.LocalOptions, handlers ...func(context.Context, placed, cqrs.Envelope) error) *cqrs.Local {
	t.Helper()
	events := cqrs.NewEvents(registry)
	for _, h := range handlers {
		if err := cqrs.On(events, h); err != nil {
			t.Fatal(err)
		}
	}
	if o.Grace == 0 {
		o.Grace = time.Hour
	}
	if o.Timeout == 0 {
		o.Timeout = time.Hour
	}
	return must(cqrs.NewLocal(events, o))
}

func TestHandlersHearOfWhatWasCommitted(t *testing.T) {
	t.Parallel()
	var h heard
	var trace string
	local := newLocal(t, cqrs.LocalOptions{Logger: logger(t)}, func(ctx context.Context, fact placed, e cqrs.Envelope) error {
		if e.Version == 1 && e.Stream == "order-1" {
			trace = cqrs.TraceParent(ctx)
		}
		if fact.N != int(e.Version)*10 {
			return fmt.Errorf("version %d brings %d", e.Version, fact.N)
		}
		h.add(e)
		return nil
	})
	stop := run(t, local)
	store := local.Store(memory.New())
	if _, err := appendTo(store, "order-1", placed{10}, placed{20}, cancelled{}); err != nil {
		t.Fatal(err)
	}
	lost := eventstore.Append{Stream: "order-1", Expected: 9, Events: []eventstore.Event{must(registry.Encode(placed{100}, eventstore.Metadata{}))}}
	if _, err := store.Append(t.Context(), lost); !errors.Is(err, eventstore.ErrWrongVersion) {
		t.Fatal(err)
	}
	both := []eventstore.Append{lost, {Stream: "order-2", Events: []eventstore.Event{must(registry.Encode(placed{10}, eventstore.Metadata{}))}}}
	both[0].Expected = 3
	both[0].Events[0] = must(registry.Encode(placed{40}, eventstore.Metadata{}))
	if _, err := store.AppendAll(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	stop() // it handles what is queued
	if got := strings.Join(h.list(), " "); got != "order-1/1 order-1/2 order-1/4 order-2/1" || trace != traceParent {
		t.Errorf("the handler heard of %s, in trace %q", got, trace)
	}
}

func TestAHandlerThatFailsOrPanicsTouchesNoOther(t *testing.T) {
	t.Parallel()
	var h heard
	var out bytes.Buffer
	reg := prometheus.NewRegistry()
	local := newLocal(t, cqrs.LocalOptions{Logger: slog.New(slog.NewTextHandler(&out, nil)), Metrics: reg},
		func(context.Context, placed, cqrs.Envelope) error { panic("at the disco") },
		func(context.Context, placed, cqrs.Envelope) error { panic("again") },
		func(_ context.Context, _ placed, e cqrs.Envelope) error { h.add(e); return nil })
	stop := run(t, local)
	store := local.Store(memory.New())
	for range 3 {
		if _, err := appendTo(store, "order-1", placed{}); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if len(h.list()) != 3 {
		t.Errorf("the handler that works heard of %v", h.list())
	}
	for _, part := range []string{"at the disco", "again", "local_test.go"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the log does not say %q", part)
		}
	}
	if n, err := testutil.GatherAndCount(reg, "saga_event_handlers_total"); err != nil || n != 3 {
		t.Errorf("%d counts, %v", n, err)
	}
}

func TestASlowHandlerHoldsNeitherTheAppendNorOthersUp(t *testing.T) {
	t.Parallel()
	var h heard
	entered, leave := make(chan struct{}, 100), make(chan struct{})
	reg := prometheus.NewRegistry()
	local := newLocal(t, cqrs.LocalOptions{Queue: 2, Timeout: time.Hour, Logger: logger(t), Metrics: reg},
		func(context.Context, placed, cqrs.Envelope) error { entered <- struct{}{}; <-leave; return nil },
		func(_ context.Context, _ placed, e cqrs.Envelope) error { h.add(e); return nil })
	stop := run(t, local)
	store := local.Store(memory.New())
	for i := range 10 {
		if _, err := appendTo(store, "order-1", placed{}); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			<-entered
		}
		eventually(t, "the other goes on", func() error {
			if len(h.list()) != i+1 {
				return fmt.Errorf("it heard of %v", h.list())
			}
			return nil
		})
	}
	close(leave)
	stop()
	if n := 1 + len(entered); n != 3 { // one in hand and two in the queue
		t.Errorf("the slow handler had %d events", n)
	}
	if missed := counter(t, reg, "missed"); missed != 7 {
		t.Errorf("%v missed events are counted", missed)
	}
}

// counter is the sum of saga_event_handlers_total over all handlers with one outcome.
func counter(t *testing.T, reg *prometheus.Registry, outcome string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "saga_event_handlers_total" && l.GetName() == "outcome" && l.GetValue() == outcome {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

func TestAHandlerThatOverstaysItsGraceHearsOfTheEnd(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{})
	local := newLocal(t, cqrs.LocalOptions{Grace: 20 * time.Millisecond, Timeout: time.Hour, Logger: logger(t)}, func(ctx context.Context, _ placed, _ cqrs.Envelope) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	})
	stop := run(t, local)
	if _, err := appendTo(local.Store(memory.New()), "order-1", placed{}); err != nil {
		t.Fatal(err)
	}
	<-entered
	stop() // hangs where it does not hear
}

func TestAnEventTypeThatNobodyKnowsIsRefusedAtRegistration(t *testing.T) {
	t.Parallel()
	type unheard struct{}
	events := cqrs.NewEvents(registry)
	for want, err := range map[string]error{
		"not a registered event type": cqrs.On(events, func(context.Context, unheard, cqrs.Envelope) error { return nil }),
		"an event is a struct":        cqrs.On(events, func(context.Context, *placed, cqrs.Envelope) error { return nil }),
		"there is none":               cqrs.On[placed](events, nil),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
}
