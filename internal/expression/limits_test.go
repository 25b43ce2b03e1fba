package expression

import (
	"strings"
	"testing"
)

// refused renders an expression that is just beyond one limit: without that limit it would be done in
// milliseconds, so that the test says which one is missing, and does not wait for it.
func refused(t *testing.T, expression string, input map[string]any, want string) {
	t.Helper()
	tmpl, errs := Compile("${"+expression+"}", WithoutResponse)
	if errs != nil {
		t.Fatalf("%s does not compile: %v", expression, errs)
	}
	if _, err := tmpl.Render(t.Context(), Scope{Input: input}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%.80s: the error is %v, want %q", expression, err, want)
	}
}

func numbers(n int) []any {
	all := make([]any, n)
	for i := range all {
		all[i] = int64(i)
	}
	return all
}

func TestExpressionCostIsLimited(t *testing.T) {
	t.Parallel()
	input := map[string]any{"l": numbers(50_000)}
	refused(t, "input.l.all(x, x >= 0 && x < 1000000)", input, tooManySteps)
}

// TestRegexCostFollowsSizeAndLength has matches that CEL's own tariff, which knows the length of the
// pattern only, takes for cheap.
func TestRegexCostFollowsSizeAndLength(t *testing.T) {
	t.Parallel()
	input := map[string]any{"s": strings.Repeat("a", 8<<10), "l": numbers(10)}
	refused(t, "input.l.all(x, !input.s.matches('(a?){50}b'))", input, tooManySteps)
}

func TestRegexMatchIsLimitedByItsText(t *testing.T) {
	t.Parallel()
	input := map[string]any{"s": strings.Repeat("a", 32<<10)}
	refused(t, "input.s.matches('(a?){150}b')", input, tooMuchWork)
}

func TestRegexProgramIsLimited(t *testing.T) {
	t.Parallel()
	refused(t, "input.s.matches('(abc){' + '400}')", map[string]any{"s": "a"}, "instructions; the limit is")
	if _, errs := Compile("${input.s.matches('(abc){400}')}", WithoutResponse); len(errs) != 1 || !strings.Contains(errs[0].Message, "instructions; the limit is") {
		t.Errorf("the errors of a constant pattern are %v", errs)
	}
}

func TestExpressionMakesLimitedData(t *testing.T) {
	t.Parallel()
	refused(t, "[1]"+strings.Repeat(".map(a, [a, a])", 18)+".size() > 0", nil, makesTooMuch)
	// Each of these is within the limit, and together they are not.
	half := "[1]" + strings.Repeat(".map(a, [a, a])", 14) + ".size()"
	refused(t, strings.Repeat(half+" + ", 7)+half+" > 0", nil, makesTooMuch)
	tmpl, errs := Compile("${"+half+"}", WithoutResponse)
	if errs != nil {
		t.Fatal(errs)
	}
	if _, err := tmpl.Render(t.Context(), Scope{}); err != nil {
		t.Errorf("one of them: %v", err)
	}
}

func TestReplacementIsLimitedBeforeItIsMade(t *testing.T) {
	t.Parallel()
	input := map[string]any{"s": strings.Repeat("a", 64<<10), "with": strings.Repeat("b", 17)}
	refused(t, "input.s.replace('a', input.with).size() > 0", input, rendersTooMuch)
}

func TestRenderedValueHasLimitedNodes(t *testing.T) {
	t.Parallel()
	many := make([]any, maxNodes)
	for i := range many {
		many[i] = []any{} // two bytes of JSON each, so that the bytes are within their limit
	}
	refused(t, "input.l", map[string]any{"l": many}, errTooMany.Error())
}
