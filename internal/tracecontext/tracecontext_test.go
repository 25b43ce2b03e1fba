package tracecontext

import (
	"strings"
	"testing"
)

const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestATraceContextIsTakenApart(t *testing.T) {
	t.Parallel()
	for _, s := range []string{good, "cc" + good[2:], "cc" + good[2:] + "-what-the-future-brings"} {
		if p, ok := Parse(s); !ok || p.String() != good {
			t.Errorf("%s: %v, %t", s, p, ok)
		}
	}
}

func TestWhatIsNoTraceContextIsLeftOut(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "00", good[:54], good + "-more", "ff" + good[2:], "cc" + good[2:] + "x", strings.ToUpper(good), strings.Replace(good, "-b", "_b", 1), good[:54] + "g",
		"00-" + strings.Repeat("0", 32) + good[35:], good[:36] + strings.Repeat("0", 16) + good[52:],
	} {
		if p, ok := Parse(s); ok {
			t.Errorf("%q was read as %v", s, p)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Fuzz(func(t *testing.T, s string) {
		if p, ok := Parse(s); ok {
			if again, ok := Parse(p.String()); !ok || again != p {
				t.Errorf("%q becomes %v, and then %v", s, p, again)
			}
		}
	})
}
