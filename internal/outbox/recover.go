package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vextrus/saga-operator/internal/panics"
)

// panicError is a panic that was caught at the edge of a goroutine.
type panicError struct {
	doing string
	value any
}

func (e *panicError) Error() string {
	return fmt.Sprintf("%s: the operator's code panicked: %v; its log has the stack", e.doing, e.value)
}

// caught runs f at the edge of a goroutine: a panic of it is an error, and the process lives on.
func caught(log *slog.Logger, doing string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			panics.Report(log, doing, p)
			err = &panicError{doing, p}
		}
	}()
	return f()
}

// panicked reports whether an error is a panic that was caught.
func panicked(err error) bool {
	_, is := errors.AsType[*panicError](err)
	return is
}

// confess says why a shard whose code panicked is not published, and gives its lease back. The checkpoint stays where it was put down: what the shard thought of it may be wrong.
func (r *Relay) confess(ctx context.Context, at *reader, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.lastCalls)
	defer cancel()
	t := &trouble{Reason: ReasonInternal, Message: clip(err.Error()), At: time.Now().UTC()}
	if err := errors.Join(at.report(ctx, r.pool, t), at.release(ctx, r.pool)); err != nil {
		r.log.Warn("it could not be put down that a shard of a sink panicked", "sink", at.sink, "shard", at.shard, "error", err)
	}
}
