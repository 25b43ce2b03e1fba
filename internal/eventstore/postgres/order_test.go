package postgres_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

// long reports whether the tests are to take their time: ORDER=long in the environment.
func long() bool { return os.Getenv("ORDER") == "long" }

const (
	orderWriters = 16
	orderStreams = 300
)

// openWide is open with as many connections as a load needs.
func openWide(t testing.TB, url string, connections int32) *pgxpool.Pool {
	t.Helper()
	return openTraced(t, url, connections, nil)
}

// linger takes up to so long.
func linger(most time.Duration) {
	if most > 0 {
		<-time.After(rand.N(most))
	}
}

// load is writers that do everything that makes an order hard to read: they draw their transaction's id long before they append, append one stream after the other,
// take their time before they commit, and roll back.
type load struct {
	pool *pgxpool.Pool
	left atomic.Int64 // events to append

	mu        sync.Mutex
	committed map[uuid.UUID]eventstore.Recorded // with their streams and types
}

func newLoad(pool *pgxpool.Pool, total int) *load {
	l := &load{pool: pool, committed: make(map[uuid.UUID]eventstore.Recorded, total)}
	l.left.Store(int64(total))
	return l
}

func (l *load) run(ctx context.Context) error {
	failed := make([]error, orderWriters)
	var wg sync.WaitGroup
	for w := range orderWriters {
		wg.Go(func() {
			for l.left.Load() > 0 && ctx.Err() == nil && failed[w] == nil {
				failed[w] = l.write(ctx, transaction())
			}
		})
	}
	wg.Wait()
	return errors.Join(errors.Join(failed...), ctx.Err())
}

// transaction makes up the appends of one transaction, in the order of their streams' names, so that no two wait for each other in a circle.
func transaction() []eventstore.Append {
	var all []eventstore.Append
	for range 1 + rand.IntN(4) {
		category := []string{"order", "payment"}[rand.IntN(2)]
		a := eventstore.Append{Stream: fmt.Sprintf("%s-%03d", category, rand.IntN(orderStreams)), Expected: eventstore.AnyVersion}
		for i := range 1 + rand.IntN(16) {
			e := event()
			e.Type = []string{"Happened", "Ended"}[i%2]
			a.Events = append(a.Events, e)
		}
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b eventstore.Append) int { return cmp.Compare(a.Stream, b.Stream) })
	return slices.CompactFunc(all, func(a, b eventstore.Append) bool { return a.Stream == b.Stream })
}

// write commits the appends, perhaps after having rolled them back once, or leaves it at that.
func (l *load) write(ctx context.Context, all []eventstore.Append) error {
	if rand.IntN(10) == 0 {
		if err := l.try(ctx, all, false); err != nil || rand.IntN(2) == 0 {
			return err
		}
	}
	return l.commit(ctx, all)
}

func (l *load) commit(ctx context.Context, all []eventstore.Append) error {
	if err := l.try(ctx, all, true); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range all {
		for _, e := range a.Events {
			l.committed[e.ID] = eventstore.Recorded{Event: e, Stream: a.Stream}
		}
		l.left.Add(-int64(len(a.Events)))
	}
	return nil
}

func (l *load) try(ctx context.Context, all []eventstore.Append, commit bool) error {
	tx, err := l.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if rand.IntN(4) > 0 {
		if _, err := tx.Exec(ctx, `SELECT pg_current_xact_id()`); err != nil {
			return err
		}
		linger(8 * time.Millisecond)
	}
	parts := [][]eventstore.Append{all}
	if rand.IntN(2) == 0 {
		parts = slices.Collect(slices.Chunk(all, 1))
	}
	for _, part := range parts {
		if _, err := storepg.AppendAll(ctx, tx, part); err != nil {
			return err
		}
		linger(2 * time.Millisecond)
	}
	if !commit {
		return tx.Rollback(ctx)
	}
	return tx.Commit(ctx)
}

// rule is a way to read all events in pages. moved is called with how many events of the page were handled before the reader goes on or starts again.
type rule interface {
	page(ctx context.Context, limit int) (events []eventstore.Recorded, more bool, moved func(n int) error, err error)
}

// snapshots is the rule of the store. Its checkpoint is kept as bytes, as by a process that starts again.
type snapshots struct {
	store  eventstore.Store
	filter eventstore.Filter
	stored []byte
}

