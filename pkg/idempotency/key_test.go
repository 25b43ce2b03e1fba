package idempotency_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

func TestAKeyIsTheSameWithAndWithoutQuotes(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		`"8e03978e-40d5-43dd-bc93-6894a57f9324"`: "8e03978e-40d5-43dd-bc93-6894a57f9324",
		`8e03978e-40d5-43dd-bc93-6894a57f9324`:   "8e03978e-40d5-43dd-bc93-6894a57f9324",
		"  \"a b\"\t":                            "a b",
		`"a\"b\\c"`:                              `a"b\c`,
		`u-1/charge/action`:                      "u-1/charge/action",
	} {
		if got, err := idempotency.ParseKey(value); err != nil || got != want {
			t.Errorf("%s: %q, %v", value, got, err)
		}
	}
}

func TestAMalformedKeyIsRefused(t *testing.T) {
	t.Parallel()
	for _, value := range []string{``, ` `, `""`, `"a`, `"a"b`, `"a"; x=1`, `a b`, `a,b`, `a;b`, `a\b`, `a"b`, `"a\n"`, "\"\x01\"", `"ä"`, `ä`, strings.Repeat("x", 256), `"` + strings.Repeat("x", 256) + `"`} {
		if got, err := idempotency.ParseKey(value); !errors.Is(err, idempotency.ErrInvalidKey) {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
	if _, err := idempotency.KeyOf(http.Header{idempotency.HeaderKey: {"a", "a"}}); !errors.Is(err, idempotency.ErrInvalidKey) {
		t.Errorf("two headers: %v", err)
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{`"a"`, `a`, `"a\"b\\"`, `"`, `\`, "\"\x00\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		key, err := idempotency.ParseKey(value)
		if err != nil {
			return
		}
		if err := (idempotency.Key{Key: key}).Check(); err != nil {
			t.Fatalf("%q was read as %q: %v", value, key, err)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
		if again, err := idempotency.ParseKey(quoted); err != nil || again != key {
			t.Fatalf("%q was read as %q, and %q as %q, %v", value, key, quoted, again, err)
		}
	})
}

func TestFingerprintsTellRequestsApart(t *testing.T) {
	t.Parallel()
	seen := map[idempotency.Fingerprint]bool{}
	for _, r := range [][3]string{{"POST", "/a", "b"}, {"PUT", "/a", "b"}, {"POST", "/ab", ""}, {"POST", "/a", "bc"}, {"POST", "/a b", ""}, {"POST", "/a?b", ""}, {"POST", "/", "a b"}} {
		f := idempotency.FingerprintOf(r[0], r[1], []byte(r[2]))
		if seen[f] {
			t.Errorf("%v has another's fingerprint", r)
		}
		seen[f] = true
	}
}
