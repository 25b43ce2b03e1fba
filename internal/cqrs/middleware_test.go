package cqrs_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vextrus/saga-operator/internal/cqrs"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

func TestAPanicOfAHandlerIsAnErrorWithItsStackInTheLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := commands(t, func(context.Context, add) (sum, error) { panic("at the disco") }, cqrs.Recover(slog.New(slog.NewTextHandler(&out, nil))))
	_, err := cqrs.Send(t.Context(), b, add{})
	var panicked *cqrs.PanicError
	if !errors.As(err, &panicked) || panicked.Value != "at the disco" || panicked.Name != "cqrs_test.add" || !bytes.Contains(panicked.Stack, []byte("middleware_test.go")) {
		t.Fatalf("error %v", err)
	}
	if !strings.Contains(out.String(), "middleware_test.go") || !strings.Contains(out.String(), "cqrs_test.add") {
		t.Errorf("the log has no stack: %s", out.String())
	}
}

type order struct {
	cqrs.Answers[sum]
	Quantity int
}

func (o order) Validate() error {
	if o.Quantity < 1 {
		return errors.New("the quantity is not positive")
	}
	return nil
}

func TestAnInvalidCommandNeverReachesItsHandler(t *testing.T) {
	t.Parallel()
	calls := 0
	b := commands(t, func(context.Context, order) (sum, error) { calls++; return sum{}, nil }, cqrs.Validate())
	_, err := cqrs.Send(t.Context(), b, order{})
	var invalid *cqrs.InvalidError
	if !errors.As(err, &invalid) || !strings.Contains(err.Error(), "cqrs_test.order") || !strings.Contains(err.Error(), "not positive") || calls != 0 {
		t.Errorf("error %v, handled %d times", err, calls)
	}
	if _, err := cqrs.Send(t.Context(), b, order{Quantity: 1}); err != nil || calls != 1 {
		t.Errorf("a valid one: error %v, handled %d times", err, calls)
	}
}

func TestADeniedCommandNeverReachesItsHandler(t *testing.T) {
	t.Parallel()
	calls := 0
	notYours := errors.New("it is not yours")
	allowed := func(_ context.Context, m cqrs.Message) error {
		if m.Value.(order).Quantity > 9 {
			return notYours
		}
		return nil
	}
	b := commands(t, func(context.Context, order) (sum, error) { calls++; return sum{}, nil }, cqrs.Authorize(allowed))
	_, err := cqrs.Send(t.Context(), b, order{Quantity: 10})
	var denied *cqrs.DeniedError
	if !errors.As(err, &denied) || !errors.Is(err, notYours) || calls != 0 {
		t.Errorf("error %v, handled %d times", err, calls)
	}
	if _, err := cqrs.Send(t.Context(), b, order{Quantity: 1}); err != nil || calls != 1 {
		t.Errorf("an allowed one: error %v, handled %d times", err, calls)
	}
}

var errConflict = &eventstore.WrongVersionError{Stream: "order-1", Expected: 1, Actual: 2}

func TestAConflictIsTriedAgainWithAFreshLoadAndBounded(t *testing.T) {
	t.Parallel()
	var drawn []float64
	backoff := cqrs.Backoff{First: time.Microsecond, Max: time.Millisecond, Random: func() float64 { drawn = append(drawn, 0.5); return 0.5 }}
	loads, conflicts := 0, 2
	b := commands(t, func(context.Context, add) (sum, error) {
		loads++ // a handler begins with loading
		if loads <= conflicts {
			return sum{}, errConflict
		}
		return sum{loads}, nil
	}, cqrs.RetryConflicts(4, backoff))
	if got, err := cqrs.Send(t.Context(), b, add{}); err != nil || got.Value != 3 || len(drawn) != 2 {
		t.Errorf("answered with %v, %v after %d pauses", got, err, len(drawn))
	}
	loads, conflicts = 0, 100
	if _, err := cqrs.Send(t.Context(), b, add{}); !errors.Is(err, eventstore.ErrWrongVersion) || loads != 4 || !strings.Contains(err.Error(), "4 attempts") {
		t.Errorf("one that always loses: error %v after %d loads", err, loads)
	}
}

