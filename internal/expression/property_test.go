package expression

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var typical = map[string]any{
	"method": "POST", "url": "http://payments/charges/${input.orderId}",
	"body": map[string]any{"order": "${input.orderId}", "amount": "${input.total}", "lines": "${input.lines.map(l, {'sku': l.sku})}"},
}

func BenchmarkCompileCached(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, errs := Compile(typical, WithoutResponse); errs != nil {
			b.Fatal(errs)
		}
	}
}

func BenchmarkCompileNew(b *testing.B) {
	for b.Loop() {
		if _, _, err := compile("input.lines.map(l, {'sku': l.sku})", WithoutResponse, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompileTheWorst(b *testing.B) {
	source := strings.TrimSuffix("[1]"+strings.Repeat(".map(a,[a,a])", 30), "")
	for b.Loop() {
		_, _, _ = compile(source, WithoutResponse, nil)
	}
}

func BenchmarkRender(b *testing.B) {
	tmpl, errs := Compile(typical, WithoutResponse)
	if errs != nil {
		b.Fatal(errs)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tmpl.Render(b.Context(), scope); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRenderPaths(b *testing.B) {
	tmpl, errs := Compile(map[string]any{"order": "${input.orderId}", "amount": "${input.total}", "charge": "${steps.charge.output.charge}"},
		WithoutResponse)
	if errs != nil {
		b.Fatal(errs)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tmpl.Render(b.Context(), scope); err != nil {
			b.Fatal(err)
		}
	}
}

// jsonValue draws a JSON-like value; its strings hold no dollar sign.
func jsonValue(t *rapid.T, depth int) any {
	most := 6
	if depth > 3 {
		most = 4
	}
	switch rapid.IntRange(0, most).Draw(t, "kind") {
	case 0:
		return nil
	case 1:
		return rapid.Bool().Draw(t, "bool")
	case 2:
		return rapid.Int64().Draw(t, "int")
	case 3:
		return rapid.Float64().Draw(t, "float")
	case 4:
		return rapid.StringOf(rapid.Rune().Filter(func(r rune) bool { return r != '$' })).Draw(t, "string")
	case 5:
		list := make([]any, rapid.IntRange(0, 4).Draw(t, "length"))
		for i := range list {
			list[i] = jsonValue(t, depth+1)
		}
		return list
	default:
		m := map[string]any{}
		for range rapid.IntRange(0, 4).Draw(t, "size") {
			m[rapid.String().Draw(t, "key")] = jsonValue(t, depth+1)
		}
		return m
	}
}

func TestAStaticValueRendersToItself(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v := jsonValue(t, 0)
		tmpl, errs := Compile(v, WithoutResponse)
		if errs != nil || !tmpl.Static() || len(tmpl.Steps()) != 0 {
			t.Fatalf("errors %v", errs)
		}
		got, err := tmpl.Render(t.Context(), Scope{})
		if err != nil || !cmp.Equal(v, got) {
			t.Fatalf("%v: %s", err, cmp.Diff(v, got))
		}
	})
}

func TestAReferenceRendersToWhatItPointsAt(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		v := jsonValue(t, 0)
		// By the short way, and through the interpreter.
		for _, source := range []string{"${input.v}", "${[input][0].v}"} {
			tmpl, errs := Compile(source, WithoutResponse)
			if errs != nil {
				t.Fatal(errs)
			}
			got, err := tmpl.Render(t.Context(), Scope{Input: map[string]any{"v": v}})
			if err != nil || !cmp.Equal(v, got) {
				t.Fatalf("%s: %v: %s", source, err, cmp.Diff(v, got))
			}
		}
	})
}

func TestAnEscapedTextRendersToItself(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringOf(rapid.SampledFrom([]rune("${}ab'\""))).Draw(t, "text")
		if strings.Contains(s, "$${") {
			t.Skip("two dollar signs are an escape themselves")
		}
		tmpl, errs := Compile(strings.ReplaceAll(s, "${", "$${"), WithoutResponse)
		if errs != nil {
			t.Fatal(errs)
		}
		if got, err := tmpl.Render(t.Context(), Scope{}); err != nil || got != s {
			t.Fatalf("%q became %q, %v", s, got, err)
		}
	})
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{
		"${input.orderId}", "a $${ ${input.count} ${'}'}", "${steps.a-b}", `${steps["a"].output.x}`, "${[1,2].map(x, x*2)}", "${r'''}'''}",
		"${input.lines.filter(l, l.quantity > 1)[0].sku}", "http://h/${input.path}?${input.count}", "${", "${}}", "${'\\", "${{'a':1}}",
		"${input.orderId.replace('1', '22').format([1])}", "${cel.bind(x, [1], x + x)}", "${'a'.matches('[a')}", "${has(input.a.b)}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, vars := range []Vars{WithoutResponse, WithResponse} {
			tmpl, errs := Compile(map[string]any{"url": s}, vars)
			if (tmpl == nil) != (len(errs) > 0) {
				t.Fatalf("template %v, errors %v", tmpl, errs)
			}
			if tmpl == nil {
				continue
			}
			first, err := tmpl.Render(t.Context(), scope)
			second, _ := tmpl.Render(t.Context(), scope)
			if err == nil && !cmp.Equal(first, second) {
				t.Fatalf("two values: %v and %v", first, second)
			}
			if err == nil {
				if _, err := json.Marshal(first); err != nil {
					t.Fatalf("not JSON: %v", err)
				}
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"a":[1,2.5,1e999,"x"]}`, `[[[[`, `"\u0000"`, ``, `1 2`, `-0`, `-0.0`, `1E2`, strings.Repeat("[", 40), `{"a":1,"a":{"b":2}}`, "\"\xff\"", `"\ud800"`, `"\ud83d\ude00"`, `{"":null}`,
		` { "a" : [ true , false ] } `, `[1,]`, `{"a":1,}`, `01`, `nul`, `"` + "\n" + `"`, `9223372036854775808`, `{"` + "\xff" + `":1,"` + "\xfe" + `":2}`, "\ufeff1",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := Decode(raw)
		if wrong := Check(raw); (wrong == nil) != (err == nil) {
			t.Fatalf("Check says %v, and Decode %v", wrong, err)
		}
		if same, wrong := decodeByEncodingJSON(raw); (wrong == nil) != (err == nil) && !tooDeep(err) {
			t.Fatalf("%v, but encoding/json: %v", err, wrong)
		} else if err == nil && !cmp.Equal(v, same) {
			t.Fatalf("it is not what encoding/json reads: %s", cmp.Diff(same, v))
		}
		if err != nil {
			return
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("decoded to what is not JSON: %v", err)
		}
		// 1.0 is written 1 and is an integer from then on; after that nothing changes any more.
		w, err := Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		last, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		if x, err := Decode(last); err != nil || !cmp.Equal(w, x) {
			t.Fatalf("%v: %s", err, cmp.Diff(w, x))
		}
	})
}

func tooDeep(err error) bool { return err != nil && strings.Contains(err.Error(), "nested deeper") }

// decodeByEncodingJSON is Decode without its limit, by the library that everything else reads JSON with.
func decodeByEncodingJSON(raw []byte) (v any, err error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows")
	}
	return typed(v)
}

// typed replaces each json.Number.
func typed(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		return number(string(v))
	case []any:
		for i := range v {
			v[i], err = typed(v[i])
			if err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = typed(v[k]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}
