package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/panics"
)

const (
	// recoverEvery is how often every unfinished saga is queued, in case an event or a notification was lost.
	recoverEvery = 5 * time.Minute
	// storePoll is how often an event store that is away is asked whether it is back.
	storePoll = 500 * time.Millisecond
)

// recovery queues every saga that is recorded and not finished: when this process begins to lead, whether or not an event for the saga's object
// arrives, and from time to time. It runs only while this process leads.
type recovery struct{ r *SagaReconciler }

// Start implements manager.Runnable.
func (v *recovery) Start(ctx context.Context) error {
	r := v.r
	select {
	case <-r.started:
	case <-ctx.Done():
		return nil
	}
	for ctx.Err() == nil {
		v.round(ctx)
	}
	return nil
}

// round queues every unfinished saga, and waits until it is time to do so again.
func (v *recovery) round(ctx context.Context) {
	again := time.After(v.r.jitter(recoverEvery))
	if err := v.r.queueUnfinished(ctx); err != nil {
		v.r.Logger.Warn("unfinished sagas could not be looked up; trying again", "error", err)
		again = time.After(v.r.jitter(2 * storePoll))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
			return
		case <-v.r.lost:
			v.awaitStore(ctx)
		}
	}
}

// awaitStore waits until the event store answers, and queues what waited for it: backing off must not outlast the outage.
func (v *recovery) awaitStore(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(v.r.jitter(storePoll)):
		}
		if err := v.r.Engine.Unfinished(ctx, func(engine.Key) bool { return false }); err == nil {
			break
		}
	}
	v.r.lost.clear()
	for _, k := range v.r.notes.failing() {
		v.r.add(k)
	}
}

func (r *SagaReconciler) queueUnfinished(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("looking for unfinished sagas panicked: %v\n%s", p, debug.Stack())
		}
	}()
	n := 0
	err = r.Engine.Unfinished(ctx, func(k engine.Key) bool {
		if r.Watches(k.Namespace) {
			r.notes.change(k, func(n *note) { n.doubted = true })
			r.countUnfinished(ctx, k)
			r.add(k)
			n++
		}
		return ctx.Err() == nil
	})
	if err == nil && ctx.Err() == nil {
		r.counted(ctx)
	}
	if n > 0 {
		r.Logger.Info("queued unfinished sagas", "count", n)
	}
	return err
}

// jitter draws a time from [d/2, 3d/2), so that what many do periodically does not happen at once.
func (r *SagaReconciler) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(r.Random()%uint64(d))
}

// signal says that something has happened at least once since somebody last waited for it. Raising it never blocks.
type signal chan struct{}

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

func (s signal) clear() {
	select {
	case <-s:
	default:
	}
}

// guard keeps a panic from ending the process.
func guard(log *slog.Logger, doing string) {
	if p := recover(); p != nil {
		panics.Report(log, doing, p)
	}
}
