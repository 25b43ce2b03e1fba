package aggregate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// folded is an aggregate and what it took to fold it.
type folded[A any] struct {
	aggregate A
	// since is how many events were folded since the snapshot, and took how long it took.
	since int64
	took  time.Duration
	// last is the id of the last event folded.
	last uuid.UUID
	// newer says that the stored snapshot is of newer code, which keeps ours out.
	newer bool
}

// begin returns an aggregate that does not exist yet.
func (r *Repository[A, S]) begin(stream, id string) (*folded[A], error) {
	f := &folded[A]{}
	return f, guarded("making", stream, func() error { f.aggregate = r.kind.fresh(id); return nil })
}

// load folds the stream of an aggregate, from its snapshot on where there is one that fits.
func (r *Repository[A, S]) load(ctx context.Context, stream, id string) (*folded[A], error) {
	f, err := r.begin(stream, id)
	if err != nil {
		return nil, err
	}
	if !r.kind.Snapshots.none() {
		resumed, err := r.resume(ctx, stream, f)
		if err != nil {
			return nil, err
		}
		if resumed {
			return f, nil
		}
		newer := f.newer
		if f, err = r.begin(stream, id); err != nil {
			return nil, err
		}
		f.newer = newer
	}
	if err := r.fold(ctx, stream, f, nil); err != nil {
		return nil, err
	}
	if f.aggregate.root().version == 0 {
		return nil, fmt.Errorf("loading %s: %w", stream, ErrNotFound)
	}
	return f, nil
}

// resume begins with the snapshot and folds the rest. It reports false when there is no snapshot to begin with, or none of this stream as it is now.
func (r *Repository[A, S]) resume(ctx context.Context, stream string, f *folded[A]) (bool, error) {
	var last uuid.UUID
	var state S
	snap, err := r.store.LoadSnapshot(ctx, stream)
	if err == nil {
		f.newer = snap.SchemaVersion > r.kind.SchemaVersion
		err = guarded("decoding the snapshot of", stream, func() (err error) { last, state, err = r.decode(snap); return err })
	} else if !errors.Is(err, eventstore.ErrNotFound) && (ctx.Err() != nil || errors.Is(err, eventstore.ErrUnavailable)) {
		return false, err
	}
	if err == nil {
		root := f.aggregate.root()
		root.LoadFromSnapshot(root.id, snap.Version, state)
		if err = r.fold(ctx, stream, f, &last); err != nil && !errors.Is(err, errOtherHistory) {
			return false, err
		}
	}
	r.passedOver(ctx, stream, err)
	return err == nil, nil
}

// decode returns what is in a snapshot of this code's schema version.
func (r *Repository[A, S]) decode(snap eventstore.Snapshot) (last uuid.UUID, state S, err error) {
	if snap.SchemaVersion != r.kind.SchemaVersion {
		return last, state, fmt.Errorf("it is of schema version %d, and this program's is %d: %w", snap.SchemaVersion, r.kind.SchemaVersion, errOtherSchema)
	}
	return decodeSnapshot[S](snap)
}

// passedOver says why a snapshot is not used; that there is none, or one of other code, is nothing unusual.
func (r *Repository[A, S]) passedOver(ctx context.Context, stream string, err error) {
	if err == nil || errors.Is(err, eventstore.ErrNotFound) {
		return
	}
	level := slog.LevelWarn
	if errors.Is(err, errOtherSchema) {
		level = slog.LevelDebug
	}
	r.options.Logger.Log(ctx, level, "a snapshot is not used; the aggregate is folded from its first event", "stream", stream, "error", err)
}

// Why a snapshot is not used.
var (
	errOtherSchema  = errors.New("it was taken by other code")
	errOtherHistory = errors.New("its last event is not in the stream, which was restored to an earlier day perhaps")
)