func (s *snapshots) page(ctx context.Context, limit int) ([]eventstore.Recorded, bool, func(int) error, error) {
	var at eventstore.Checkpoint
	if s.stored != nil {
		if err := json.Unmarshal(s.stored, &at); err != nil {
			return nil, false, nil, err
		}
	}
	page, err := s.store.ReadAll(ctx, at, s.filter, limit)
	return page.Events, page.More, func(n int) error {
		s.stored, err = json.Marshal(page.After(n))
		return err
	}, err
}

// subscription reads by a rule, is stopped and started again all the time, and notes what is wrong with what it gets.
type subscription struct {
	rule
	name   string
	filter eventstore.Filter // what it should get; the rule lets through just that
	limits []int

	handled                   map[uuid.UUID]bool
	versions                  map[string]int64
	lost, doubled, disordered int
	example                   string
	stalled                   int

	marked   eventstore.Event // of the last mark that it looked out for
	ends     int              // how often it came to the end since, without meeting it
	answered chan struct{}
}

func newSubscription(name string, r rule, filter eventstore.Filter, limits ...int) *subscription {
	return &subscription{
		rule: r, name: name, filter: filter, limits: limits, handled: map[uuid.UUID]bool{}, versions: map[string]int64{}, answered: make(chan struct{}, 1),
	}
}

// handle takes one event.
func (s *subscription) handle(e *eventstore.Recorded) {
	if s.handled[e.ID] {
		s.doubled++
	}
	s.handled[e.ID] = true
	last := s.versions[e.Stream]
	if e.Version <= last || len(s.filter.Types) == 0 && e.Version != last+1 {
		s.disordered++
		s.example = cmp.Or(s.example, fmt.Sprintf("version %d of %s after version %d", e.Version, e.Stream, last))
	}
	s.versions[e.Stream] = max(last, e.Version)
}

// run reads until everything has been written and read.
func (s *subscription) run(ctx context.Context, mark *atomic.Pointer[eventstore.Event], written <-chan struct{}) error {
	for {
		over := false
		select {
		case <-written:
			over = true
		default:
		}
		due := mark.Load()
		events, more, moved, err := s.page(ctx, s.limits[rand.IntN(len(s.limits))])
		if err != nil {
			return err
		}
		n := len(events)
		switch rand.IntN(8) {
		case 0: // stopped before it handled anything, and started again from its stored checkpoint
			continue
		case 1: // stopped in the middle
			n = rand.IntN(n + 1)
		}
		for i := range events[:n] {
			s.handle(&events[i])
		}
		if err := moved(n); err != nil {
			return err
		}
		if n < len(events) {
			continue
		}
		s.lookOut(due, more)
		if over && !more && n == 0 {
			return nil
		}
		if !more {
			linger(4 * time.Millisecond)
		}
	}
}

// lookOut notes whether the subscription has met a mark that had been committed before it read: at the latest when it comes to the end for the second time. An event whose
// position was drawn before that of the last one read, and that commits after, is not foretold by the first.
func (s *subscription) lookOut(due *eventstore.Event, more bool) {
	if due == nil || due.ID == s.marked.ID && s.ends < 0 {
		return
	}
	if due.ID != s.marked.ID {
		s.marked, s.ends = *due, 0
	}
	switch {
	case s.handled[due.ID]:
	case more:
		return
	case s.ends == 0:
		s.ends++
		return
	default:
		s.stalled++
	}
	s.ends = -1
	s.answered <- struct{}{}
}

// judge counts what was committed and did not come.
func (s *subscription) judge(committed map[uuid.UUID]eventstore.Recorded) {
	for id, e := range committed {
		if s.filter.Matches(&e) && !s.handled[id] {
			s.lost++
		}
	}
}

func (s *subscription) String() string {
	return fmt.Sprintf("%s: %d events read, %d lost, %d doubled, %d out of their stream's order (such as %s), stalled at %d of %d marks",
		s.name, len(s.handled), s.lost, s.doubled, s.disordered, cmp.Or(s.example, "none"), s.stalled, orderMarks+1)
}

// orderMarks is how many marks are committed while only transactions of others are held open; one more is while an append is.
const orderMarks = 5

