package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/postgres"
)

// feeder brings events to one generation of a projection while it holds the lease.
type feeder struct {
	*Runner
	def     *Definition
	state   State
	skipped map[uuid.UUID]bool
	saved   time.Time // when the checkpoint was last put down
	log     *slog.Logger
}

// feed takes the lease of a generation when it can be had, and follows the events until the lease is lost, the generation is retired or ctx is done.
func (r *Runner) feed(ctx context.Context, def *Definition, generation int) error {
	s, held, err := acquire(ctx, r.pool, def.name, generation, r.owner, r.lease)
	if err != nil || !held {
		return err
	}
	f := &feeder{Runner: r, def: def, state: s, saved: time.Now(), log: r.log.With("projection", def.name, "generation", generation)}
	f.log.Debug("following the events", "lease", s.LeaseEpoch)
	defer f.letGo(ctx)
	if f.skipped, err = skips(ctx, r.pool, def.name); err != nil {
		return err
	}
	return f.follow(ctx)
}

// letGo gives the lease back where it is still held.
func (f *feeder) letGo(ctx context.Context) {
	f.metrics.forget(f.def.name, f.state.Generation)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := release(ctx, f.pool, &f.state); err != nil && !errors.Is(err, errStale) {
		f.log.Debug("the lease was not given back; it runs out by itself", "error", err)
	}
}

// follow reads and handles page after page. It waits only when there is nothing to read.
func (f *feeder) follow(ctx context.Context) error {
	pause := minPoll
	for {
		wake := f.wake.subscribe()
		moved, err := f.step(ctx)
		if err != nil {
			return err
		}
		if moved {
			pause = minPoll
			continue
		}
		if f.state.Status == statusBuilding && f.state.Failure == nil {
			if err := f.takeOver(ctx); err != nil || f.state.Inline && f.state.Status == statusLive {
				return err // an inline generation is fed by the appends from now on
			}
			continue
		}
		if err := wait(ctx, wake, pause); err != nil {
			return err
		}
		pause = min(pause*2, maxPoll)
	}
}

// wait is until something has been appended, or the pause is over.
func wait(ctx context.Context, wake <-chan struct{}, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-wake:
		return nil
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// step reads one page and handles it. It reports whether there may be more right away.
func (f *feeder) step(ctx context.Context) (bool, error) {
	if f.state.Failure != nil {
		return false, f.lookAgain(ctx)
	}
	page, err := f.store.ReadAll(ctx, f.state.Checkpoint, eventstore.Filter{Categories: f.def.categories}, f.page)
	if err != nil {
		return false, fmt.Errorf("reading for projection %s: %w", f.def.name, err)
	}
	if len(page.Events) == 0 {
		return page.More, f.advanceIdle(ctx, &page)
	}
	began := time.Now()
	err = f.handlePage(ctx, &page)
	if err == nil {
		f.metrics.handled(f.def.name, f.state.Generation, len(page.Events), time.Since(began))
		f.progress()
		return true, nil
	}
	if errors.Is(err, errStale) || passes(ctx, err) {
		return false, err
	}
	if len(page.Events) > 1 { // find the one that it is about, and let all before it in
		return true, f.oneByOne(ctx, &page)
	}
	return false, f.fail(ctx, &page.Events[0], err)
}

// handlePage handles the events of a page and moves the checkpoint behind them, in one transaction.
func (f *feeder) handlePage(ctx context.Context, page *eventstore.Page) error {
	next := f.state
	next.Checkpoint, next.Behind = page.Next, page.Behind
	return f.transact(ctx, page.Events, next)
}

// transact handles some events and makes next the state of the generation.
func (f *feeder) transact(ctx context.Context, events []eventstore.Recorded, next State) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.patience, errSlow)
	defer cancel()
	defer func() {
		if err != nil && errors.Is(context.Cause(ctx), errSlow) {
			err = fmt.Errorf("%w (%s): %w", errSlow, f.patience, err)
		}
	}()
	defer f.keepLease(ctx)()
	tx, err := f.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after the commit it does nothing
	t := &Tx{tx: tx, generation: next.Generation}
	for _, e := range events {
		if f.skipped[e.ID] {
			continue
		}
		if err := f.def.handle(ctx, t, e); err != nil {
			return err
		}
	}
	if err := t.flush(ctx); err != nil {
		return err
	}
	next.Handled += int64(len(events))
	if len(events) > 0 {
		next.ReadUntil = events[len(events)-1].RecordedAt
	}
	if err := save(ctx, tx, &next, f.lease); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	f.state, f.saved = next, time.Now()
	return nil
}