func TestOtherErrorsAreNotTriedAgain(t *testing.T) {
	t.Parallel()
	calls := 0
	b := commands(t, func(context.Context, add) (sum, error) { calls++; return sum{}, eventstore.ErrUnavailable }, cqrs.RetryConflicts(4, cqrs.Backoff{}))
	if _, err := cqrs.Send(t.Context(), b, add{}); !errors.Is(err, eventstore.ErrUnavailable) || calls != 1 {
		t.Errorf("error %v after %d calls", err, calls)
	}
}

func TestWaitingToTryAgainEndsWithTheContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	b := commands(t, func(context.Context, add) (sum, error) { cancel(); return sum{}, errConflict },
		cqrs.RetryConflicts(4, cqrs.Backoff{First: time.Hour, Max: time.Hour, Random: func() float64 { return 0.9 }}))
	if _, err := cqrs.Send(ctx, b, add{}); !errors.Is(err, context.Canceled) || !errors.Is(err, eventstore.ErrWrongVersion) {
		t.Errorf("error %v", err)
	}
}

func TestPausesGrowUpToTheirBoundAndAreSpreadByChance(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]time.Duration{1: 5, 2: 10, 3: 20, 4: 25, 1000: 25} {
		if got := (cqrs.Backoff{First: 10, Max: 50, Random: func() float64 { return 0.5 }}).Pause(attempts); got != want {
			t.Errorf("after %d attempts the pause is %d, want %d", attempts, got, want)
		}
	}
}

func TestATraceGoesThroughTheHandler(t *testing.T) {
	t.Parallel()
	var spans []cqrs.Span
	var inside string
	b := commands(t, func(ctx context.Context, _ add) (sum, error) {
		inside = cqrs.TraceParent(ctx)
		return sum{}, errConflict
	},
		cqrs.Trace(func(_ context.Context, s cqrs.Span) { spans = append(spans, s) }))
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, given := range []string{"00-" + trace + "-" + parent + "-00", "", "00-" + trace + "-0000000000000000-01", "ff-" + trace + "-" + parent + "-01", "nonsense"} {
		_, _ = cqrs.Send(cqrs.WithTraceParent(t.Context(), given), b, add{})
	}
	first := spans[0]
	if first.TraceID != trace || first.Parent != parent || len(first.ID) != 16 || first.ID == parent || first.Name != "cqrs_test.add" || first.Err == nil {
		t.Errorf("the span is %+v", first)
	}
	for _, s := range spans[1:] {
		if s.TraceID == trace || len(s.TraceID) != 32 || s.Parent != "" {
			t.Errorf("a new trace was to begin: %+v", s)
		}
	}
	if last := spans[len(spans)-1]; inside != "00-"+last.TraceID+"-"+last.ID+"-01" {
		t.Errorf("the handler sees %q in %+v", inside, last)
	}
}

func TestCommandsAreCountedByNameAndOutcome(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	var with error
	b := commands(t, func(context.Context, order) (sum, error) {
		if with != nil && with.Error() == "panic" {
			panic(with)
		}
		return sum{}, with
	}, cqrs.Recover(slog.New(slog.DiscardHandler)), must(cqrs.Metrics(reg)), cqrs.Validate())
	for _, with = range []error{nil, nil, errConflict, cqrs.Refuse("TooLate", "it has been shipped"), context.Canceled, errors.New("other"), errors.New("panic"), &idempotency.InProgressError{}, idempotency.ErrMismatch} {
		_, _ = cqrs.Send(t.Context(), b, order{Quantity: 1})
	}
	_, _ = cqrs.Send(t.Context(), b, order{})
	must(cqrs.Metrics(reg)) // that of another bus on the same registry
	want := `
# HELP saga_commands_total Commands that were handled, by their outcome.
# TYPE saga_commands_total counter
saga_commands_total{command="cqrs_test.order",outcome="busy"} 1
saga_commands_total{command="cqrs_test.order",outcome="canceled"} 1
saga_commands_total{command="cqrs_test.order",outcome="conflict"} 1
saga_commands_total{command="cqrs_test.order",outcome="error"} 1
saga_commands_total{command="cqrs_test.order",outcome="invalid"} 2
saga_commands_total{command="cqrs_test.order",outcome="ok"} 2
saga_commands_total{command="cqrs_test.order",outcome="panic"} 1
saga_commands_total{command="cqrs_test.order",outcome="refused"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "saga_commands_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "saga_command_duration_seconds"); err != nil || n != 1 {
		t.Errorf("%d histograms, %v", n, err)
	}
}
