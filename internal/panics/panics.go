// Package panics keeps a panic at the edge of a goroutine from ending the process: it is reported,
// counted, and what panicked goes on.
package panics

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Total counts the panics that were recovered, by what the operator was doing.
var Total = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "saga_panics_total", Help: "Panics of the operator's code that were recovered, by what it was doing. Each is a fault: report it.",
}, []string{"doing"})

// Pauses of [Restart]. A run of longestPause begins them anew.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 30 * time.Second
)

// Error is a panic that was recovered.
type Error struct {
	Doing string
	Value any
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: the operator's code panicked: %v; its log has the stack", e.Doing, e.Value)
}

// Report logs and counts a panic that was recovered. The deferred function that has recovered it
// calls Report. Doing is a text of the code, not of a user. A nil logger is the default one.
func Report(log *slog.Logger, doing string, value any) {
	if log == nil {
		log = slog.Default()
	}
	Total.WithLabelValues(doing).Inc()
	log.Error("panic while "+doing, "panic", value, "stack", string(debug.Stack()))
}

// Recover is deferred at the edge of a goroutine, and reports a panic of it.
func Recover(log *slog.Logger, doing string) {
	if p := recover(); p != nil {
		Report(log, doing, p)
	}
}

// Wrap returns a function that calls f and reports a panic of it.
func Wrap(log *slog.Logger, doing string, f func()) func() {
	return func() {
		defer Recover(log, doing)
		f()
	}
}

// Catch calls f. The error is an *[Error] if f panics.
func Catch(log *slog.Logger, doing string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			Report(log, doing, p)
			err = &Error{doing, p}
		}
	}()
	return f()
}

// Restart calls f, and again after each panic, with growing pauses. It returns what f returns, or nil
// if ctx ends after a panic.
func Restart(ctx context.Context, log *slog.Logger, doing string, f func(context.Context) error) error {
	pause := firstPause
	for {
		began, returned := time.Now(), false
		err := Catch(log, doing, func() (err error) {
			err = f(ctx)
			returned = true
			return err
		})
		if returned {
			return err
		}
		if time.Since(began) > longestPause {
			pause = firstPause
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		pause = min(2*pause, longestPause)
	}
}

// Value returns a function for a metric that is read when it is asked for. It is not a number if f
// panics, so that the other metrics are still read.
func Value(log *slog.Logger, doing string, f func() float64) func() float64 {
	return func() float64 {
		v := math.NaN()
		_ = Catch(log, doing, func() error { // which has reported the panic
			v = f()
			return nil
		})
		return v
	}
}

// Site returns where a panic came from, for example " at manifest.go:120": the innermost place outside the
// Go runtime. The deferred function that has recovered calls it. The result is empty if there is none.
func Site() string {
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	for {
		f, more := frames.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf(" at %s:%d", f.File[strings.LastIndexByte(f.File, '/')+1:], f.Line)
		}
		if !more {
			return ""
		}
	}
}
