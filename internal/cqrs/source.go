package cqrs

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// source is the store as a subscription reads it: the types of events that it handles and no others, and nothing at all while too much is parked.
type source struct {
	eventstore.Store
	types  []string
	report func(behind int64)
	full   atomic.Bool
	behind atomic.Int64
	began  atomic.Int64 // when a page was asked for the last time, in nanoseconds
}

// ReadAll implements eventstore.Store.
func (s *source) ReadAll(ctx context.Context, from eventstore.Checkpoint, filter eventstore.Filter, limit int) (eventstore.Page, error) {
	defer func() { s.began.Store(time.Now().UnixNano()) }()
	if s.full.Load() {
		return eventstore.NewPage(nil, from, from, false, s.behind.Load()), nil
	}
	filter.Types = s.types
	page, err := s.Store.ReadAll(ctx, from, filter, limit)
	if err == nil {
		s.behind.Store(page.Behind)
		s.report(page.Behind)
	}
	return page, err
}

// pageAge is how long ago the page was read that is being handled.
func (s *source) pageAge() time.Duration {
	return time.Duration(time.Now().UnixNano() - s.began.Load())
}
