package aggregate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Defaults of Options.
const (
	// DefaultAttempts is how often a command is run before a conflict is reported.
	DefaultAttempts = 5
	// DefaultPageSize is how many events are read at once.
	DefaultPageSize = 256
	// DefaultSnapshotTimeout bounds how long saving a snapshot may keep a caller.
	DefaultSnapshotTimeout = 2 * time.Second
)

// The pause after the n-th loss is drawn from 0 to firstPause doubled n-1 times, at most maxPause.
const (
	firstPause = 5 * time.Millisecond
	maxPause   = 500 * time.Millisecond
)

// Options are what a repository works with. The zero value is good.
type Options[A any] struct {
	// Attempts is how often a command is run, counting the first time, when others append to its stream meanwhile; DefaultAttempts by default.
	Attempts int
	// PageSize is how many events are read at once; DefaultPageSize by default.
	PageSize int
	// SnapshotTimeout bounds how long saving a snapshot may keep a caller; DefaultSnapshotTimeout by default.
	SnapshotTimeout time.Duration
	// Messages, where given, returns what is to be committed to the outbox together with the events of a command. a is the aggregate with the state after them, and the version before.
	Messages func(a A, events []eventstore.Event) []eventstore.Message
	Logger   *slog.Logger
	// Clock measures how long folding takes; the system's by default.
	Clock func() time.Time
	// Random returns a number from 0 to n-1; the system's chance by default. Sleep pauses until d has passed or ctx is done, which is an error.
	Random func(n int64) int64
	Sleep  func(ctx context.Context, d time.Duration) error
}

