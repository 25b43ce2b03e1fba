package expression

import (
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Each of these would take minutes, or gigabytes, if only finished operations were charged.
func TestNoExpressionCanCostMuch(t *testing.T) {
	long := strings.Repeat("a", 256<<10)
	many := make([]any, 100_000)
	for i := range many {
		many[i] = int64(i)
	}
	huge := Scope{Input: map[string]any{"s": long, "l": many}}
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
	for name, source := range map[string]string{
		"replace":                "input.s.replace('a', input.s)",
		"replace with limit":     "input.s.replace('a', input.s, 100000)",
		"replace nothing":        "input.s.replace('', input.s)",
		"repeated replace":       "input.s.replace('a', 'aaaa').replace('a', 'aaaa')",
		"join":                   "input.l.map(x, 'a').join(input.s)",
		"format":                 "'%s%s%s%s%s%s%s%s'.format([input.s, input.s, input.s, input.s, input.s, input.s, input.s, input.s])",
		"text of text":           "[input.s, input.s].map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a)",
		"indexOf":                "input.s.indexOf(input.s.substring(0, 131072) + 'b')",
		"lastIndexOf":            "input.s.lastIndexOf('b' + input.s.substring(0, 131072))",
		"distinct":               "input.l.distinct()",
		"sets":                   "sets.contains(input.l, input.l)",
		"sets of dyn":            "sets.equivalent(dyn(input.l), dyn(input.l))",
		"loop in a loop":         "input.l.all(x, input.l.all(y, x + y >= 0))",
		"comparison in a loop":   "input.l.all(x, input.l == input.l)",
		"lists of lists":         double("1", ".map(a,[a,a])", 25) + " == " + double("1", ".map(a,[a,a])", 25),
		"maps of maps":           double("1", ".map(a,{'x':a,'y':a})", 25),
		"bound sums":             binds(60),
		"lists in a second turn": "[[], [1]].all(q, size([q].map(a,a+a).map(a,a+a)" + strings.Repeat(".map(a,[a,a])", 25) + ") >= 0)",
		"regular expression":     "(input.s + input.s + input.s).matches('(a?){150}a{150}b')",
		"dynamic pattern":        "input.s.matches('(((a{30}){30})' + '{30})')",
		"range":                  "lists.range(1000000)",
		"quotes in a loop":       "input.l.all(x, strings.quote(input.s).size() > 0)",
		"base64 in a loop":       "input.l.all(x, base64.encode(bytes(input.s)).size() > 0)",
		"sorts in a loop":        "input.l.all(x, input.l.sort().size() > 0)",
	} {
		t.Run(name, func(t *testing.T) {
			tmpl, errs := Compile("${"+source+"}", WithoutResponse)
			if errs != nil {
				t.Logf("does not compile: %v", errs)
				if name != "dynamic pattern" {
					t.Fail()
				}
				return
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin := processorTime(t)
			_, err := tmpl.Render(huge)
			took := processorTime(t) - begin
			runtime.ReadMemStats(&after)
			allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
			if err == nil {
				t.Error("no error")
			}
			t.Logf("%v, %d MiB: %v", took, allocated, err)
			if took > 3*time.Second || allocated > 600 {
				t.Errorf("took %v and allocated %d MiB", took, allocated)
			}
		})
	}
}

// processorTime is what this process has used of the processors. It does not pass while other processes have them.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
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
		if _, err := tmpl.Render(s); err != nil {
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
		if _, err := tmpl.Render(s); err == nil || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("error %v", err)
		}
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
		_, err := tpl.Render(scope)
		return err
	}
	if err := render(20); err != nil {
		t.Error(err)
	}
	if err := render(1000); err == nil || !strings.Contains(err.Error(), "too many operations together") || !strings.Contains(err.Error(), "body[") {
		t.Errorf("the error is %v", err)
	}
}
