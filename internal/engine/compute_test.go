package engine

import (
	"context"
	"testing"
	"time"
)

// TestComputationHasOneSecond asks for the end of the context: a test that used the second up would
// only be slow.
func TestComputationHasOneSecond(t *testing.T) {
	t.Parallel()
	e := &Engine{computing: newPool(1)}
	ran := false
	err := e.compute(t.Context(), "shop", func(ctx context.Context) {
		ran = true
		end, ends := ctx.Deadline()
		if left := time.Until(end); !ends || left > time.Second {
			t.Errorf("a rendering may take %s (limited: %t), want at most 1s", left, ends)
		}
	})
	if err != nil || !ran {
		t.Errorf("it ran: %t, %v", ran, err)
	}
}