// fold folds the rest of the stream. With resumed, the id of the snapshot's last event, reading begins at that event and not behind it: a stream that was restored to
// an earlier day, and perhaps grew again differently, shows itself without another round trip.
func (r *Repository[A, S]) fold(ctx context.Context, stream string, f *folded[A], resumed *uuid.UUID) error {
	root := f.aggregate.root()
	from := root.version + 1
	if resumed != nil {
		from = root.version
	}
	for {
		page, err := r.store.Load(ctx, stream, from, r.options.PageSize)
		if err != nil {
			return err
		}
		rest := page
		if resumed != nil {
			if len(page) == 0 || page[0].Version != root.version || page[0].ID != *resumed {
				return errOtherHistory
			}
			f.last, rest, resumed = *resumed, page[1:], nil
		}
		if err := r.foldPage(stream, f, rest); err != nil {
			return err
		}
		if len(page) < r.options.PageSize {
			return nil
		}
		from = root.version + 1
	}
}

func (r *Repository[A, S]) foldPage(stream string, f *folded[A], page []eventstore.Recorded) error {
	started := r.options.Clock()
	root := f.aggregate.root()
	for i := range page {
		if page[i].Version != root.version+1 {
			return fmt.Errorf("loading %s: after version %d comes version %d: events are missing", stream, root.version, page[i].Version)
		}
		event, err := r.kind.Events.Decode(page[i])
		if err != nil {
			return err
		}
		if err := guarded(fmt.Sprintf("folding event %s, version %d of", page[i].Type, page[i].Version), stream, func() error {
			return root.LoadFromHistory(root.id, event)
		}); err != nil {
			return err
		}
		f.last = page[i].ID
	}
	f.since += int64(len(page))
	f.took += r.options.Clock().Sub(started)
	return nil
}

// stored is the form of a snapshot's data. Event is the id of the last event folded.
type stored struct {
	Event uuid.UUID       `json:"event"`
	State json.RawMessage `json:"state"`
}

// decodeSnapshot returns the state in a snapshot and the id of the last event folded. It fails when the data is damaged or the state violates an invariant.
func decodeSnapshot[S State[S]](snap eventstore.Snapshot) (last uuid.UUID, state S, err error) {
	var s stored
	if err := json.Unmarshal(snap.Data, &s); err != nil {
		return last, state, fmt.Errorf("its data is damaged: %w", err)
	}
	if snap.Version < 1 || s.Event == uuid.Nil || len(s.State) == 0 || string(s.State) == "null" {
		return last, state, errors.New("its data is damaged: it has no version, no last event or no state")
	}
	if err := json.Unmarshal(s.State, &state); err != nil {
		return last, state, fmt.Errorf("its state is damaged: %w", err)
	}
	if err := state.Validate(); err != nil {
		return last, state, fmt.Errorf("its state violates an invariant: %w", err)
	}
	return s.Event, state, nil
}

// saveSnapshot takes a snapshot when the policy wants one. The events are committed already, so failing is only worth a word.
func (r *Repository[A, S]) saveSnapshot(ctx context.Context, stream string, f *folded[A]) {
	if f.newer || !r.kind.Snapshots.wants(f.since, f.took) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.SnapshotTimeout)
	defer cancel()
	err := guarded("saving a snapshot of", stream, func() error {
		root := f.aggregate.root()
		state, err := json.Marshal(root.state)
		if err != nil {
			return fmt.Errorf("encoding the state: %w", err)
		}
		data, err := json.Marshal(stored{Event: f.last, State: state})
		if err != nil {
			return fmt.Errorf("encoding the snapshot: %w", err)
		}
		return r.store.SaveSnapshot(ctx, eventstore.Snapshot{Stream: stream, Version: root.version, SchemaVersion: r.kind.SchemaVersion, Data: data})
	})
	if err != nil {
		r.options.Logger.WarnContext(ctx, "saving a snapshot failed; loading takes longer until one is saved", "stream", stream, "error", err)
	}
}
