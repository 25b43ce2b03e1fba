package cqrs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// Metrics counts commands and queries by name and outcome, and measures how long they take. Nothing in a label is an object's: names are types that have a handler. Several buses may
// share a registry; nil is for none.
func Metrics(reg prometheus.Registerer) (Middleware, error) {
	type family struct {
		total   *prometheus.CounterVec
		seconds *prometheus.HistogramVec
	}
	families := map[Kind]family{}
	for kind, words := range map[Kind][3]string{CommandKind: {"saga_commands_total", "saga_command_duration_seconds", "Commands"}, QueryKind: {"saga_queries_total", "saga_query_duration_seconds", "Queries"}} {
		total, err := registered(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: words[0], Help: words[2] + " that were handled, by their outcome."}, []string{string(kind), "outcome"}))
		if err != nil {
			return nil, err
		}
		seconds, err := registered(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: words[1], Help: words[2] + ": how long they took.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}, []string{string(kind)}))
		if err != nil {
			return nil, err
		}
		families[kind] = family{total, seconds}
	}
	return func(next Handler) Handler {
		return func(ctx context.Context, m Message) (answer any, err error) {
			f, outcome, began := families[m.Kind], "panic", time.Now()
			defer func() { // of a panic too, which goes on
				f.total.WithLabelValues(m.Name, outcome).Inc()
				f.seconds.WithLabelValues(m.Name).Observe(time.Since(began).Seconds())
			}()
			answer, err = next(ctx, m)
			outcome = outcomeOf(err)
			return answer, err
		}
	}, nil
}

// outcomeOf is an error as a label has it.
func outcomeOf(err error) string {
	var (
		invalid  *InvalidError
		denied   *DeniedError
		refused  *RefusedError
		stale    *StaleError
		panicked *PanicError
	)
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &invalid):
		return "invalid"
	case errors.As(err, &denied):
		return "denied"
	case errors.As(err, &refused):
		return "refused"
	case errors.As(err, &stale):
		return "stale"
	case errors.As(err, &panicked):
		return "panic"
	case errors.Is(err, idempotency.ErrMismatch), errors.Is(err, idempotency.ErrQuota), errors.Is(err, idempotency.ErrInvalidKey):
		return "invalid"
	case errors.Is(err, idempotency.ErrInProgress):
		return "busy"
	case errors.Is(err, eventstore.ErrWrongVersion):
		return "conflict"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "canceled"
	default:
		return "error"
	}
}

// registered registers a collector, or returns the one that is registered already under its name.
func registered[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	if reg == nil {
		return c, nil
	}
	err := reg.Register(c)
	var twice prometheus.AlreadyRegisteredError
	if errors.As(err, &twice) {
		if first, ok := twice.ExistingCollector.(C); ok {
			return first, nil
		}
	}
	if err != nil {
		return c, fmt.Errorf("registering the metrics of the buses: %w", err)
	}
	return c, nil
}
