package run

import (
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
)

// newLogger makes the one logger of the process, and has the Kubernetes libraries use it too.
func newLogger(c Config, out io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	var h slog.Handler = slog.NewJSONHandler(out, options)
	if c.LogFormat == "text" {
		h = slog.NewTextHandler(out, options)
	}
	log := slog.New(h)
	ctrl.SetLogger(logr.FromSlogHandler(h))
	klog.SetSlogLogger(log)
	return log
}
