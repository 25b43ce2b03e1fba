package panics

import (
	"strings"
	"testing"
)

func TestSiteNamesInnermostPlace(t *testing.T) {
	t.Parallel()
	site := func(do func()) (site string) {
		defer func() {
			if recover() != nil {
				site = Site()
			}
		}()
		do()
		return ""
	}
	var none map[string]int
	for name, do := range map[string]func(){
		"panic":           func() { panic("no") },
		"a runtime error": func() { none["a"] = 1 },
		"an index":        func() { _ = []int{}[len(none)] },
		"no panic":        func() {},
	} {
		got := site(do)
		if want := name != "no panic"; strings.HasPrefix(got, " at panics_test.go:") != want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
