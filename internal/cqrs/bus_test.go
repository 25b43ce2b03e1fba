package cqrs_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

// lookUp is the query of these tests; add, in bench_test.go, their command.
type lookUp struct {
	cqrs.Answers[string]
	Name string
}

func answerName(_ context.Context, q lookUp) (string, error) { return "found " + q.Name, nil }

// commands returns a bus with one handler.
func commands[C cqrs.Command[R], R any](t *testing.T, h func(context.Context, C) (R, error), middleware ...cqrs.Middleware) *cqrs.Commands {
	t.Helper()
	b := cqrs.NewCommands(middleware...)
	if err := cqrs.HandleCommand(b, h); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestACommandIsAnsweredByItsHandler(t *testing.T) {
	t.Parallel()
	b := commands(t, sumUp)
	if err := cqrs.HandleCommand(b, func(_ context.Context, c fail) (*sum, error) { return nil, c.with }); err != nil {
		t.Fatal(err)
	}
	if got, err := cqrs.Send(t.Context(), b, add{A: 2, B: 3}); err != nil || got.Value != 5 {
		t.Errorf("answered with %v, %v", got, err)
	}
	broken := errors.New("broken")
	if got, err := cqrs.Send(t.Context(), b, fail{with: broken}); !errors.Is(err, broken) || got != nil {
		t.Errorf("the failing one is answered with %v, %v", got, err)
	}
	if got, err := cqrs.Send(t.Context(), b, fail{}); err != nil || got != nil {
		t.Errorf("the one with an answer of nil is answered with %v, %v", got, err)
	}
}

type fail struct {
	cqrs.Answers[*sum]
	with error
}

func TestAQueryIsAnsweredByItsHandler(t *testing.T) {
	t.Parallel()
	b := cqrs.NewQueries()
	if err := cqrs.HandleQuery(b, answerName); err != nil {
		t.Fatal(err)
	}
	if got, err := cqrs.Ask(t.Context(), b, lookUp{Name: "ada"}); err != nil || got != "found ada" {
		t.Errorf("answered with %q, %v", got, err)
	}
}

func otherSum(context.Context, add) (sum, error) { return sum{}, nil }

func TestASecondHandlerIsRefusedNamingBoth(t *testing.T) {
	t.Parallel()
	b := commands(t, sumUp)
	err := cqrs.HandleCommand(b, otherSum)
	if err == nil {
		t.Fatal("a second handler was taken")
	}
	for _, part := range []string{"cqrs_test.add", "sumUp", "otherSum", "bench_test.go", "bus_test.go"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %s: %v", part, err)
		}
	}
	if got, err := cqrs.Send(t.Context(), b, add{A: 1, B: 1}); err != nil || got.Value != 2 {
		t.Errorf("the first handler does not stand: %v, %v", got, err)
	}
	q := cqrs.NewQueries()
	if err := errors.Join(cqrs.HandleQuery(q, answerName), cqrs.HandleQuery(q, answerName)); err == nil || !strings.Contains(err.Error(), "query cqrs_test.lookUp") {
		t.Errorf("a second handler of a query: %v", err)
	}
}

func TestWhatNobodyHandlesIsAClearError(t *testing.T) {
	t.Parallel()
	b := commands(t, sumUp)
	q := cqrs.NewQueries()
	_, unknown := cqrs.Send(t.Context(), b, fail{})
	_, pointer := cqrs.Send(t.Context(), b, &add{})
	_, nothing := cqrs.Send(t.Context(), b, cqrs.Command[sum](nil))
	_, query := cqrs.Ask(t.Context(), q, lookUp{})
	for name, c := range map[string]struct {
		err  error
		says []string
	}{
		"another type": {unknown, []string{"command cqrs_test.fail", "cqrs.HandleCommand", "registered are cqrs_test.add"}},
		"a pointer":    {pointer, []string{"*cqrs_test.add", "pointer", "give the command itself"}},
		"nil":          {nothing, []string{"command <nil>"}},
		"a query":      {query, []string{"query cqrs_test.lookUp", "cqrs.HandleQuery", "none is registered"}},
	} {
		if !errors.Is(c.err, cqrs.ErrNoHandler) {
			t.Errorf("%s: error %v", name, c.err)
			continue
		}
		for _, part := range c.says {
			if !strings.Contains(c.err.Error(), part) {
				t.Errorf("%s: the error does not say %q: %v", name, part, c.err)
			}
		}
	}
}

type pointerValidated struct{ cqrs.Answers[sum] }

func (*pointerValidated) Validate() error { return nil }

func TestWhatCannotWorkIsRefusedAtRegistration(t *testing.T) {
	t.Parallel()
	b := cqrs.NewCommands()
	for want, err := range map[string]error{
		"there is none":    cqrs.HandleCommand[add](b, nil),
		"is a struct":      cqrs.HandleCommand(b, func(context.Context, *add) (sum, error) { return sum{}, nil }),
		"pointer receiver": cqrs.HandleCommand(b, func(context.Context, pointerValidated) (sum, error) { return sum{}, nil }),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
	type add struct{ cqrs.Answers[sum] } // another type of the same name
	if err := cqrs.HandleCommand(b, sumUp); err != nil {
		t.Fatal(err)
	}
	if err := cqrs.HandleCommand(b, func(context.Context, add) (sum, error) { return sum{}, nil }); err == nil || !strings.Contains(err.Error(), "both called") {
		t.Errorf("two commands of one name: %v", err)
	}
}

// note returns middleware that writes down when it is passed.
func note(passed *[]string, name string) cqrs.Middleware {
	return func(next cqrs.Handler) cqrs.Handler {
		return func(ctx context.Context, m cqrs.Message) (any, error) {
			*passed = append(*passed, name)
			answer, err := next(ctx, m)
			*passed = append(*passed, "after "+name)
			return answer, err
		}
	}
}

func TestTheFirstMiddlewareIsTheOutermost(t *testing.T) {
	t.Parallel()
	var passed []string
	b := cqrs.NewCommands(note(&passed, "a"), note(&passed, "b"))
	if err := cqrs.HandleCommand(b, sumUp, note(&passed, "c"), note(&passed, "d")); err != nil {
		t.Fatal(err)
	}
	if _, err := cqrs.Send(t.Context(), b, add{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "c", "d", "after d", "after c", "after b", "after a"}; !slices.Equal(passed, want) {
		t.Errorf("passed %v, want %v", passed, want)
	}
}

func TestMiddlewareThatChangesTheTypeIsFoundOut(t *testing.T) {
	t.Parallel()
	answers := func(cqrs.Handler) cqrs.Handler {
		return func(context.Context, cqrs.Message) (any, error) { return "five", nil }
	}
	hands := func(next cqrs.Handler) cqrs.Handler {
		return func(ctx context.Context, m cqrs.Message) (any, error) {
			m.Value = "a string"
			return next(ctx, m)
		}
	}
	for name, m := range map[string]cqrs.Middleware{"a string instead of a cqrs_test.sum": answers, "handed on a string": hands} {
		if _, err := cqrs.Send(t.Context(), commands(t, sumUp, m), add{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want one that says %q", err, name)
		}
	}
}
