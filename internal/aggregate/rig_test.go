package aggregate_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/aggregate"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/eventtype"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// A cart: what the tests of this package are about.
type (
	added struct {
		SKU      string `json:"sku"`
		Quantity int    `json:"quantity"`
		Note     string `json:"note,omitempty"`
	}
	removed struct {
		SKU string `json:"sku"`
	}
	paid struct {
		At time.Time `json:"at"`
	}
	// explosive blows up when it is folded.
	explosive struct{}
)

var cartEvents = eventtype.MustNewRegistry(
	eventtype.Of[added]("Added", 1), eventtype.Of[removed]("Removed", 1), eventtype.Of[paid]("Paid", 1), eventtype.Of[explosive]("Explosive", 1),
)

type cartState struct {
	Items   map[string]int `json:"items,omitempty"`
	History []string       `json:"history,omitempty"`
	PaidAt  *time.Time     `json:"paidAt,omitempty"`
}

const maxQuantity = 1000

func (s cartState) Evolve(event any) cartState {
	switch e := event.(type) {
	case added:
		s.Items = maps.Clone(s.Items)
		if s.Items == nil {
			s.Items = map[string]int{}
		}
		s.Items[e.SKU] += e.Quantity
		s.History = append(slices.Clone(s.History), fmt.Sprintf("+%d %s", e.Quantity, e.SKU))
	case removed:
		s.Items = maps.Clone(s.Items)
		if delete(s.Items, e.SKU); len(s.Items) == 0 {
			s.Items = nil
		}
		s.History = append(slices.Clone(s.History), "-"+e.SKU)
	case paid:
		s.PaidAt = &e.At
	default:
		panic(fmt.Sprintf("a cart does not know %T", event))
	}
	return s
}

func (s cartState) Validate() error {
	for sku, n := range s.Items {
		if n > maxQuantity {
			return fmt.Errorf("%d of %s are more than %d", n, sku, maxQuantity)
		}
		if n == 13 {
			panic("thirteen")
		}
	}
	return nil
}

type cart struct{ aggregate.Root[cartState] }

func add(sku string, n int) func(*cart) error {
	return func(c *cart) error { c.Apply(added{SKU: sku, Quantity: n}); return nil }
}

var cartKind = aggregate.Kind[*cart, cartState]{Category: "cart", New: func() *cart { return &cart{} }, Events: cartEvents, SchemaVersion: 2}

type repository = aggregate.Repository[*cart, cartState]
type options = aggregate.Options[*cart]

func carts(t testing.TB, store eventstore.Store, o options) *repository {
	return snapshotting(t, store, 0, o)
}

// snapshotting returns a repository that takes a snapshot every so many events, however long that takes.
func snapshotting(t testing.TB, store eventstore.Store, every int, o options) *repository {
	t.Helper()
	if o.SnapshotTimeout == 0 {
		o.SnapshotTimeout = time.Hour
	}
	kind := cartKind
	kind.Snapshots.Every = every
	r, err := aggregate.NewRepository(store, kind, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fill creates a cart with n events.
func fill(t testing.TB, r *repository, id string, n int) {
	t.Helper()
	if _, err := r.Create(t.Context(), id, func(c *cart) error {
		for i := range n {
			c.Apply(added{SKU: fmt.Sprintf("S-%d", i%3), Quantity: 1})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func update(t testing.TB, r *repository, id string, command func(*cart) error, o ...aggregate.Option) aggregate.Result {
	t.Helper()
	result, err := r.Update(t.Context(), id, command, o...)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func load(t testing.TB, r *repository, id string) *cart {
	t.Helper()
	c, err := r.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// version fails the test when the stream is at another version.
func version(t testing.TB, store eventstore.Store, stream string, want int64) {
	t.Helper()
	if got, err := store.Version(context.WithoutCancel(t.Context()), stream); err != nil || got != want {
		t.Errorf("stream %s is at version %d, want %d (%v)", stream, got, want, err)
	}
}

// hooked is a store that a test interferes with. Nil hooks do nothing.
type hooked struct {
	eventstore.Store
	beforeAppend  func(context.Context) error
	afterAppend   func() error
	saveSnapshot  func(context.Context) error
	loadSnapshot  func() error
	loaded        func([]eventstore.Recorded) []eventstore.Recorded
	calls, saving atomic.Int64
}

func (h *hooked) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	if h.beforeAppend != nil {
		if err := h.beforeAppend(ctx); err != nil {
			return eventstore.Appended{}, err
		}
	}
	done, err := h.Store.Append(ctx, a)
	if err == nil && h.afterAppend != nil {
		err = h.afterAppend()
	}
	return done, err
}

func (h *hooked) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	h.calls.Add(1)
	events, err := h.Store.Load(ctx, stream, from, limit)
	if h.loaded != nil {
		events = h.loaded(events)
	}
	return events, err
}

func (h *hooked) Version(ctx context.Context, stream string) (int64, error) {
	h.calls.Add(1)
	return h.Store.Version(ctx, stream)
}

func (h *hooked) LoadSnapshot(ctx context.Context, stream string) (eventstore.Snapshot, error) {
	h.calls.Add(1)
	if h.loadSnapshot != nil {
		if err := h.loadSnapshot(); err != nil {
			return eventstore.Snapshot{}, err
		}
	}
	return h.Store.LoadSnapshot(ctx, stream)
}

func (h *hooked) SaveSnapshot(ctx context.Context, s eventstore.Snapshot) error {
	h.saving.Add(1)
	if h.saveSnapshot != nil {
		if err := h.saveSnapshot(ctx); err != nil {
			return err
		}
	}
	return h.Store.SaveSnapshot(ctx, s)
}

// onEachStore runs a test in memory and on PostgreSQL.
func onEachStore(t *testing.T, test func(t *testing.T, store eventstore.Store)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { t.Parallel(); test(t, memory.New()) })
	t.Run("postgres", func(t *testing.T) { t.Parallel(); test(t, storepg.New(open(t, nil))) })
}

func open(t testing.TB, tracer pgx.QueryTracer) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(throwaway.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns, cfg.ConnConfig.Tracer = 8, tracer
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

var errBroken = errors.New("something is broken")
