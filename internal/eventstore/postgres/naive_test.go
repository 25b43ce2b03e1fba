package postgres_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// Two rules by which event stores read, and what becomes of their readers. They are here to show that the tests of the order tell a wrong rule from the right one.

// lastPosition remembers the last position that it has seen.
type lastPosition struct {
	pool *pgxpool.Pool
	at   int64
}

func (r *lastPosition) page(ctx context.Context, limit int) ([]eventstore.Recorded, bool, func(int) error, error) {
	rows, err := r.pool.Query(ctx, `SELECT stream, version, position, event_id, 0 FROM event_store WHERE position > $1 ORDER BY position LIMIT $2`, r.at, limit)
	events, _, err := naiveRows(rows, err)
	return events, len(events) == limit, func(n int) error {
		if n > 0 {
			r.at = events[n-1].Position
		}
		return nil
	}, err
}

// belowXmin goes by transaction, then position, and reads what is below the oldest transaction that runs.
type belowXmin struct {
	pool     *pgxpool.Pool
	txid, at int64
}

func (r *belowXmin) page(ctx context.Context, limit int) ([]eventstore.Recorded, bool, func(int) error, error) {
	rows, err := r.pool.Query(ctx, `SELECT stream, version, position, event_id, txid::text::bigint FROM event_store
		WHERE (txid, position) > ($1::bigint::text::xid8, $2) AND txid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY txid, position LIMIT $3`, r.txid, r.at, limit)
	events, txids, err := naiveRows(rows, err)
	return events, len(events) == limit, func(n int) error {
		if n > 0 {
			r.txid, r.at = txids[n-1], events[n-1].Position
		}
		return nil
	}, err
}

func naiveRows(rows pgx.Rows, err error) ([]eventstore.Recorded, []int64, error) {
	if err != nil {
		return nil, nil, err
	}
	var txids []int64
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e eventstore.Recorded, err error) {
		var id uuid.UUID
		var txid int64
		err = row.Scan(&e.Stream, &e.Version, &e.Position, &id, &txid)
		e.ID, txids = id, append(txids, txid)
		return e, err
	})
	return events, txids, err
}

// scene is a server of its own, so that no transaction of another test is in the way, with transactions that a test moves step by step.
type scene struct {
	t       *testing.T
	pool    *pgxpool.Pool
	foreign *pgxpool.Pool // another database of the same server
	got     []string
	rule
}

// begin begins a transaction that has drawn its id.
func (s *scene) begin() pgx.Tx { return beginDrawn(s.t, s.pool) }

