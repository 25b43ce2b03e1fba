package sink

import "testing"

func TestAHeadersValueIsEscapedAsTheSpecificationHasIt(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"Euro € 😀": "Euro%20%E2%82%AC%20%F0%9F%98%80", `a"b%c`: "a%22b%25c", "a\r\nX-Evil: 1": "a%0D%0AX-Evil:%201", "/a?b=c&d~": "/a?b=c&d~", "": "", "\x7f": "%7F",
	} {
		if got := EscapeHeader(value); got != want {
			t.Errorf("%q became %q, not %q", value, got, want)
		}
		if got := UnescapeHeader(want); got != value {
			t.Errorf("%q became %q, not %q", want, got, value)
		}
	}
}

func TestWhatIsNoEscapeStays(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{"100%": "100%", "%2": "%2", "%zz": "%zz", "%c3%a9": "é", "%41": "A", "%C0%A0": "%C0%A0", "50% of %20": "50% of  "} {
		if got := UnescapeHeader(value); got != want {
			t.Errorf("%q became %q, not %q", value, got, want)
		}
	}
}
