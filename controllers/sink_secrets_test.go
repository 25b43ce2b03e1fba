package controllers

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/vextrus/saga-operator/internal/callbacktoken"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func TestSinkErrorsHaveNoCallbackToken(t *testing.T) {
	t.Parallel()
	cause := fmt.Errorf("%w: it repeats %s", errors.ErrUnsupported, callbacktoken.New())
	p := hidden(nil).around(&memory.Publisher{Fault: func(context.Context, *outbox.Message) error { return cause }})
	errs := p.Publish(t.Context(), make([]outbox.Message, 1))
	if len(errs) != 1 || !errors.Is(errs[0], cause) || errs[0].Error() != "unsupported operation: it repeats [redacted]" {
		t.Errorf("the errors are %v", errs)
	}
}