func (o *Options[A]) setDefaults() {
	if o.Attempts <= 0 {
		o.Attempts = DefaultAttempts
	}
	if o.PageSize <= 0 {
		o.PageSize = DefaultPageSize
	}
	if o.SnapshotTimeout <= 0 {
		o.SnapshotTimeout = DefaultSnapshotTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Int64N
	}
	if o.Sleep == nil {
		o.Sleep = sleep
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Option says something about one command.
type Option func(*call)

type call struct{ metadata eventstore.Metadata }

// WithMetadata puts metadata on the events of the command: what it belongs to, what caused it, who asked for it.
func WithMetadata(m eventstore.Metadata) Option { return func(c *call) { c.metadata = m } }

// Result is what a command came to.
type Result struct {
	// Version is the stream's after the command.
	Version int64
	// Token is what a reader waits for to see the events. It is zero when there are none.
	Token eventstore.Token
	// Events are those appended; none when the command applied nothing.
	Events []eventstore.Event
}

// Repository loads aggregates of one kind and runs commands on them. It keeps nothing in memory between two calls, and is safe for concurrent use.
type Repository[A Aggregate[S], S State[S]] struct {
	store   eventstore.Store
	kind    Kind[A, S]
	options Options[A]
}

// NewRepository returns a repository of a kind of aggregate. It fails when the kind is not complete, or wants snapshots of a state that JSON cannot keep.
func NewRepository[A Aggregate[S], S State[S]](store eventstore.Store, kind Kind[A, S], options Options[A]) (*Repository[A, S], error) {
	if store == nil {
		return nil, fmt.Errorf("making a repository of %q: a store is required", kind.Category)
	}
	if err := kind.check(); err != nil {
		return nil, fmt.Errorf("making a repository of %q: %w", kind.Category, err)
	}
	options.setDefaults()
	return &Repository[A, S]{store: store, kind: kind, options: options}, nil
}

// Load returns an aggregate to look at. It fails with ErrNotFound when the aggregate has no events. What is applied to it goes nowhere; Update changes
// aggregates.
func (r *Repository[A, S]) Load(ctx context.Context, id string) (A, error) {
	var none A
	stream, err := r.kind.stream(id)
	if err != nil {
		return none, fmt.Errorf("loading %w", err)
	}
	loaded, err := r.load(ctx, stream, id)
	if err != nil {
		return none, err
	}
	return loaded.aggregate, nil
}

// Update loads an aggregate, runs a command on it and appends the events that the command applied. When another writer was faster, it does all of that again,
// up to Options.Attempts times, so the command must be free of effects besides Apply. A command that applies nothing is a success that appends nothing.
//
// The command's own error is returned as it is. Other errors are ErrNotFound, an *InvariantError when the new state violates an invariant, a *ConflictError,
// those of the store, and ErrUnknownFate when the store does not say what became of the append; in every case but the last, nothing was appended.
func (r *Repository[A, S]) Update(ctx context.Context, id string, command func(A) error, options ...Option) (Result, error) {
	stream, err := r.kind.stream(id)
	if err != nil {
		return Result{}, fmt.Errorf("updating %w", err)
	}
	for attempt := 1; ; attempt++ {
		loaded, err := r.load(ctx, stream, id)
		if err != nil {
			return Result{}, err
		}
		result, lost, err := r.run(ctx, stream, loaded, command, options)
		if lost == nil || err != nil {
			return result, err
		}
		if attempt >= r.options.Attempts {
			return Result{}, &ConflictError{Stream: stream, Attempts: attempt, Err: lost}
		}
		if err := r.pause(ctx, attempt); err != nil {
			return Result{}, fmt.Errorf("updating %s: after losing to another writer, nothing was appended: %w", stream, err)
		}
	}
}

// Create runs a command on an aggregate that must not exist yet, and is otherwise Update. It fails with ErrExists when the aggregate has events.
func (r *Repository[A, S]) Create(ctx context.Context, id string, command func(A) error, options ...Option) (Result, error) {
	stream, err := r.kind.stream(id)
	if err != nil {
		return Result{}, fmt.Errorf("creating %w", err)
	}
	loaded, err := r.begin(stream, id)
	if err != nil {
		return Result{}, err
	}
	result, lost, err := r.run(ctx, stream, loaded, command, options)
	if err == nil && lost != nil {
		return Result{}, fmt.Errorf("creating %s: %w: %w", stream, ErrExists, lost)
	}
	return result, err
}

// run runs a command and appends its events. lost is the append's error when another writer was faster.
func (r *Repository[A, S]) run(ctx context.Context, stream string, loaded *folded[A], command func(A) error, options []Option) (_ Result, lost, _ error) {
	a, root := loaded.aggregate, loaded.aggregate.root()
	if err := guarded("running a command on", stream, func() error { return command(a) }); err != nil {
		return Result{}, nil, err
	}
	if root.refused != nil {
		return Result{}, nil, fmt.Errorf("running a command on %s: %w", stream, root.refused)
	}
	if len(root.uncommitted) == 0 {
		return Result{Version: root.version}, nil, nil
	}
	events, messages, err := r.encode(stream, a, options)
	if err != nil {
		return Result{}, nil, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, nil, fmt.Errorf("appending to %s: nothing was appended: %w", stream, err)
	}
	done, err := r.store.Append(ctx, eventstore.Append{Stream: stream, Expected: root.version, Events: events, Messages: messages})
	switch {
	case errors.Is(err, eventstore.ErrWrongVersion):
		return Result{}, err, nil
	case err != nil:
		return Result{}, nil, appendError(err)
	}
	loaded.since += int64(len(events))
	loaded.last = events[len(events)-1].ID
	root.committed(done.Version)
	r.saveSnapshot(ctx, stream, loaded)
	return Result{Version: done.Version, Token: done.Token, Events: events}, nil, nil
}

// encode checks the state after a command and makes what is to be appended.
func (r *Repository[A, S]) encode(stream string, a A, options []Option) ([]eventstore.Event, []eventstore.Message, error) {
	root := a.root()
	var violated error
	if err := guarded("validating", stream, func() error { violated = root.ValidateState(); return nil }); err != nil {
		return nil, nil, err
	}
	if violated != nil {
		return nil, nil, &InvariantError{Stream: stream, Err: violated}
	}
	var c call
	for _, o := range options {
		o(&c)
	}
	events := make([]eventstore.Event, len(root.uncommitted))
	for i, event := range root.uncommitted {
		var err error
		if events[i], err = r.kind.Events.Encode(event, c.metadata); err != nil {
			return nil, nil, fmt.Errorf("appending to %s: %w", stream, err)
		}
	}
	if r.options.Messages == nil {
		return events, nil, nil
	}
	var messages []eventstore.Message
	err := guarded("making the messages of", stream, func() error { messages = r.options.Messages(a, events); return nil })
	return events, messages, err
}

// pause waits after the n-th loss: at random, so that those who lost together do not meet again.
func (r *Repository[A, S]) pause(ctx context.Context, n int) error {
	most := min(firstPause<<min(n-1, 16), maxPause)
	return r.options.Sleep(ctx, time.Duration(r.options.Random(int64(most)+1)))
}