func (s *scene) append(tx pgx.Tx, stream string) {
	s.t.Helper()
	if _, err := storepg.AppendAll(s.t.Context(), tx, []eventstore.Append{{Stream: stream, Expected: eventstore.AnyVersion, Events: []eventstore.Event{event()}}}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) commit(tx pgx.Tx) {
	s.t.Helper()
	if err := tx.Commit(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// read reads what there is.
func (s *scene) read() {
	s.t.Helper()
	for more := true; more; {
		events, again, moved, err := s.page(s.t.Context(), 10)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := moved(len(events)); err != nil {
			s.t.Fatal(err)
		}
		for _, e := range events {
			s.got = append(s.got, fmt.Sprintf("%s/%d", e.Stream, e.Version))
		}
		more = again
	}
}

// await reads until there is so much. The server's own housekeeping runs transactions too, which some readers wait for.
func (s *scene) await(n int) {
	s.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for s.read(); len(s.got) < n; s.read() {
		if time.Now().After(deadline) {
			s.t.Fatalf("read %v and no more", s.got)
		}
		linger(5 * time.Millisecond)
	}
}

// commitsLate: of two transactions the one with the lower position commits after the other has been read.
func commitsLate(s *scene) {
	late, early := s.begin(), s.begin()
	s.append(late, "late-1")
	s.append(early, "early-1")
	s.commit(early)
	s.read()
	s.commit(late)
	s.read()
	if _, waits := s.rule.(*belowXmin); waits {
		s.await(2)
	}
}

// drawsFirst: a transaction draws its id before another, and appends to the same stream after it.
func drawsFirst(s *scene) {
	first, second := s.begin(), s.begin()
	s.append(second, "s-1")
	s.commit(second)
	s.append(first, "s-1")
	s.commit(first)
	s.await(2)
}

// heldOpen: a transaction that has nothing to do with the events is open while one is appended.
func heldOpen(foreign func(*scene) *pgxpool.Pool) func(*scene) {
	return func(s *scene) {
		held := beginDrawn(s.t, foreign(s))
		tx := s.begin()
		s.append(tx, "s-1")
		s.commit(tx)
		s.read()
		s.got = append(s.got, "the other transaction ends")
		s.commit(held)
		s.await(2)
	}
}

func TestWhereTheNaiveRulesFail(t *testing.T) {
	t.Parallel()
	server := throwaway.NewServer(t, throwaway.Options{Own: true})
	rules := map[string]func(*pgxpool.Pool) rule{
		"the last position":  func(p *pgxpool.Pool) rule { return &lastPosition{pool: p} },
		"below the xmin":     func(p *pgxpool.Pool) rule { return &belowXmin{pool: p} },
		"the store's own":    func(p *pgxpool.Pool) rule { return &snapshots{store: storepg.New(p)} },
		"the store's, paged": func(p *pgxpool.Pool) rule { return &onePerPage{&snapshots{store: storepg.New(p)}} },
	}
	const ends = "the other transaction ends"
	for name, test := range map[string]struct {
		play func(*scene)
		want []string
		// instead is what a rule that fails gets.
		instead map[string][]string
	}{
		"an event that commits late": {
			commitsLate, []string{"early-1/1", "late-1/1"},
			map[string][]string{"the last position": {"early-1/1"}, "below the xmin": {"late-1/1", "early-1/1"}}, // the first loses one; the second waits, which is no failure yet
		},
		"a transaction that drew its id early": {
			drawsFirst, []string{"s-1/1", "s-1/2"},
			map[string][]string{"below the xmin": {"s-1/2", "s-1/1"}},
		},
		"an open transaction of this database": {
			heldOpen(func(s *scene) *pgxpool.Pool { return s.pool }), []string{"s-1/1", ends},
			map[string][]string{"below the xmin": {ends, "s-1/1"}},
		},
		"an open transaction of another database": {
			heldOpen(func(s *scene) *pgxpool.Pool { return s.foreign }), []string{"s-1/1", ends},
			map[string][]string{"below the xmin": {ends, "s-1/1"}},
		},
	} {
		for by, rule := range rules {
			t.Run(name+", by "+by, func(t *testing.T) {
				pool := openOn(t, server.NewDatabase)
				s := &scene{t: t, pool: pool, foreign: openOn(t, server.NewEmptyDatabase), rule: rule(pool)}
				test.play(s)
				want := test.want
				if other, fails := test.instead[by]; fails {
					want = other
				}
				if diff := cmp.Diff(want, s.got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

func openOn(t *testing.T, newDatabase func(context.Context) (string, func(), error)) *pgxpool.Pool {
	t.Helper()
	url, drop, err := newDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(drop)
	return open(t, url, nil)
}

// onePerPage reads a page for every event.
type onePerPage struct{ rule }

func (r *onePerPage) page(ctx context.Context, _ int) ([]eventstore.Recorded, bool, func(int) error, error) {
	return r.rule.page(ctx, 1)
}

// The load of TestEveryEventIsSeenOnceAndInItsStreamsOrder, with subscriptions that go by the naive rules: each fails in its own way.
func TestTheNaiveRulesFailTheTestOfTheOrder(t *testing.T) {
	t.Parallel()
	server := throwaway.NewServer(t, throwaway.Options{Own: true})
	url, _, err := server.NewDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, err := server.NewEmptyDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := openWide(t, url, orderWriters+6)
	last := newSubscription("the last position", &lastPosition{pool: pool}, eventstore.Filter{}, 20, 100)
	below := newSubscription("below the xmin", &belowXmin{pool: pool}, eventstore.Filter{}, 20, 100)
	right := newSubscription("the store's own", &snapshots{store: storepg.New(pool)}, eventstore.Filter{}, 20, 100)
	followLoad(t, pool, foreign, 4000, last, below, right)
	if last.lost == 0 {
		t.Error("the last position should have lost events that committed late")
	}
	if below.disordered == 0 || below.stalled == 0 {
		t.Errorf("below the xmin should have read streams out of order (%d), and stalled (%d)", below.disordered, below.stalled)
	}
	if right.lost+right.doubled+right.disordered+right.stalled > 0 {
		t.Error(right)
	}
}
