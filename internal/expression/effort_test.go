package expression

import (
	"errors"
	"strings"
	"testing"
)

// TestCacheSpendsEffortBeforeCompiling: what takes more than the effort that is left is not compiled, so the
// same definition is accepted or not whatever has been compiled before.
func TestCacheSpendsEffortBeforeCompiling(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]string{
		"valid":                "input.a + input.b",
		"does not parse":       "input.a +",
		"does not check":       "nope",
		"too much by itself":   strings.Repeat("[", 30) + strings.Repeat("1,", 1500) + strings.Repeat("]", 30),
		"is not allowed":       "steps",
		"a text, not a number": "'" + strings.Repeat("a", 500) + "'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, all := newCache(), NewEffort()
			_, first := c.get(source, WithoutResponse, all)
			need := maxEffort - all.left
			if need <= 0 {
				t.Fatalf("it took an effort of %d", need)
			}
			if _, err := c.get(source, WithoutResponse, &Effort{left: need - 1}); !errors.Is(err, errEffortLeft) {
				t.Errorf("cached, with too little effort: %v", err)
			}
			again := NewEffort()
			if _, err := c.get(source, WithoutResponse, again); err != first || again.left != all.left { //nolint:errorlint // the same error
				t.Errorf("cached: %v and an effort of %d, want %v and %d", err, maxEffort-again.left, first, need)
			}
			fresh := newCache()
			small := &Effort{left: need - 1}
			if _, err := fresh.get(source, WithoutResponse, small); !errors.Is(err, errEffortLeft) || !small.Exceeded() {
				t.Errorf("not cached, with too little effort: %v", err)
			}
			if len(fresh.entries) > 0 {
				t.Error("it was compiled although the effort was exceeded")
			}
		})
	}
}
