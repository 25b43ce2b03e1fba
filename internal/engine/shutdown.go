package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// lastWrites bounds how long outcomes are recorded that arrive when the engine is shutting down, beyond the time that attempts are given.
const lastWrites = 5 * time.Second

// toRecord bounds the recording of what has come to an end during a shutdown: what attempts have not used of their time is there for it, too.
func (e *Engine) toRecord() (context.Context, context.CancelFunc) {
	e.mu.Lock()
	left := max(time.Until(e.until), 0)
	e.mu.Unlock()
	return context.WithTimeout(context.Background(), left+lastWrites)
}

// Shutdown starts no more attempts and lets those under way end until ctx is done, and then abandons the rest: the next start sends them again under the same keys. Each outcome is
// recorded as it comes, however long others take, and those that are still waiting at the end within what is left of that time and lastWrites.
func (e *Engine) Shutdown(ctx context.Context) error {
	e.mu.Lock()
	e.closed = true
	e.until, _ = ctx.Deadline()
	e.mu.Unlock()
	e.close()
	err := e.advanced(ctx)
	err = errors.Join(err, e.pool.drain(ctx), e.compiling.drain(ctx), e.replies.drain(ctx))
	e.mu.Lock()
	left := e.sagas
	e.sagas = map[string]*running{}
	e.mu.Unlock()
	last, cancel := e.toRecord()
	defer cancel()
	for _, uid := range slices.Sorted(maps.Keys(left)) { // the order is always the same, so that a simulation repeats
		r := left[uid]
		e.recordLast(last, r)
		r.abandon()
	}
	if err != nil {
		return fmt.Errorf("waiting for attempts to end: %w; the next start sends them again under the same keys", err)
	}
	return nil
}

// advanced waits until no call of Advance is under way.
func (e *Engine) advanced(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		e.advancing.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// recordLast records the outcomes that arrived while nobody advanced the saga any more. Failing is no loss: the attempt is sent again.
func (e *Engine) recordLast(ctx context.Context, r *running) {
	defer e.survive(r.key, "recording", "the last outcomes of a saga")
	r.enter()
	defer r.leave()
	if len(r.waiting()) == 0 {
		return
	}
	if _, err := e.advanceOnce(ctx, r); err != nil {
		r.dropState() // the append may have been committed all the same
		e.Logger.Warn("an outcome could not be recorded before the end; its attempt will be sent again under the same key", "saga", r.key, "error", err)
	}
}

func (e *Engine) accepting() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.closed
}
