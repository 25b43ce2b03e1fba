package expression

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var scope = Scope{
	Input: map[string]any{
		"orderId": "1042", "count": int64(3), "price": 12.5, "paid": true, "note": nil,
		"lines": []any{map[string]any{"sku": "B-1", "quantity": int64(2)}, map[string]any{"sku": "A-9", "quantity": int64(5)}},
		"total": map[string]any{"currency": "EUR", "amount": "129.90"},
		"path":  "a/../b?c#d é", "empty": "",
	},
	Saga: map[string]any{"name": "order-1042", "namespace": "shop", "uid": "u-1"},
	Steps: map[string]any{
		"charge":        map[string]any{"output": map[string]any{"charge": "ch-7"}},
		"reserve-stock": map[string]any{"output": map[string]any{"reservation": "r-1"}},
	},
	Response: map[string]any{"status": int64(201), "body": map[string]any{"id": "x"}, "headers": map[string]any{"x-a": "b"}},
}

func render(t *testing.T, value any, vars Vars) (any, error) {
	t.Helper()
	tmpl, errs := Compile(value, vars)
	if len(errs) > 0 {
		t.Fatalf("Compile(%v): %v", value, errs)
	}
	return tmpl.Render(t.Context(), scope)
}

func TestAnExpressionRendersToItsValue(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]any{
		// Alone it keeps its type.
		"${input.orderId}":      "1042",
		"${ input.count }":      int64(3),
		"${input.price}":        12.5,
		"${input.paid}":         true,
		"${input.note}":         nil,
		"${input.total}":        map[string]any{"currency": "EUR", "amount": "129.90"},
		`${input["orderId"]}`:   "1042",
		"${input.lines[1].sku}": "A-9",
		"${input.lines.map(l, {'s': l.sku})}": []any{
			map[string]any{"s": "B-1"}, map[string]any{"s": "A-9"}},
		"${saga.namespace + '/' + saga.name}":            "shop/order-1042",
		"${steps.charge.output.charge}":                  "ch-7",
		`${steps["reserve-stock"].output.reservation}`:   "r-1",
		"${has(input.missing) ? input.missing : 'none'}": "none",
		"${2u + 3u}":                               int64(5),
		"${18446744073709551615u}":                 float64(18446744073709551615),
		"${b'abc'}":                                "YWJj",
		"${timestamp('2026-01-02T03:04:05.5Z')}":   "2026-01-02T03:04:05.5Z",
		"${duration('90m')}":                       "5400s",
		"${{1: 'a', true: 'b'}}":                   map[string]any{"1": "a", "true": "b"},
		"${math.greatest(input.count, 2)}":         int64(3),
		"${'a,b'.split(',')}":                      []any{"a", "b"},
		"${cel.bind(x, input.count, x + x)}":       int64(6),
		"${base64.encode(b'hi')}":                  "aGk=",
		"${input.orderId.matches('^[0-9]+$')}":     true,
		"${input.lines.exists(l, l.quantity > 4)}": true,
		// In a longer text it is text.
		"order ${input.orderId}!":              "order 1042!",
		"${input.count}/${input.price}":        "3/12.5",
		"paid: ${input.paid}":                  "paid: true",
		"<${input.total}>":                     `<{"amount":"129.90","currency":"EUR"}>`,
		"l=${input.lines.map(l, l.sku + '<')}": `l=["B-1<","A-9<"]`,
		"${input.orderId}${input.orderId}":     "10421042",
		"at ${duration('1500ms')}":             "at 1.5s",
		// What looks like an end and is none.
		"${{'a': {'b': 1}}}": map[string]any{"a": map[string]any{"b": int64(1)}},
		"${'}'}":             "}",
		`${"}\"}"}`:          `}"}`,
		`${'\'}'}`:           "'}",
		`${r'\'}`:            `\`,
		`${'''a'}'b'''}`:     "a'}'b",
		`${r"""\"}"""}`:      `\"}`,
		"${1 // }\n+ 2}":     int64(3),
		// Escapes.
		"$${input.orderId}":      "${input.orderId}",
		"$$${input.orderId}":     "$${input.orderId}",
		"a $${b} ${input.count}": "a ${b} 3",
		"$5 and 50 $":            "$5 and 50 $",
		"{}":                     "{}",
		"":                       "",
	} {
		got, err := render(t, source, WithoutResponse)
		if err != nil {
			t.Errorf("%s: %v", source, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", source, diff)
		}
	}
}

func TestWhatDoesNotCompileSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"${input.orderId":                  "does not end",
		"a ${'x}":                          "does not end",
		"${ }":                             "no expression",
		"${input.}":                        "Syntax error",
		"${1 +}":                           "Syntax error",
		"${order}":                         `the name "order" is not known here; known are input, saga, steps`,
		"${response.body}":                 `"response" is not known here`,
		"${steps}":                         "only be used with the name of a step",
		"${steps.size()}":                  "only be used with the name of a step",
		"${steps.map(s, s)}":               "only be used with the name of a step",
		"${steps[input.orderId].output}":   "must be written out",
		"${steps['a' + 'b'].output}":       "must be written out",
		"${.steps[input.orderId]}":         "must be written out",
		"${steps.reserve-stock.output.id}": `write steps["reserve-stock"]`,
		"${steps.a-b-c.output.id}":         `write steps["a-b-c"]`,
		"${steps.reserve-2}":               `write steps["reserve-2"]`,
		"${steps.charge.charge}":           `steps["charge"].output`,
		"${saga.id}":                       "but no id",
		"${[1].map(steps, steps.a)}":       "is a variable already",
		"${[1].exists(input, input == 1)}": "is a variable already",
		"${cel.bind(steps, 1, steps)}":     "is a variable already",
		"${google.protobuf.Struct{}}":      "only JSON values",
		"${now()}":                         `is not known here`,
		"${'a'.matches('(')}":              "",
		"${nosuch(1)}":                     `is not known here`,
		"${'" + strings.Repeat("a", MaxExpressionBytes) + "'}":                 "the limit is 4096",
		"${" + strings.Repeat("(", 200) + "1" + strings.Repeat(")", 200) + "}": "",
	} {
		_, errs := Compile(map[string]any{"body": []any{source}}, WithoutResponse)
		if len(errs) != 1 {
			t.Errorf("%s: errors %v, want one", clip(source), errs)
			continue
		}
		if errs[0].Path != "body[0]" || !strings.Contains(errs[0].Message, want) || strings.Contains(errs[0].Message, "\n") {
			t.Errorf("%s: %v, want one line with %q at body[0]", clip(source), errs[0], want)
		}
	}
}

func TestThereIsNoClockAndNoRandomness(t *testing.T) {
	t.Parallel()
	for _, e := range environments() {
		for name := range e.env.Functions() {
			for _, word := range []string{"now", "today", "rand", "uuid", "env", "http", "file", "read"} {
				if strings.Contains(strings.ToLower(name), word) {
					t.Errorf("function %q does not look pure", name)
				}
			}
		}
	}
}

func TestEveryErrorIsReportedWithItsPath(t *testing.T) {
	t.Parallel()
	_, errs := Compile(map[string]any{
		"body":    map[string]any{"lines": []any{"ok", "${"}, "x": struct{}{}},
		"headers": map[string]any{"X.Y": "${foo}"},
	}, WithoutResponse)
	var paths []string
	for _, e := range errs {
		paths = append(paths, e.Path)
	}
	if diff := cmp.Diff([]string{"body.lines[1]", "body.x", `headers["X.Y"]`}, paths); diff != "" {
		t.Error(diff)
	}
}

func TestATemplateKnowsTheStepsItReads(t *testing.T) {
	t.Parallel()
	tmpl, errs := Compile(map[string]any{
		"a": "${steps.b.output.x} ${has(steps.c.output.y)}",
		"d": `${[1].map(x, steps["reserve-stock"].output.n + x)} ${steps.b.output}`,
		"e": "${input.steps}",
	}, WithoutResponse)
	if errs != nil {
		t.Fatal(errs)
	}
	if diff := cmp.Diff([]string{"b", "c", "reserve-stock"}, tmpl.Steps()); diff != "" {
		t.Error(diff)
	}
	if tmpl.Static() {
		t.Error("a template with expressions calls itself static")
	}
	tmpl, _ = Compile(map[string]any{"a": "$${x}"}, WithoutResponse)
	if !tmpl.Static() {
		t.Error("an escaped template is not static")
	}
}