// followLoad runs writers and subscriptions together. In the middle, while transactions of others are held open, it commits marks and waits until every subscription has met
// each, or could have and has not.
func followLoad(t *testing.T, pool *pgxpool.Pool, foreign string, total int, subscriptions ...*subscription) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := newLoad(pool, total)
	var mark atomic.Pointer[eventstore.Event]
	wrote, over := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	start := func(do func() error) {
		wg.Go(func() {
			if err := do(); err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
				cancel()
			}
		})
	}
	for _, s := range subscriptions {
		start(func() error { return s.run(ctx, &mark, over) })
	}
	start(func() error { defer close(wrote); return l.run(ctx) })
	start(func() error {
		defer close(over)
		for l.left.Load() > int64(total)/2 && ctx.Err() == nil {
			linger(time.Millisecond)
		}
		err := l.mark(ctx, foreign, &mark, subscriptions)
		<-wrote
		return err
	})
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	for _, s := range subscriptions {
		s.judge(l.committed)
		t.Log(s)
	}
}

// mark holds two transactions open, one of another database and one that writes another table of this one, and commits marks meanwhile.
func (l *load) mark(ctx context.Context, foreign string, mark *atomic.Pointer[eventstore.Event], subscriptions []*subscription) error {
	for _, held := range []struct{ url, sql string }{
		{foreign, `CREATE TABLE held AS SELECT 1`},
		{l.pool.Config().ConnString(), `INSERT INTO projection_skips (name, event_id, reason, actor) VALUES ('held', gen_random_uuid(), '', '')`},
	} {
		conn, err := pgx.Connect(ctx, held.url)
		if err != nil {
			return err
		}
		defer func() {
			_, _ = conn.Exec(context.WithoutCancel(ctx), `ROLLBACK`)
			_ = conn.Close(context.WithoutCancel(ctx))
		}()
		if _, err := conn.Exec(ctx, `BEGIN; `+held.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
	}
	for range orderMarks {
		if err := l.show(ctx, mark, subscriptions); err != nil {
			return err
		}
	}
	return l.late(ctx, mark, subscriptions)
}

// show commits a mark and waits until every subscription has met it, or could have.
func (l *load) show(ctx context.Context, mark *atomic.Pointer[eventstore.Event], subscriptions []*subscription) error {
	e := event()
	if err := l.commit(ctx, []eventstore.Append{{Stream: "order-mark", Expected: eventstore.AnyVersion, Events: []eventstore.Event{e}}}); err != nil {
		return err
	}
	mark.Store(&e)
	for _, s := range subscriptions {
		select {
		case <-s.answered:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to meet a mark: %w", s.name, ctx.Err())
		}
	}
	return nil
}

// late does what the load does by chance as well: a transaction draws its id before another, and appends to the same stream after it; and one draws a position, and commits after a higher one has been read.
func (l *load) late(ctx context.Context, mark *atomic.Pointer[eventstore.Event], subscriptions []*subscription) error {
	tx, err := l.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	late := func(stream string) (eventstore.Recorded, error) {
		e := event()
		_, err := storepg.AppendAll(ctx, tx, []eventstore.Append{{Stream: stream, Expected: eventstore.AnyVersion, Events: []eventstore.Event{e}}})
		return eventstore.Recorded{Event: e, Stream: stream}, err
	}
	first, err := late("order-late")
	if err == nil {
		err = l.show(ctx, mark, subscriptions)
	}
	if err != nil {
		return err
	}
	second, err := late("order-mark")
	if err == nil {
		err = tx.Commit(ctx)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.committed[first.ID], l.committed[second.ID] = first, second
	return nil
}

func TestEveryEventIsSeenOnceAndInItsStreamsOrder(t *testing.T) {
	t.Parallel()
	total := 20_000
	if long() {
		total = 100_000
	}
	pool := openWide(t, throwaway.Database(t), orderWriters+6)
	store := storepg.New(pool)
	follow := func(name string, filter eventstore.Filter, limits ...int) *subscription {
		return newSubscription(name, &snapshots{store: store, filter: filter}, filter, limits...)
	}
	subscriptions := []*subscription{
		follow("everything, in large pages", eventstore.Filter{}, 100, 500, 1000),
		follow("one category, in small pages", eventstore.Filter{Categories: []string{"order"}}, 7, 50, 200),
		follow("one type, in pages of all sizes", eventstore.Filter{Types: []string{"Happened"}}, 20, 100, 5000),
	}
	followLoad(t, pool, throwaway.EmptyDatabase(t), total, subscriptions...)
	for _, s := range subscriptions {
		if s.lost+s.doubled+s.disordered+s.stalled > 0 || len(s.handled) < total/4 {
			t.Errorf("%v", s)
		}
	}
}