// errSlow says that a handler took too long.
var errSlow = errors.New("handling took longer than it may")

// passes reports whether an error is the database's and passes by itself. One of a handler that was too slow is the handler's.
func passes(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return true
	}
	if errors.Is(err, errSlow) {
		return false
	}
	class := postgres.Classify(err)
	return class == postgres.Unavailable || class == postgres.Canceled || class == postgres.Conflict && postgres.Constraint(err) == ""
}

// oneByOne handles the events of a page each in a transaction of its own, until one fails.
func (f *feeder) oneByOne(ctx context.Context, page *eventstore.Page) error {
	for i := range page.Events {
		next := f.state
		next.Checkpoint = page.After(i + 1)
		err := f.transact(ctx, page.Events[i:i+1], next)
		switch {
		case err == nil:
		case errors.Is(err, errStale) || passes(ctx, err):
			return err
		default:
			return f.fail(ctx, &page.Events[i], err)
		}
	}
	return nil
}

// fail stops the projection at an event, loudly, until somebody retries or skips it.
func (f *feeder) fail(ctx context.Context, e *eventstore.Recorded, cause error) error {
	const longest = 2000
	text := cause.Error()
	if len(text) > longest {
		text = text[:longest] + "…"
	}
	failure := &Failure{EventID: e.ID, Stream: e.Stream, Version: e.Version, Position: e.Position, Type: e.Type, Error: text, At: time.Now().UTC()}
	if err := stop(ctx, f.pool, &f.state, failure); err != nil {
		return err
	}
	f.state.Failure = failure
	f.metrics.stopped(f.def.name, f.state.Generation, true)
	f.log.Error("a projection has stopped at an event; `manager projections retry` or `skip` sends it on", "event", failure.String())
	return nil
}

// lookAgain sees whether somebody has sent a stopped projection on, and keeps the lease meanwhile.
func (f *feeder) lookAgain(ctx context.Context) error {
	if err := renew(ctx, f.pool, &f.state, f.lease); err != nil {
		return err
	}
	all, err := generations(ctx, f.pool, f.def.name)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Generation == f.state.Generation && s.Failure == nil {
			if f.skipped, err = skips(ctx, f.pool, f.def.name); err != nil {
				return err
			}
			f.state.Failure = nil
			f.metrics.stopped(f.def.name, f.state.Generation, false)
			f.log.Info("going on")
		}
	}
	return nil
}

// advanceIdle moves the checkpoint past what the projection does not read. That it is put down now and then only costs reading it again.
func (f *feeder) advanceIdle(ctx context.Context, page *eventstore.Page) error {
	read := page.Next.Floor > f.state.Checkpoint.Floor || page.Next.Until != nil
	f.state.Checkpoint, f.state.Behind = page.Next, page.Behind
	f.progress()
	if quiet := time.Since(f.saved); quiet < saveEvery || !read && quiet < f.lease/3 {
		return nil
	}
	f.saved = time.Now()
	return save(ctx, f.pool, &f.state, f.lease)
}

func (f *feeder) progress() {
	var age time.Duration
	if f.state.Behind > 0 && !f.state.ReadUntil.IsZero() {
		age = time.Since(f.state.ReadUntil)
	}
	f.metrics.lag(f.def.name, f.state.Generation, f.state.Behind, age)
}

// keepLease renews the lease while handlers work, from a connection of its own. The function it returns ends that.
func (f *feeder) keepLease(ctx context.Context) func() {
	s := f.state
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(f.lease / 3)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if err := renew(ctx, f.pool, &s, f.lease); err != nil {
					f.log.Debug("the lease was not renewed", "error", err)
				}
			case <-done:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { close(done) }
}

// jitter spreads a pause between half of it and all of it.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
