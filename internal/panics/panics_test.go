package panics

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

var quiet = slog.New(slog.DiscardHandler)

func TestSiteNamesInnermostPlace(t *testing.T) {
	t.Parallel()
	site := func(do func()) (site string) {
		defer func() {
			if recover() != nil {
				site = Site()
			}
		}()
		do()
		return ""
	}
	var none map[string]int
	for name, do := range map[string]func(){
		"panic":           func() { panic("no") },
		"a runtime error": func() { none["a"] = 1 },
		"an index":        func() { _ = []int{}[len(none)] },
		"no panic":        func() {},
	} {
		got := site(do)
		if want := name != "no panic"; strings.HasPrefix(got, " at panics_test.go:") != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestRestartGoesOnAfterPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const doing = "testing that it goes on"
		counted := testutil.ToFloat64(Total.WithLabelValues(doing)) // also by an earlier run of this test
		var at []time.Duration
		began, want := time.Now(), errors.New("the end")
		err := Restart(t.Context(), quiet, doing, func(context.Context) error {
			if at = append(at, time.Since(began)); len(at) < 13 {
				panic("no")
			}
			return want
		})
		if !errors.Is(err, want) {
			t.Errorf("it returned %v", err)
		}
		if len(at) != 13 {
			t.Fatalf("it ran %d times, want 13: once after each panic", len(at))
		}
		for i, pauses := 2, at[1]; i < len(at); i++ {
			next := at[i] - at[i-1]
			if next > longestPause || next < pauses {
				t.Errorf("pause %d is %s after one of %s", i, next, pauses)
			}
			pauses = next
		}
		if last := at[len(at)-1] - at[len(at)-2]; last != longestPause {
			t.Errorf("the last pause is %s, want %s", last, longestPause)
		}
		if n := testutil.ToFloat64(Total.WithLabelValues(doing)) - counted; n != 12 {
			t.Errorf("%.0f panics are counted", n)
		}
	})
}

func TestRestartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		runs := 0
		err := Restart(ctx, quiet, "testing that it ends", func(context.Context) error {
			if runs++; runs == 3 {
				cancel()
			}
			panic("no")
		})
		if err != nil || runs != 3 {
			t.Errorf("it returned %v after %d runs", err, runs)
		}
	})
}

func TestValueSparesOtherMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	broken := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "broken"}, Value(quiet, "testing a metric", func() float64 { panic("no") }))
	sound := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sound"}, Value(quiet, "testing a metric", func() float64 { return 1 }))
	reg.MustRegister(broken, sound)
	all, err := reg.Gather()
	if err != nil || len(all) != 2 || !math.IsNaN(all[0].GetMetric()[0].GetGauge().GetValue()) || all[1].GetMetric()[0].GetGauge().GetValue() != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestCatchMakesErrorOfPanic(t *testing.T) {
	t.Parallel()
	var caught *Error
	if err := Catch(quiet, "testing", func() error { panic("no") }); !errors.As(err, &caught) || caught.Value != "no" {
		t.Errorf("a panic is %v", err)
	}
	want := errors.New("an error")
	if err := Catch(quiet, "testing", func() error { return want }); !errors.Is(err, want) {
		t.Errorf("an error is %v", err)
	}
}
