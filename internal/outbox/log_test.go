package outbox_test

import (
	"testing"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func (r *rig) maintain(size int64) (made, dropped int) {
	r.t.Helper()
	made, dropped, err := outbox.Maintain(r.ctx, r.pool, size, 2)
	if err != nil {
		r.t.Fatal(err)
	}
	return made, dropped
}

func (r *rig) int(sql string, args ...any) (n int64) {
	r.t.Helper()
	if err := r.pool.QueryRow(r.ctx, sql, args...).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// smallPartitions begins partitions of so many positions right away.
func (r *rig) smallPartitions(size int64) {
	r.t.Helper()
	if _, err := r.pool.Exec(r.ctx, `DO $$ DECLARE p record; BEGIN
		FOR p IN SELECT name FROM outbox_partitions LOOP EXECUTE 'DROP TABLE ' || p.name; END LOOP; DELETE FROM outbox_partitions; END $$`); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.pool.Exec(r.ctx, `SELECT setval('outbox_position', 20000)`); err != nil {
		r.t.Fatal(err)
	}
	if made, _ := r.maintain(size); made == 0 {
		r.t.Fatal("no partitions were made")
	}
}

func TestPartitionsAreDroppedWhenEverySinkHasReadThemAndNoSooner(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const size = 1000
	p, q := &memory.Publisher{}, &memory.Publisher{}
	r.smallPartitions(size)
	relay, _ := r.relay(outbox.Options{Shards: 1, Partition: size}, to(p))
	for range 40 { // as the log goes on, partitions are made ahead of it
		r.flood(500, 1)
		r.maintain(size)
	}
	r.await(p, 40*500)
	r.eventually("what was read is dropped", func() bool {
		r.maintain(size)
		return r.int(`SELECT count(*) FROM outbox_events`) < 3*size
	})

	second := outbox.Sink{ID: "sink-2", Name: "shop/second", Publisher: q}
	r.set(relay, second)
	relay.Remove("sink-2") // it has a place in the log, and nobody publishes to it
	for range 20 {
		r.flood(500, 1)
		r.maintain(size)
	}
	r.await(p, 60*500)
	r.eventually("the first has read all", func() bool { return r.status().Backlog == 0 })
	for range 3 {
		r.maintain(size)
	}
	if n := r.int(`SELECT count(*) FROM outbox_partitions WHERE to_position <= (SELECT last_value FROM outbox_position)`); n < 5 {
		t.Fatalf("%d partitions are full: there is nothing to be dropped", n)
	}
	if n := r.int(`SELECT count(*) FROM outbox_events`); n < 20*500 {
		t.Errorf("of what the second sink has not read, %d messages are left", n)
	}
	q = &memory.Publisher{}
	second.Publisher = q
	r.set(relay, second)
	r.await(q, 20*500)
	r.eventually("now it is dropped", func() bool {
		r.maintain(size)
		return r.int(`SELECT count(*) FROM outbox_events`) < 3*size
	})
}

func TestAnAppendGoesOnWhereNobodyHasMadePartitions(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := r.pool.Exec(r.ctx, `SELECT setval('outbox_position', 100000000)`); err != nil {
		t.Fatal(err)
	}
	p := &memory.Publisher{}
	r.relay(outbox.Options{Partition: 1000}, to(p))
	r.commit(r.message("a"), r.message("a"))
	r.await(p, 2)
	if made, _ := r.maintain(1000); made == 0 {
		t.Log("another one was maintaining")
	}
	r.flood(20_000, 1)
	r.await(p, 20_002)
	r.eventually("the rest is emptied, too", func() bool {
		r.maintain(1000)
		return r.int(`SELECT count(*) FROM outbox_events_rest`) == 0
	})
}

func TestForgettingASinkLetsTheLogGoOnWithoutIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{}
	relay, _ := r.relay(outbox.Options{}, to(p))
	r.commit(r.message("a"))
	r.await(p, 1)
	if err := outbox.Forget(r.ctx, r.pool, "sink-1"); err != nil {
		t.Fatal(err)
	}
	if n := r.int(`SELECT count(*) FROM outbox_readers`); n == 0 {
		t.Error("a sink that is published to was forgotten")
	}
	relay.Remove("sink-1")
	r.eventually("it is forgotten", func() bool {
		if err := outbox.Forget(r.ctx, r.pool, "sink-1"); err != nil {
			t.Fatal(err)
		}
		return r.int(`SELECT count(*) FROM outbox_readers`) == 0
	})
}
