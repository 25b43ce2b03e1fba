package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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
	moved   bool      // whether it has moved past something since
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
	f.lag(page.Behind+int64(len(page.Events)), page.Events[0].RecordedAt)
	began := time.Now()
	err = f.handlePage(ctx, &page)
	if err == nil {
		f.metrics.handled(f.def.name, f.state.Generation, len(page.Events), time.Since(began))
		f.lag(f.state.Behind, f.state.ReadUntil)
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
	defer f.keepLease(ctx)()
	tx, err := f.pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errAway, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after the commit it does nothing
	if err := f.handleInTime(ctx, tx, next.Generation, events); err != nil {
		return err
	}
	next.Handled += int64(len(events))
	if len(events) > 0 {
		next.ReadUntil = events[len(events)-1].RecordedAt
	}
	if err := save(ctx, tx, &next, f.lease); err != nil {
		return away(ctx, tx.Conn(), err)
	}
	if err := tx.Commit(ctx); err != nil {
		if class := postgres.Classify(err); class != postgres.Permanent && postgres.Constraint(err) == "" {
			err = fmt.Errorf("%w: %w", errAway, err)
		}
		return err
	}
	f.state, f.saved, f.moved = next, time.Now(), false
	return nil
}

// handleInTime handles some events as long as its patience lasts. What the database takes to begin and to commit is not the handlers' fault, and does not count.
func (f *feeder) handleInTime(ctx context.Context, tx pgx.Tx, generation int, events []eventstore.Recorded) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.patience, errSlow)
	defer cancel()
	err := f.handleAll(ctx, &Tx{tx: tx, generation: generation}, events)
	if err == nil {
		return nil
	}
	err = away(ctx, tx.Conn(), err)
	if errors.Is(context.Cause(ctx), errSlow) {
		err = fmt.Errorf("%w (%s): %w", errSlow, f.patience, err)
	}
	return err
}

// handleAll handles some events, and sends what their handlers have queued.
func (f *feeder) handleAll(ctx context.Context, t *Tx, events []eventstore.Recorded) error {
	for _, e := range events {
		if f.skipped[e.ID] {
			continue
		}
		if err := f.def.handle(ctx, t, e); err != nil {
			return err
		}
	}
	return t.flush(ctx)
}

var (
	// errSlow says that a handler took too long.
	errSlow = errors.New("handling took longer than it may")
	// errAway says that the database did not do what it was asked for now, whatever the events are.
	errAway = errors.New("the database is away, or is busy with others")
)

// passes reports whether an error passes by itself. One of a handler that was too slow is the handler's.
func passes(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, errAway) && !errors.Is(err, errSlow)
}

// away marks an error as errAway where it is one of the projection's own transaction, and of the kind that passes. A handler may come with an error that only looks like one: of a file that
// ended, of a context of its own, of a service that it should not have called. That is this event's, or it would be tried again for ever and never be named.
func away(ctx context.Context, conn *pgx.Conn, err error) error {
	const failed = 'E'
	var pg *pgconn.PgError
	switch own := ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)); {
	case own, errors.Is(err, errStale):
		return err
	case conn.IsClosed():
		return fmt.Errorf("%w: %w", errAway, err)
	case errors.As(err, &pg) && conn.PgConn().TxStatus() == failed:
		if class := postgres.Classify(pg); class == postgres.Unavailable || class == postgres.Conflict && postgres.Constraint(pg) == "" {
			return fmt.Errorf("%w: %w", errAway, err)
		}
	}
	return err
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
	failure := &Failure{EventID: e.ID, Stream: e.Stream, Version: e.Version, Position: e.Position, Type: e.Type, RecordedAt: e.RecordedAt, Error: text, At: time.Now().UTC()}
	if err := stop(ctx, f.pool, &f.state, failure); err != nil {
		return err
	}
	f.state.Failure = failure
	f.log.Error("a projection has stopped at an event; `manager projections retry` or `skip` sends it on", "event", failure.String())
	return nil
}

// lookAgain sees whether somebody has sent a stopped projection on, keeps the lease meanwhile, and says how far the read model falls behind.
func (f *feeder) lookAgain(ctx context.Context) (err error) {
	if f.state.Behind, err = renewStopped(ctx, f.pool, &f.state, f.lease); err != nil {
		return err
	}
	f.lag(f.state.Behind, f.state.Failure.RecordedAt)
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
			f.log.Info("going on")
		}
	}
	f.metrics.stopped(f.def.name, f.state.Generation, f.state.Failure != nil)
	return nil
}

// advanceIdle moves the checkpoint past what the projection does not read. That it is put down now and then only costs reading it again.
func (f *feeder) advanceIdle(ctx context.Context, page *eventstore.Page) error {
	f.moved = f.moved || page.Next.Floor > f.state.Checkpoint.Floor || page.Next.Until != nil
	f.state.Checkpoint, f.state.Behind = page.Next, page.Behind
	f.lag(f.state.Behind, f.state.ReadUntil)
	if quiet := time.Since(f.saved); quiet < saveEvery || !f.moved && quiet < min(f.lease/3, aliveEvery) {
		return nil
	}
	f.saved, f.moved = time.Now(), false
	return save(ctx, f.pool, &f.state, f.lease)
}

// lag says how many positions are left, and from when the read model is: the time of the oldest event that is left, where it is known, or else of the last that was handled.
func (f *feeder) lag(behind int64, since time.Time) {
	var age time.Duration
	if behind > 0 && !since.IsZero() {
		age = time.Since(since)
	}
	f.metrics.lag(f.def.name, f.state.Generation, behind, age)
}

// keepLease renews the lease while handlers work, from a connection of its own. The function it returns ends that, and no renewal comes after it.
func (f *feeder) keepLease(ctx context.Context) func() {
	ctx, cancel := context.WithCancel(ctx)
	s := f.state
	var wg sync.WaitGroup
	wg.Go(func() {
		for wait(ctx, nil, f.lease/3) == nil {
			if err := guarded(func() error { return renew(ctx, f.pool, &s, f.lease) }); err != nil {
				f.log.Debug("the lease was not renewed", "error", err)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// jitter spreads a pause between half of it and all of it.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
