package simulation

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
)

// storeTimeout is how long an operator waits for the database.
const storeTimeout = 10 * time.Second

// store is the event store that both operators share.
type store struct {
	w     *World
	truth *memory.Store
	// writes are all that were committed, so that the last ones can be lost; kept only where that may happen.
	writes []func(*memory.Store)
}

func newStore(w *World) *store { return &store{w: w, truth: memory.New()} }

// committed remembers a write that can be made again.
func (s *store) committed(again func(*memory.Store)) {
	if s.w.LoseCommits {
		s.writes = append(s.writes, again)
	}
}

// loseLast forgets the last n writes, as a standby does that is promoted without them.
func (s *store) loseLast(n int) {
	s.writes = s.writes[:max(len(s.writes)-n, 0)]
	s.truth = memory.New()
	for _, again := range s.writes {
		again(s.truth)
	}
}

// connection is a node's way to the store.
type connection struct {
	eventstore.Store // what no operator calls here
	s                *store
	n                *node
}

// call makes a call of the store by the fate that it meets. do must return what the call returns.
func (c *connection) call(ctx context.Context, class class, name string, do func(*memory.Store) error) error {
	name = fmt.Sprintf("%s %s", c.n.id, name)
	name = fmt.Sprintf("%s #%d", name, c.s.w.bus.count(name))
	f, gaveUp := c.s.w.bus.await(ctx, c.n, class, name)
	if gaveUp {
		return fmt.Errorf("calling the store: %w: %w", eventstore.ErrUnavailable, ctx.Err())
	}
	switch f {
	case failedBefore:
		return fmt.Errorf("calling the store: connection refused: %w", eventstore.ErrUnavailable)
	case failedAfter:
		_ = do(c.s.truth)
		return fmt.Errorf("calling the store: connection reset: %w", eventstore.ErrUnavailable)
	case hungBefore, hungAfter:
		if f == hungAfter {
			_ = do(c.s.truth)
		}
		over, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		c.s.w.bus.hang(over, c.n, name)
		return fmt.Errorf("calling the store: %w: time-out", eventstore.ErrUnavailable)
	}
	return do(c.s.truth)
}

// Append implements eventstore.Store.
func (c *connection) Append(ctx context.Context, a eventstore.Append) (r eventstore.Appended, err error) {
	err = c.call(ctx, storeWrite, "append "+c.s.w.named(a.Stream), func(s *memory.Store) error {
		r, err = s.Append(context.WithoutCancel(ctx), a)
		if err == nil {
			c.s.committed(func(s *memory.Store) { _, _ = s.Append(context.Background(), a) })
			c.s.w.books.appended(c.n, &a)
		}
		return err
	})
	return r, err
}

// Load implements eventstore.Store.
func (c *connection) Load(ctx context.Context, stream string, from int64, limit int) (all []eventstore.Recorded, err error) {
	err = c.call(ctx, storeRead, "load "+c.s.w.named(stream), func(s *memory.Store) error {
		all, err = s.Load(context.WithoutCancel(ctx), stream, from, limit)
		c.s.w.books.loaded(c.n, all)
		return err
	})
	return all, err
}

// Version implements eventstore.Store.
func (c *connection) Version(ctx context.Context, stream string) (v int64, err error) {
	err = c.call(ctx, storeRead, "version "+c.s.w.named(stream), func(s *memory.Store) error {
		v, err = s.Version(context.WithoutCancel(ctx), stream)
		return err
	})
	return v, err
}

// UnfinishedSagas implements eventstore.Store.
func (c *connection) UnfinishedSagas(ctx context.Context, after uuid.UUID, limit int) (all []eventstore.SagaState, err error) {
	err = c.call(ctx, storeRead, "unfinished", func(s *memory.Store) error {
		all, err = s.UnfinishedSagas(context.WithoutCancel(ctx), after, limit)
		return err
	})
	return all, err
}

// SagaState implements eventstore.Store.
func (c *connection) SagaState(ctx context.Context, uid uuid.UUID) (row eventstore.SagaState, err error) {
	err = c.call(ctx, storeRead, "state "+c.s.w.named("saga-"+uid.String()), func(s *memory.Store) error {
		row, err = s.SagaState(context.WithoutCancel(ctx), uid)
		return err
	})
	return row, err
}

// PutAnswer implements eventstore.Store.
func (c *connection) PutAnswer(ctx context.Context, a eventstore.Answer) (kept bool, err error) {
	err = c.call(ctx, storeWrite, "put answer "+c.s.w.named("saga-"+a.UID.String()), func(s *memory.Store) error {
		if kept, err = s.PutAnswer(context.WithoutCancel(ctx), a); err == nil && kept {
			c.s.committed(func(s *memory.Store) { _, _ = s.PutAnswer(context.Background(), a) })
			c.s.w.news()
		}
		return err
	})
	return kept, err
}

// Answers implements eventstore.Store.
func (c *connection) Answers(ctx context.Context, uid uuid.UUID, maxResponse int, steps ...string) (all []eventstore.Answer, err error) {
	err = c.call(ctx, storeRead, "answers "+c.s.w.named("saga-"+uid.String()), func(s *memory.Store) error {
		all, err = s.Answers(context.WithoutCancel(ctx), uid, maxResponse, steps...)
		return err
	})
	return all, err
}

// Nudge implements eventstore.Store.
func (c *connection) Nudge(ctx context.Context, uid uuid.UUID) error {
	return c.call(ctx, storeWrite, "nudge "+c.s.w.named("saga-"+uid.String()), func(s *memory.Store) error {
		err := s.Nudge(context.WithoutCancel(ctx), uid)
		if err == nil {
			c.s.committed(func(s *memory.Store) { _ = s.Nudge(context.Background(), uid) })
			c.s.w.news()
		}
		return err
	})
}

// TakeAnswered implements eventstore.Store.
func (c *connection) TakeAnswered(ctx context.Context, limit int) (all []eventstore.SagaState, err error) {
	err = c.call(ctx, storeWrite, "take answered", func(s *memory.Store) error {
		all, err = s.TakeAnswered(context.WithoutCancel(ctx), limit)
		return err
	})
	return all, err
}

// PutCallback implements eventstore.Store.
func (c *connection) PutCallback(ctx context.Context, cb eventstore.Callback) error {
	return c.call(ctx, storeWrite, fmt.Sprintf("put callback %s/%s/%s", c.s.w.named("saga-"+cb.UID.String()), cb.Step, cb.Direction), func(s *memory.Store) error {
		err := s.PutCallback(context.WithoutCancel(ctx), cb)
		c.s.committed(func(s *memory.Store) { _ = s.PutCallback(context.Background(), cb) })
		return err
	})
}

// Callback implements eventstore.Store.
func (c *connection) Callback(ctx context.Context, hash [32]byte) (cb eventstore.Callback, err error) {
	known, err := c.s.truth.Callback(context.Background(), hash)
	name := "callback"
	if err == nil {
		name = fmt.Sprintf("callback %s/%s/%s", c.s.w.named("saga-"+known.UID.String()), known.Step, known.Direction)
	}
	err = c.call(ctx, storeRead, name, func(s *memory.Store) error {
		cb, err = s.Callback(context.WithoutCancel(ctx), hash)
		return err
	})
	return cb, err
}

// news has operators look for what was put into the store for them, as an announcement does.
func (w *World) news() {
	for _, n := range w.nodes {
		if n != nil && n.state == nodeUp {
			w.later(0, n, n.id+" hears of news", func() { w.lookForNews(n) })
		}
	}
}
