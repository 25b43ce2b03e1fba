package engine

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// maxComputation limits one rendering of settings and one evaluation of an output, from the moment at
// which it gets a processor. What they may cost takes less than that on an idle machine.
const maxComputation = time.Second

// computations returns how many computations run at a time: enough to use every processor, and few
// enough that each makes progress.
func computations() int { return max(4, 2*runtime.GOMAXPROCS(0)) }

// compute runs f in the pool of computations and returns after f has. The context of f ends with ctx or
// after maxComputation. f must not wait for anything, because other namespaces wait for its place. If
// ctx ends before f has started, compute returns the error of ctx and f never runs.
func (e *Engine) compute(ctx context.Context, namespace string, f func(ctx context.Context)) error {
	var taken atomic.Bool // by the pool, or by the end of ctx
	var failure *computationPanic
	done := make(chan struct{})
	e.computing.submit(namespace, func() {
		if !taken.CompareAndSwap(false, true) {
			return
		}
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				failure = &computationPanic{value: p, stack: debug.Stack()}
			}
		}()
		ctx, cancel := context.WithTimeout(ctx, maxComputation)
		defer cancel()
		f(ctx)
	})
	select {
	case <-done:
	case <-ctx.Done():
		if taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		<-done // soon: f ends with its context
	}
	if failure != nil {
		panic(failure) // where the caller expects it
	}
	return nil
}

// computationPanic is a panic of a computation, in the goroutine that waits for it.
type computationPanic struct {
	value any
	stack []byte
}

func (p *computationPanic) String() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }
