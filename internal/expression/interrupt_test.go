package expression

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// expiring is a context that ends immediately after it was first found to be valid: in the middle of an
// evaluation.
type expiring struct {
	context.Context
	done chan struct{}
}

func newExpiring(ctx context.Context) *expiring { return &expiring{ctx, make(chan struct{})} }

func (e *expiring) Done() <-chan struct{} { return e.done }

func (e *expiring) Err() error {
	select {
	case <-e.done:
		return context.DeadlineExceeded
	default:
		close(e.done)
		return nil
	}
}

func TestRenderEndsWithItsContext(t *testing.T) {
	t.Parallel()
	many := make([]any, 1000)
	for i := range many {
		many[i] = int64(i)
	}
	scope := Scope{Input: map[string]any{"l": many, "s": "aaaa"}}
	calls := "[" + strings.Repeat("input.s.replace('a', 'b'), ", 99) + "'']"
	matches := strings.Repeat("input.s.matches('b') || ", 150) + "false"
	for name, value := range map[string]any{
		"loop":             "${input.l.filter(x, x > 500)}",
		"nested loop":      "${input.l.filter(x, x < 9).map(x, input.l.filter(y, y == x).size())}",
		"absorbed error":   "${input.l.all(x, x >= 0) || true}",
		"calls":            "${" + calls + "}",
		"matches":          "${" + matches + "}",
		"inside text":      "a ${input.l.filter(x, x > 500).size()}",
		"next expression":  []any{"${input.s + 'a'}", "${input.s + 'b'}"},
		"in the last part": "${input.s + 'a'} ${input.s + 'b'}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmpl, errs := Compile(value, WithoutResponse)
			if errs != nil {
				t.Fatal(errs)
			}
			if got, err := tmpl.Render(newExpiring(t.Context()), scope); !errors.Is(err, ErrInterrupted) {
				t.Errorf("it is rendered to %.100v with error %v, want ErrInterrupted", got, err)
			}
			if _, err := tmpl.Render(t.Context(), scope); err != nil {
				t.Errorf("with enough time: %v", err)
			}
		})
	}
}
