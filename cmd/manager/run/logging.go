package run

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
)

// newLogger makes the one logger of the process, and has the Kubernetes libraries use it too.
func newLogger(c Config, out io.Writer) *slog.Logger {
	h := newHandler(c, out)
	libraries.Store(&h)
	return slog.New(h)
}

func newHandler(c Config, out io.Writer) slog.Handler {
	options := &slog.HandlerOptions{Level: c.LogLevel, ReplaceAttr: redactAttr}
	if c.LogFormat == "text" {
		return slog.NewTextHandler(out, options)
	}
	return slog.NewJSONHandler(out, options)
}

// redactAttr removes callback tokens. Participants repeat them, and errors of libraries quote what they
// were given.
func redactAttr(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(callbacktoken.Redact(a.Value.String()))
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.AnyValue(callbacktoken.RedactError(err))
		}
	}
	return a
}

// libraries is where the Kubernetes libraries log; nowhere before there is a logger.
var libraries atomic.Pointer[slog.Handler]

// The libraries read their loggers without a lock, so these are set before anything else runs, and lead on to the one that is made later.
func init() {
	ctrl.SetLogger(logr.FromSlogHandler(toLibraries{}))
	klog.SetSlogLogger(slog.New(toLibraries{}))
}

// toLibraries is a handler that hands everything on to that of libraries.
type toLibraries struct {
	with []func(slog.Handler) slog.Handler
}

func (t toLibraries) handler() slog.Handler {
	h := slog.DiscardHandler
	if current := libraries.Load(); current != nil {
		h = *current
	}
	for _, with := range t.with {
		h = with(h)
	}
	return h
}

func (t toLibraries) and(with func(slog.Handler) slog.Handler) slog.Handler {
	return toLibraries{append(slices.Clone(t.with), with)}
}

// Enabled implements slog.Handler.
func (t toLibraries) Enabled(ctx context.Context, level slog.Level) bool {
	return t.handler().Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (t toLibraries) Handle(ctx context.Context, r slog.Record) error {
	return t.handler().Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (t toLibraries) WithAttrs(attrs []slog.Attr) slog.Handler {
	return t.and(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (t toLibraries) WithGroup(name string) slog.Handler {
	return t.and(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}
