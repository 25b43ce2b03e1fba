package expression

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// What ends an expression that costs too much. Where it is another guard than the one that is meant, or none, it has cost too much before.
const (
	rendersTooMuch = "the rendered value is larger than"
	tooManySteps   = "it needs too many operations"
	tooMuchWork    = "its arguments are too large for this function"
	makesTooMuch   = "it makes too much data on the way"
)

// costly are expressions that would take minutes, or gigabytes, if only finished operations were charged, and what ends each.
func costly() map[string][2]string {
	double := func(start, step string, n int) string {
		return "[" + start + "]" + strings.Repeat(step, n)
	}
	binds := func(n int) string {
		s := "a0"
		for i := n; i > 0; i-- {
			s = fmt.Sprintf("cel.bind(a%d, a%d + a%d, %s)", i%2, (i+1)%2, (i+1)%2, s)
		}
		return "cel.bind(a0, [1], " + s + ")"
	}
	return map[string][2]string{
		"replace":                {"input.s.replace('a', input.s)", rendersTooMuch},
		"replace with limit":     {"input.s.replace('a', input.s, 100000)", rendersTooMuch},
		"replace nothing":        {"input.s.replace('', input.s)", rendersTooMuch},
		"repeated replace":       {"input.s.replace('a', 'aaaa').replace('a', 'aaaa')", tooManySteps},
		"join":                   {"input.l.map(x, 'a').join(input.s)", tooManySteps},
		"join of what is there":  {"input.t.join(input.s)", rendersTooMuch},
		"format":                 {"'%s%s%s%s%s%s%s%s'.format([input.s, input.s, input.s, input.s, input.s, input.s, input.s, input.s])", rendersTooMuch},
		"text of text":           {"[input.s, input.s].map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a)", makesTooMuch},
		"indexOf":                {"input.s.indexOf(input.s.substring(0, 131072) + 'b')", tooMuchWork},
		"lastIndexOf":            {"input.s.lastIndexOf('b' + input.s.substring(0, 131072))", tooMuchWork},
		"distinct":               {"input.l.distinct()", tooMuchWork},
		"sets":                   {"sets.contains(input.l, input.l)", tooMuchWork},
		"sets of dyn":            {"sets.equivalent(dyn(input.l), dyn(input.l))", tooMuchWork},
		"loop in a loop":         {"input.l.all(x, input.l.all(y, x + y >= 0))", tooManySteps},
		"comparison in a loop":   {"input.l.all(x, input.l == input.l)", tooManySteps},
		"lists of lists":         {double("1", ".map(a,[a,a])", 25) + " == " + double("1", ".map(a,[a,a])", 25), makesTooMuch},
		"maps of maps":           {double("1", ".map(a,{'x':a,'y':a})", 25), makesTooMuch},
		"bound sums":             {binds(30), makesTooMuch},
		"lists in a second turn": {"[[], [1]].all(q, size([q].map(a,a+a).map(a,a+a)" + strings.Repeat(".map(a,[a,a])", 25) + ") >= 0)", makesTooMuch},
		"regular expression":     {"(input.s + input.s + input.s).matches('(a?){150}a{150}b')", tooMuchWork},
		"dynamic pattern":        {"input.s.matches('(((a{30}){30})' + '{30})')", "invalid repeat count"},
		"matches in a loop":      {"input.l.all(x, !input.s.matches('(a?){5}b'))", tooManySteps},
		"searches in a loop":     {"input.l.all(x, input.s.indexOf('ab') < 0)", tooManySteps},
		"sets in a loop":         {"input.l.all(x, !sets.contains(input.t.slice(0, 1000), [1]))", tooManySteps},
		"range":                  {"lists.range(1000000)", "exceeds maximum allowed"},
		"quotes in a loop":       {"input.l.all(x, strings.quote(input.s).size() > 0)", tooManySteps},
		"base64 in a loop":       {"input.l.all(x, base64.encode(bytes(input.s)).size() > 0)", tooManySteps},
		"sorts in a loop":        {"input.l.all(x, input.l.sort().size() > 0)", makesTooMuch},
	}
}

// huge is the scope that they see.
func huge() Scope {
	many, texts := make([]any, 100_000), make([]any, 100_000)
	for i := range many {
		many[i], texts[i] = int64(i), "a"
	}
	return Scope{Input: map[string]any{"s": strings.Repeat("a", 256<<10), "l": many, "t": texts}}
}

