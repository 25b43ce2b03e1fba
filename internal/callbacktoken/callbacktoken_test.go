package callbacktoken_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
)

func TestRedactRemovesTokens(t *testing.T) {
	t.Parallel()
	token := callbacktoken.New()
	for in, want := range map[string]string{
		"":              "",
		"no token here": "no token here",
		token:           "[redacted]",
		"https://a/v1/callbacks/" + token + "?x=1": "https://a/v1/callbacks/[redacted]?x=1",
		token + " and " + token:                    "[redacted] and [redacted]",
		"cut " + token[:20] + "…":                  "cut [redacted]…",
	} {
		if got := callbacktoken.Redact(in); got != want {
			t.Errorf("Redact(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNewTokensDiffer(t *testing.T) {
	t.Parallel()
	a, b := callbacktoken.New(), callbacktoken.New()
	if a == b || len(a) != len(b) || len(a) < 43+8 {
		t.Errorf("two tokens: %q and %q", a, b)
	}
}

func TestRedactErrorKeepsCause(t *testing.T) {
	t.Parallel()
	cause := errors.New("refused")
	err := callbacktoken.RedactError(fmt.Errorf("posting to %s: %w", callbacktoken.New(), cause))
	if !errors.Is(err, cause) || err.Error() != "posting to [redacted]: refused" {
		t.Errorf("the error is %v", err)
	}
	if !errors.Is(callbacktoken.RedactError(cause), cause) || callbacktoken.RedactError(cause).Error() != "refused" || callbacktoken.RedactError(nil) != nil {
		t.Error("an error without a token is not the same any more")
	}
}

// escape writes every character of s as an escape of JSON.
func escape(s string) string {
	var b strings.Builder
	for _, c := range s {
		fmt.Fprintf(&b, `\u00%02X`, c)
	}
	return b.String()
}

func TestRedactJSONRemovesTokens(t *testing.T) {
	t.Parallel()
	token := callbacktoken.New()
	for in, want := range map[string]string{
		`{"a":"x"}`:                                 `{"a":"x"}`,
		`{"caf\u00e9":"\u0073agacall"}`:             `{"caf\u00e9":"\u0073agacall"}`,
		`{"a":"` + token + `"}`:                     `{"a":"[redacted]"}`,
		`{"` + token + `":[1,"x ` + token + `"]}`:   `{"[redacted]":[1,"x [redacted]"]}`,
		`{"a":"` + escape(token) + `!"}`:            `{"a":"[redacted]!"}`,
		`{"a":"\u0073` + token[1:] + `"}`:           `{"a":"[redacted]"}`,
		`{"a":"\\\u0073` + token[1:] + `"}`:         `{"a":"\\[redacted]"}`,
		`{"a":"\\u0073` + token[1:] + `"}`:          `{"a":"\\u0073` + token[1:] + `"}`,
		`"{\"header\":\"` + token + `\"}"`:          `"{\"header\":\"[redacted]\"}"`,
		`"` + token[:30] + escape(token[30:]) + `"`: `"[redacted]"`,
	} {
		got := callbacktoken.RedactJSON(json.RawMessage(in))
		if string(got) != want {
			t.Errorf("RedactJSON(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestRedactMapCopiesWhatHasTokens(t *testing.T) {
	t.Parallel()
	token := callbacktoken.New()
	in := map[string]any{
		"status": int64(200), "headers": map[string]any{"x-echo": token}, "body": json.RawMessage(`["` + token + `"]`),
		"list": []any{token, nil, true}, token: 1.5,
	}
	want := map[string]any{
		"status": int64(200), "headers": map[string]any{"x-echo": "[redacted]"}, "body": json.RawMessage(`["[redacted]"]`),
		"list": []any{"[redacted]", nil, true}, "[redacted]": 1.5,
	}
	if diff := cmp.Diff(want, callbacktoken.RedactMap(in)); diff != "" {
		t.Error(diff)
	}
	if in["headers"].(map[string]any)["x-echo"] != token {
		t.Error("the argument was changed")
	}
	if callbacktoken.RedactMap(nil) != nil {
		t.Error("nil is not nil any more")
	}
}

// FuzzRedactJSON checks that the result stays valid, decodes to what redacting the decoded strings
// results in, and that nothing else changes.
func FuzzRedactJSON(f *testing.F) {
	token := callbacktoken.New()
	for _, s := range []string{`"x"`, `"` + token + `"`, `"` + escape(token) + `"`, `{"\\u0073agacallback_x":["\\\u0073agacallback_x"]}`, `"\u0073agacallback_\u0031\u00e9"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var before, after any
		if json.Unmarshal(raw, &before) != nil {
			t.Skip()
		}
		redacted := callbacktoken.RedactJSON(raw)
		if err := json.Unmarshal(redacted, &after); err != nil {
			t.Fatalf("%s became %s: %v", raw, redacted, err)
		}
		want := callbacktoken.RedactMap(map[string]any{"v": before})
		if diff := cmp.Diff(want, map[string]any{"v": after}); diff != "" {
			t.Errorf("%s became %s: %s", raw, redacted, diff)
		}
	})
}
