package aggregate

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventtype"
)

// Kind describes a kind of aggregate: A is a pointer to a struct that embeds Root[S].
type Kind[A Aggregate[S], S State[S]] struct {
	// Category begins the name of every stream: the aggregate "1042" of category "order" is stream "order-1042". It has no "-" and never changes.
	Category string
	// New returns an aggregate that does not exist yet, another one at each call.
	New func() A
	// Events are the event types that the aggregate applies and folds.
	Events *eventtype.Registry
	// SchemaVersion is that of S and its Evolve, counted from 1. A snapshot taken under another one is not used. Count it up when S, or what Evolve makes of an event, changes.
	SchemaVersion int
	Snapshots     Policy
}

// Policy says when to take a snapshot after an append. The zero value is never, and no snapshot is looked for either.
type Policy struct {
	// Every takes one when at least so many events have been folded since the last one. 0 is never.
	Every int
	// Slower takes one when folding the events took longer. 0 is never.
	Slower time.Duration
}

func (p Policy) none() bool { return p == Policy{} }

// wants reports whether a snapshot is due.
func (p Policy) wants(folded int64, took time.Duration) bool {
	return p.Every > 0 && folded >= int64(p.Every) || p.Slower > 0 && took > p.Slower
}

func (k *Kind[A, S]) check() error {
	switch {
	case k.Category == "" || strings.ContainsAny(k.Category, "-\x00") || !utf8.ValidString(k.Category):
		return fmt.Errorf(`the category %q is not text without "-"`, k.Category)
	case k.New == nil || k.Events == nil:
		return errors.New("it needs New and Events")
	case k.SchemaVersion < 1 || k.SchemaVersion > math.MaxInt32:
		return fmt.Errorf("the schema version %d is not between 1 and %d", k.SchemaVersion, math.MaxInt32)
	case k.Snapshots.Every < 0 || k.Snapshots.Slower < 0:
		return errors.New("the snapshot policy is negative")
	case k.Snapshots.none():
		return nil
	}
	if err := eventtype.Lossless(reflect.TypeFor[S]()); err != nil {
		return fmt.Errorf("its state cannot be kept in a snapshot: %w", err)
	}
	return nil
}

// stream names the stream of an aggregate. It fails with an eventstore.ErrInvalid when there can be none.
func (k *Kind[A, S]) stream(id string) (string, error) {
	stream := k.Category + "-" + id
	if id == "" || len(stream) > eventstore.MaxStreamIDBytes || !utf8.ValidString(id) || strings.ContainsRune(id, 0) {
		return "", fmt.Errorf("%s %q: %w: an id is text without NUL, from 1 byte to %d", k.Category, id, eventstore.ErrInvalid, eventstore.MaxStreamIDBytes-len(k.Category)-1)
	}
	return stream, nil
}

// fresh returns an aggregate of this id that does not exist yet.
func (k *Kind[A, S]) fresh(id string) A {
	a := k.New()
	root := a.root()
	var none S
	root.LoadFromSnapshot(id, 0, none)
	root.known = k.Events.Check
	return a
}