func TestNoExpressionCanCostMuch(t *testing.T) {
	scope := huge()
	for name, c := range costly() {
		t.Run(name, func(t *testing.T) {
			tmpl, errs := Compile("${"+c[0]+"}", WithoutResponse)
			if errs != nil {
				t.Fatalf("it does not compile: %v", errs)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := tmpl.Render(t.Context(), scope)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), c[1]) {
				t.Errorf("the error is %v, not that %s", err, c[1])
			}
			if allocated := (after.TotalAlloc - before.TotalAlloc) >> 20; allocated > 600 {
				t.Errorf("%d MiB were allocated", allocated)
			}
		})
	}
}

// BenchmarkTooCostly says how long each of them takes until it is ended: some seconds would be too long.
func BenchmarkTooCostly(b *testing.B) {
	scope := huge()
	for name, c := range costly() {
		b.Run(name, func(b *testing.B) {
			tmpl, errs := Compile("${"+c[0]+"}", WithoutResponse)
			if errs != nil {
				b.Fatal(errs)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tmpl.Render(b.Context(), scope); err == nil {
					b.Fatal("it is not ended")
				}
			}
		})
	}
}

func TestALargeValuePassesWhereNothingIsMadeOfIt(t *testing.T) {
	t.Parallel()
	var lines []any
	for i := range 1000 {
		lines = append(lines, map[string]any{"sku": fmt.Sprint("S-", i), "quantity": int64(i), "price": 1.5})
	}
	s := Scope{Input: map[string]any{"lines": lines}}
	for _, source := range []string{
		"${input.lines}",
		"${input.lines.filter(l, l.quantity > 10).map(l, {'id': l.sku, 'n': l.quantity})}",
		"${input.lines.map(l, l.sku).join(',')}",
		"${input.lines.exists(l, l.sku == 'S-999')}",
		"n: ${size(input.lines)}",
	} {
		tmpl, errs := Compile(source, WithoutResponse)
		if errs != nil {
			t.Fatal(errs)
		}
		if _, err := tmpl.Render(t.Context(), s); err != nil {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestTheRenderedValueIsLimited(t *testing.T) {
	t.Parallel()
	s := Scope{Input: strings.Repeat("a", 400<<10)}
	for _, value := range []any{
		[]any{"${input}", "${input}", "${input}"},
		"${input}${input}${input}",
		map[string]any{"x": "${[input, input, input]}"},
	} {
		tmpl, errs := Compile(value, WithoutResponse)
		if errs != nil {
			t.Fatal(errs)
		}
		if _, err := tmpl.Render(t.Context(), s); err == nil || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("error %v", err)
		}
	}
}

func TestCompileLimitsEffortOfExpression(t *testing.T) {
	t.Parallel()
	source := "${[" + strings.Repeat("[1]"+strings.Repeat(".map(a,[a,a])", 10)+",", 30) + "1]}"
	if _, errs := Compile(source, WithoutResponse); len(errs) != 1 || !strings.Contains(errs[0].Message, "too much work to check") {
		t.Errorf("the errors are %v, want one about the work to check it", errs)
	}
}

func TestCompileStopsAfterManyErrors(t *testing.T) {
	t.Parallel()
	var many []any
	for range 1000 {
		many = append(many, "${nope}")
	}
	if _, errs := Compile(many, WithoutResponse); len(errs) != maxErrors {
		t.Errorf("%d errors, want %d", len(errs), maxErrors)
	}
}

func TestManyCostlyExpressionsTogetherAreTooMuchWhereEachIsNot(t *testing.T) {
	t.Parallel()
	many := make([]any, 2000)
	for i := range many {
		many[i] = int64(i)
	}
	scope := Scope{Input: map[string]any{"l": many}}
	render := func(n int) error {
		body := make([]any, n)
		for i := range body {
			body[i] = fmt.Sprintf("${input.l.filter(x, x > %d).size()}", i)
		}
		tpl, errs := Compile(map[string]any{"body": body}, WithoutResponse)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		_, err := tpl.Render(t.Context(), scope)
		return err
	}
	if err := render(20); err != nil {
		t.Error(err)
	}
	if err := render(1000); err == nil || !strings.Contains(err.Error(), "too many operations together") || !strings.Contains(err.Error(), "body[") {
		t.Errorf("the error is %v", err)
	}
}
