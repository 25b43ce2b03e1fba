package projection

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
)

// InlineStore is a Store whose appends carry read models along: they move in the append's own transaction, so that whoever reads them after the append sees it. An append costs
// several round trips for that, and appends that touch the same rows wait for each other. An event that does not come through an InlineStore is seen by the
// next rebuild only. An error of a handler refuses the append.
type InlineStore struct {
	eventstore.Store
	db   beginner
	defs []*Definition
}

// beginner is a pool, or a transaction, which begins a savepoint.
type beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// NewInlineStore returns a store on a pool. The same definitions belong into Options.Inline of a Runner, which makes their first generations and builds them anew.
func NewInlineStore(pool *pgxpool.Pool, defs ...*Definition) (*InlineStore, error) {
	if err := check(defs); err != nil {
		return nil, err
	}
	return &InlineStore{Store: storepg.New(pool), db: pool, defs: defs}, nil
}

// Within returns the same store as a part of the caller's transaction, as postgres.Within does: what the caller does there, the events and the read models are committed
// together.
func (s *InlineStore) Within(tx pgx.Tx) *InlineStore {
	return &InlineStore{Store: storepg.Within(tx), db: tx, defs: s.defs}
}

// Append implements eventstore.Store.
func (s *InlineStore) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	done, err := s.AppendAll(ctx, []eventstore.Append{a})
	if err != nil {
		return eventstore.Appended{}, err
	}
	return done[0], nil
}

// AppendAll implements eventstore.Store.
func (s *InlineStore) AppendAll(ctx context.Context, all []eventstore.Append) (done []eventstore.Appended, err error) {
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		done, err = storepg.AppendAll(ctx, tx, all)
		if err != nil {
			return err
		}
		for _, def := range s.defs {
			if err := s.carry(ctx, tx, def, all, done); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, eventstore.ErrWrongVersion) || errors.Is(err, eventstore.ErrInvalid) || errors.Is(err, eventstore.ErrArchived) {
			return nil, err
		}
		return nil, storepg.Classified(err)
	}
	return done, nil
}

// ErrOtherForm says that the read model that is live is not the one that this code writes: of another version, or not inline. Nothing was appended; test with errors.Is.
var ErrOtherForm = errors.New("the live read model is not of the form that this code writes")

// carry handles the events of an append for one projection.
func (s *InlineStore) carry(ctx context.Context, tx pgx.Tx, def *Definition, all []eventstore.Append, done []eventstore.Appended) error {
	reads := func(i int) bool {
		return !done[i].Repeated && (eventstore.Filter{Categories: def.categories}).Matches(&eventstore.Recorded{Stream: all[i].Stream})
	}
	read := false
	for i := range all {
		read = read || reads(i)
	}
	if !read {
		return nil
	}
	generation, err := written(ctx, tx, def)
	if err != nil {
		return fmt.Errorf("appending with projection %s: %w", def.name, err)
	}
	t := &Tx{tx: tx, generation: generation}
	for i := range all {
		if !reads(i) {
			continue
		}
		events, err := storepg.Load(ctx, tx, all[i].Stream, done[i].Version-int64(len(all[i].Events))+1, len(all[i].Events))
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := def.handle(ctx, t, e); err != nil {
				return fmt.Errorf("projection %s refuses event %s (%s) of stream %s: %w", def.name, e.ID, e.Type, e.Stream, err)
			}
		}
	}
	return t.flush(ctx)
}

// written returns the generation that appends write, and holds off takeovers until the transaction ends. Rows of one version's form in a generation of another would be wrong for
// good, so whoever has the other form appends nothing.
func written(ctx context.Context, tx pgx.Tx, def *Definition) (generation int, err error) {
	// Shared, so that appends do not wait for each other; a takeover holds it alone.
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock_shared(hashtextextended('projection:' || $1, 0))`, def.name); err != nil {
		return 0, err
	}
	var version int
	var inline bool
	err = tx.QueryRow(ctx, `SELECT generation, version, inline FROM projections WHERE name = $1 AND status = 'live'`, def.name).Scan(&generation, &version, &inline)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, fmt.Errorf("%w; run it by a projection.Runner with Options.Inline", ErrUnknown)
	case err != nil:
		return 0, err
	case version > def.version:
		return 0, fmt.Errorf("%w: it is of version %d, and this code of version %d; upgrade this process", ErrOtherForm, version, def.version)
	case version < def.version:
		return 0, fmt.Errorf("%w: it is of version %d, and this code of version %d; a projection.Runner of this code builds the new one, and appends go on when it has taken over", ErrOtherForm, version, def.version)
	case !inline:
		return 0, errMode(version, inline)
	}
	return generation, nil
}

// errMode says that a projection was made inline, or asynchronous, and that the code has it the other way under the same version.
func errMode(version int, inline bool) error {
	was, is := "follows the appends by itself", "inline"
	if inline {
		was, is = "is inline", "by itself"
	}
	return fmt.Errorf("%w: as version %d it %s, and this code moves it %s; count the definition's version up, so that it is built anew", ErrOtherForm, version, was, is)
}
