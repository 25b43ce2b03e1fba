package outbox_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/pkg/inbox"
)

// consumer is a destination that hands each message to somebody who handles it by the inbox. Of ten messages one is delivered twice at once, and of one the answer is lost, so that the
// relay sends it again.
type consumer struct {
	pool *pgxpool.Pool

	mu   sync.Mutex
	lost map[uuid.UUID]bool // those whose answer was lost

	deliveries, forced, handled atomic.Int64
}

const (
	twiceOfTen = 3
	lostOfTen  = 7
)

func (*consumer) Check(context.Context) error { return nil }
func (*consumer) Close() error                { return nil }
func (*consumer) Limits() outbox.Limits       { return outbox.Limits{Batch: 1, Parallel: 16} }

func (c *consumer) Publish(ctx context.Context, all []outbox.Message) []error {
	errs := make([]error, len(all))
	for i := range all {
		errs[i] = c.publish(ctx, &all[i])
	}
	return errs
}

func (c *consumer) publish(ctx context.Context, m *outbox.Message) error {
	encoded, err := m.Encode(outbox.Binary, "ce-")
	if err != nil {
		return err
	}
	switch m.ID[15] % 10 {
	case twiceOfTen:
		c.forced.Add(1)
		other := make(chan error, 1)
		go func() { other <- c.deliver(ctx, encoded) }()
		if err := c.deliver(ctx, encoded); err != nil {
			return err
		}
		return <-other
	case lostOfTen:
		if err := c.deliver(ctx, encoded); err != nil {
			return err
		}
		if c.lose(m.ID) {
			c.forced.Add(1)
			return outbox.Errorf(outbox.Failed, outbox.ReasonTimeout, "the answer is lost")
		}
		return nil
	default:
		return c.deliver(ctx, encoded)
	}
}

// lose reports whether the answer to a message is lost, which it is once.
func (c *consumer) lose(id uuid.UUID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.lost[id]
	c.lost[id] = true
	return first
}

// deliver is what the consumer does with what a broker brings: the message's effect and its row in the inbox, together.
func (c *consumer) deliver(ctx context.Context, sent outbox.Encoded) error {
	c.deliveries.Add(1)
	e, err := outbox.Decode(sent.Incoming())
	if err != nil {
		return err
	}
	extensions := e.Extensions()
	done, err := inbox.Do(ctx, c.pool, inbox.Key{Consumer: "billing", Source: e.Source(), ID: e.ID()}, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO effects (message_id, saga, sequence) VALUES ($1, $2, $3::text::bigint)`, e.ID(), extensions["partitionkey"], extensions["sequence"])
		return err
	})
	if done {
		c.handled.Add(1)
	}
	return err
}

func TestEveryMessageHasItsEffectOnceAndInOrderAlthoughAFifthComesTwice(t *testing.T) {
	t.Parallel()
	sagas, each := 2_000, 3
	if os.Getenv("OUTBOX") == "long" {
		sagas, each = 10_000, 4
	}
	total := sagas * each
	r := newRig(t)
	// The effects have no key that would hide a second one.
	if _, err := r.pool.Exec(r.ctx, inbox.Schema+`CREATE TABLE effects (nth bigint GENERATED ALWAYS AS IDENTITY (CACHE 1), message_id uuid, saga text, sequence bigint)`); err != nil {
		t.Fatal(err)
	}
	pool, err := openPool(r.ctx, r.url, "outbox-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c := &consumer{pool: pool, lost: map[uuid.UUID]bool{}}
	_, stop := r.relay(outbox.Options{Shards: 2}, to(c))
	began := time.Now()
	r.flood(sagas, each)
	for part := 1; part <= 10; part++ { // each in its time, however slow the machine is
		r.eventually("the messages are handled", func() bool { return c.handled.Load() >= int64(total*part/10) })
	}
	r.eventually("the relay has no more to send", func() bool { return r.status().Backlog == 0 })
	stop()

	forced, deliveries := c.forced.Load(), c.deliveries.Load()
	t.Logf("%d messages of %d sagas came %d times, %d of them forced, in %s", total, sagas, deliveries, forced, time.Since(began).Round(time.Millisecond))
	if forced < int64(total)*17/100 || deliveries < int64(total)+forced { // by chance it is not a fifth exactly
		t.Errorf("of %d messages %d were made to come twice, and there were %d deliveries", total, forced, deliveries)
	}
	if n := r.status().DeadLetters; n != 0 || c.handled.Load() != int64(total) {
		t.Errorf("of %d messages %d were handled, and %d are dead letters", total, c.handled.Load(), n)
	}
	r.checkEffects(sagas, each)
}

// checkEffects looks whether each message has had one effect, and each saga's were in order, from 1 to so many.
func (r *rig) checkEffects(sagas, each int) {
	r.t.Helper()
	if n := r.int(`SELECT count(*) FROM (SELECT FROM effects GROUP BY message_id HAVING count(*) > 1) twice`); n != 0 {
		r.t.Errorf("%d messages have had their effect more than once", n)
	}
	if n := r.int(`SELECT count(DISTINCT message_id) FROM effects`); n != int64(sagas*each) {
		r.t.Errorf("%d messages of %d have had their effect", n, sagas*each)
	}
	rows, err := r.pool.Query(r.ctx, `SELECT format('%s: %s', saga, array_agg(sequence ORDER BY nth)) FROM effects GROUP BY saga
		HAVING array_agg(sequence ORDER BY nth) <> ARRAY (SELECT generate_series(1::bigint, $1)) ORDER BY saga LIMIT 10`, each)
	if err != nil {
		r.t.Fatal(err)
	}
	wrong, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(wrong) > 0 {
		r.t.Errorf("the effects of some sagas are not from 1 to %d in order: %v\n%s", each, err, strings.Join(wrong, "\n"))
	}
	if n := r.int(`SELECT count(DISTINCT saga) FROM effects`); n != int64(sagas) {
		r.t.Errorf("there are effects of %d sagas of %d", n, sagas)
	}
}
