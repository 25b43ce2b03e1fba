package memory

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// ReadAll implements eventstore.Store. Appends take turns here, so a view is a number; the checkpoints are those of every store all the same.
func (s *Store) ReadAll(ctx context.Context, from eventstore.Checkpoint, filter eventstore.Filter, limit int) (eventstore.Page, error) {
	if err := ctx.Err(); err != nil {
		return eventstore.Page{}, fmt.Errorf("reading all events: %w", err)
	}
	if limit < 1 {
		return eventstore.NewPage(nil, from, from, false, 0), nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := from
	if c.Until == nil {
		c.Until, c.UntilFloor = &eventstore.View{Epoch: epoch, Min: s.txid + 1, Max: s.txid + 1}, s.position
	}
	var events []eventstore.Recorded
	for i := range s.all {
		e := &s.all[i]
		t := eventstore.Token{Epoch: epoch, Transaction: s.txids[e.Position]}
		if e.Position > c.Position && c.Until.Sees(t) && !c.Done.Sees(t) && filter.Matches(e) {
			events = append(events, *e)
		}
	}
	next := eventstore.Checkpoint{Done: *c.Until, Floor: c.UntilFloor}
	last := c.UntilFloor
	if len(events) > limit {
		events = events[:limit]
		last = events[limit-1].Position
		next = c
		next.Position = last
	}
	return eventstore.NewPage(cloned(events), c, next, next.Until != nil || s.position > c.UntilFloor, s.position-last), nil
}

// sorted returns the keys of a map in their order: what the store does first must not depend on chance.
func sorted[V any](m map[uuid.UUID]V) []uuid.UUID {
	return slices.SortedFunc(maps.Keys(m), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
}

// upTo returns the first of all, limit at most.
func upTo[T any](limit int, all []T) []T { return all[:min(max(limit, 0), len(all))] }

// remove drops the events of a stream.
func (s *Store) remove(name string) {
	for _, e := range s.streams[name].events {
		delete(s.ids, e.ID)
		delete(s.txids, e.Position)
	}
	s.all = slices.DeleteFunc(s.all, func(e eventstore.Recorded) bool { return e.Stream == name })
	s.streams[name].events = nil
}