func TestWhatCannotBeRenderedNamesPathAndExpression(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"${input.missing}":           "body.x: ${input.missing}: no such key: missing",
		"a ${input.note}":            "body.x: ${input.note}: it is null, which cannot be part of a text",
		"${input.orderId.foo}":       "body.x: ${input.orderId.foo}: ",
		"${steps.ship.output.label}": "body.x: ${steps.ship.output.label}: no such key: ship",
		"${1/0}":                     "division by zero",
		"${double('NaN')}":           "not finite",
		"n=${double('inf')}":         "not finite",
		"${type(1)}":                 "not a JSON value",
		"${{'1': 1, 1: 2}}":          "two keys",
		"${input.orderId + 1}":       "no such overload",
	} {
		_, err := render(t, map[string]any{"body": map[string]any{"x": source}}, WithoutResponse)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", source, err, want)
		}
	}
}

func TestAnOutputSeesTheResponse(t *testing.T) {
	t.Parallel()
	got, err := render(t, "${response.body.id}-${response.status}", WithResponse)
	if err != nil || got != "x-201" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestMapsAreWalkedInTheOrderOfTheirKeys(t *testing.T) {
	t.Parallel()
	m, want := map[string]any{}, ""
	for i := range 100 {
		k := fmt.Sprintf("k%02d", i)
		m[k] = map[string]any{"b": int64(1), "a": int64(2)}
		want += k + "ab"
	}
	for _, source := range []string{
		"${input.map(k, k + input[k].map(j, j).join('')).join('')}",
		"${[input].map(m, m.map(k, k + m[k].map(j, j).join('')).join(''))[0]}",
	} {
		tmpl, errs := Compile(source, WithoutResponse)
		if errs != nil {
			t.Fatal(errs)
		}
		if got, err := tmpl.Render(t.Context(), Scope{Input: m}); err != nil || got != want {
			t.Errorf("%s: %v, %v", source, got, err)
		}
	}
	for range 20 {
		got, err := render(t, "${{'c': 1, 'a': 2, 'b': 3, 'e': 4, 'd': 5}.map(k, k).join('')}", WithoutResponse)
		if err != nil || got != "abcde" {
			t.Fatalf("got %v, %v", got, err)
		}
	}
}

func TestTheResultSharesNothingWithTheScope(t *testing.T) {
	t.Parallel()
	in := map[string]any{"a": map[string]any{"b": []any{"c"}}}
	for _, source := range []string{"${input}", "${[input][0]}"} {
		tmpl, _ := Compile(source, WithoutResponse)
		got, err := tmpl.Render(t.Context(), Scope{Input: in})
		if err != nil {
			t.Fatal(err)
		}
		got.(map[string]any)["a"].(map[string]any)["b"].([]any)[0] = "changed"
		if diff := cmp.Diff(map[string]any{"a": map[string]any{"b": []any{"c"}}}, in); diff != "" {
			t.Errorf("%s: %s", source, diff)
		}
	}
}

func TestNestingIsLimited(t *testing.T) {
	t.Parallel()
	var deep any = "x"
	for range MaxDepth {
		deep = []any{deep}
	}
	if _, errs := Compile(deep, WithoutResponse); errs != nil {
		t.Errorf("depth %d: %v", MaxDepth, errs)
	}
	if _, errs := Compile([]any{deep}, WithoutResponse); len(errs) != 1 {
		t.Errorf("depth %d: %v", MaxDepth+1, errs)
	}
	tmpl, _ := Compile([]any{"${input}"}, WithoutResponse)
	if _, err := tmpl.Render(t.Context(), Scope{Input: deep}); err == nil {
		t.Error("a rendered value deeper than the limit passed")
	}
}

func TestDecodeKeepsIntegersAndLimitsDepth(t *testing.T) {
	t.Parallel()
	got, err := Decode(json.RawMessage(` {"i": 9223372036854775807, "big": 9223372036854775808, "f": 1.5, "e": 1e3, "l": [1, null, "]]"]} `))
	want := map[string]any{"i": int64(9223372036854775807), "big": float64(9223372036854775808), "f": 1.5, "e": float64(1000),
		"l": []any{int64(1), nil, "]]"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for raw, want := range map[string]string{
		strings.Repeat("[", 33) + strings.Repeat("]", 33): "deeper than 32",
		`{"a":1} {}`: "more follows",
		`{"a":`:      "decode JSON",
		`1e999`:      "out of range",
	} {
		if _, err := Decode(json.RawMessage(raw)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", raw, err, want)
		}
	}
	if v, err := Decode(json.RawMessage(strings.Repeat("[", 32) + strings.Repeat("]", 32))); err != nil || v == nil {
		t.Errorf("32 levels: %v", err)
	}
	if v, err := Decode(nil); err != nil || v != nil {
		t.Errorf("empty input: %v, %v", v, err)
	}
}

func TestLiteralsAreTheTextsAroundTheExpressions(t *testing.T) {
	t.Parallel()
	for s, want := range map[string][]string{
		"":                      {""},
		"http://h/$${x":         {"http://h/${x"},
		"http://h/${x}?a=${y}z": {"http://h/", "?a=", "z"},
		"${x}${y}":              {"", "", ""},
		"http://${":             nil,
	} {
		if diff := cmp.Diff(want, Literals(s)); diff != "" {
			t.Errorf("%q: %s", s, diff)
		}
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := newCache()
	for i := range maxCached + 100 {
		if _, err := c.get(fmt.Sprintf("input.a%d", i), WithoutResponse, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.entries) != maxCached || c.recent.Len() != maxCached {
		t.Errorf("%d entries, %d in the list", len(c.entries), c.recent.Len())
	}
	if _, ok := c.entries[cacheKey{WithoutResponse, "input.a0"}]; ok {
		t.Error("the oldest entry is still there")
	}
	long := slices.Repeat([]byte("a"), MaxExpressionBytes-8)
	for i := range 200 {
		_, _ = c.get(fmt.Sprintf("'%d%s", i, long), WithResponse, nil)
	}
	if c.bytes > maxCachedBytes {
		t.Errorf("%d bytes of source are cached", c.bytes)
	}
}

// TestATemplateSaysWhetherItReadsTheSaga: its names are gathered only for one that does.
func TestATemplateSaysWhetherItReadsTheSaga(t *testing.T) {
	t.Parallel()
	for text, reads := range map[string]bool{
		"plain": false, "${input.saga}": false, "${steps.saga.output.id}": false, "${response.body.saga}": false,
		"${saga}": true, "${saga.name}": true, `${saga["uid"]}`: true, "id-${saga.uid}": true, "${[1].map(n, saga.name)}": true, "${has(saga.name)}": true, "${true || saga.uid == 'x'}": true,
	} {
		tmpl, errs := Compile(map[string]any{"x": []any{text}}, WithResponse)
		if len(errs) > 0 {
			t.Errorf("%s: %v", text, errs)
		} else if got := tmpl.ReadsSaga(); got != reads {
			t.Errorf("%s reads the saga: %t", text, got)
		}
	}
}

// TestATemplateSaysWhetherItReadsTheInput: the input is decoded only for one that does.
func TestATemplateSaysWhetherItReadsTheInput(t *testing.T) {
	t.Parallel()
	for text, reads := range map[string]bool{
		"plain": false, "${saga.name}": false, "${steps.a.output.id}": false, "${[1, 2].map(n, n * 2)}": false, "${response.body.input}": false,
		"${input}": true, "${input.id}": true, `${input["id"]}`: true, "id-${input.id}": true, "${has(input.id)}": true, "${size(input.lines)}": true,
		"${input.lines.map(l, l.sku)}": true, "${[1].map(n, input.id)}": true, "${[1].filter(n, n == input.n)}": true, "${cel.bind(v, input.id, v + v)}": true,
		"${steps.a.output[input.key]}": true, "${{input.key: 1}}": true, "${[input.id]}": true, "${input.a ? 1 : 2}": true, "${true || input.a}": true,
		"${input.lines.all(l, l.n > 0)}": true,
	} {
		tmpl, errs := Compile(map[string]any{"x": []any{text}}, WithResponse)
		if len(errs) > 0 {
			t.Errorf("%s: %v", text, errs)
		} else if got := tmpl.ReadsInput(); got != reads {
			t.Errorf("%s reads the input: %t", text, got)
		}
	}
}

// TestEnvironmentChecksManyAtOnce is for the race detector: the library collects names at the first unknown one.
func TestEnvironmentChecksManyAtOnce(t *testing.T) {
	for range 20 {
		e := newEnvironment("input")
		var all sync.WaitGroup
		for _, source := range []string{"inptu", "[1].all(x, x > 0)", "[1].map(x, x)", "nothing"} {
			all.Go(func() {
				parsed, issues := e.env.Parse(source)
				if issues.Err() != nil {
					t.Error(issues.Err())
					return
				}
				_, _ = e.env.Check(parsed)
			})
		}
		all.Wait()
	}
}
