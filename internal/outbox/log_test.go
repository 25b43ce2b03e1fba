package outbox_test

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
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
	r.eventually("partitions are made", func() bool { // which takes a lock that somebody else may have
		made, _ := r.maintain(size)
		return made > 0
	})
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

// TestNoAppendIsRefusedWhilePartitionsAreMade has appends go where nobody has made partitions, again and again, while some are made.
func TestNoAppendIsRefusedWhilePartitionsAreMade(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	store := storepg.New(r.pool)
	over, stop := context.WithCancel(r.ctx)
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	var appended [4]atomic.Int64
	for i := range appended {
		writers.Go(func() {
			for over.Err() == nil {
				a := eventstore.Append{Stream: "race-" + uuid.NewString(), Events: []eventstore.Event{{ID: uuid.New(), Type: "Happened", SchemaVersion: 1, Data: json.RawMessage(`{}`)}}}
				for range 200 {
					a.Messages = append(a.Messages, eventstore.Message{ID: uuid.New(), Type: "test.Happened", Key: "key", Data: json.RawMessage(`{}`)})
				}
				if _, err := store.Append(r.ctx, a); err != nil {
					t.Errorf("an append was refused: %v", err)
				}
				appended[i].Add(1)
			}
		})
	}
	made := 0
	for round := 0; round < 12 || made == 0; round++ { // none are made while somebody appends for long
		if _, err := r.pool.Exec(r.ctx, `SELECT setval('outbox_position', nextval('outbox_position') + 10000000)`); err != nil {
			t.Fatal(err)
		}
		n, _ := r.maintain(1000)
		made += n
		// An append is tried again a few times only, so none is to be met twice.
		for i := range appended {
			before := appended[i].Load()
			r.eventually("an append comes to its end", func() bool { return appended[i].Load() > before })
		}
	}
}

// late begins to append a message, which is not committed before the function that it returns is called.
func (r *rig) late() (commit func()) {
	r.t.Helper()
	tx := r.begin()
	if _, err := tx.Exec(r.ctx, `INSERT INTO outbox_events (message_id, type, key, destination, data, metadata)
		VALUES (gen_random_uuid(), 'test.Late', 'late', '', '1', '{"source":"/tests","sequence":1}')`); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if err := tx.Commit(r.ctx); err != nil {
			r.t.Fatal(err)
		}
	}
}

// readAll has a relay read what there is, and put that down: of some messages also that nothing older was under way then.
func (r *rig) readAll(messages string) {
	r.t.Helper()
	_, stop := r.relay(outbox.Options{Shards: 1, Partition: 1000}, to(&memory.Publisher{}))
	r.eventually("the checkpoint is behind everything", func() bool {
		return r.int(`SELECT count(*) FROM outbox_readers r WHERE floor >= (SELECT last_value FROM outbox_position) AND until IS NULL
			AND NOT EXISTS (SELECT FROM outbox_events o WHERE o.txid >= pg_snapshot_xmin(r.done) AND `+messages+`)`) == 1
	})
	stop()
}

// arrivesLate has the message of late come to a sink.
func (r *rig) arrivesLate() {
	r.t.Helper()
	q := &memory.Publisher{}
	r.relay(outbox.Options{}, to(q))
	r.await(q, 1)
	if m := q.Taken()[0]; m.Key != "late" {
		r.t.Errorf("what came is %+v", m)
	}
}

// endOfPartition has the next message be the last of the first small partition, and what follows be in the next.
func (r *rig) endOfPartition() {
	r.t.Helper()
	if _, err := r.pool.Exec(r.ctx, `SELECT setval('outbox_position', (SELECT min(to_position) FROM outbox_partitions) - 2)`); err != nil {
		r.t.Fatal(err)
	}
}

// TestAPartitionIsKeptForWhatWasCommittedInItAfterItWasRead has a transaction in the partition that was running when the sink last looked, and others after it that it has had.
func TestAPartitionIsKeptForWhatWasCommittedInItAfterItWasRead(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const size = 1000
	r.smallPartitions(size)
	r.set(r.newRelay(outbox.Options{Shards: 1}), to(&memory.Publisher{}))
	if _, err := r.pool.Exec(r.ctx, `SELECT setval('outbox_position', (SELECT min(from_position) FROM outbox_partitions))`); err != nil {
		t.Fatal(err)
	}
	commit := r.late()
	r.flood(5, 1) // in the same partition, by a later transaction
	r.endOfPartition()
	r.flood(5, 1)
	r.readAll("false")
	commit()
	if _, dropped := r.maintain(size); dropped != 0 {
		t.Fatalf("%d partitions were dropped", dropped)
	}
	r.arrivesLate()
}

// TestAPartitionIsKeptForWhatIsCommittedWhileItIsLookedAt has a transaction end between the look at the partition and the lock on it.
func TestAPartitionIsKeptForWhatIsCommittedWhileItIsLookedAt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const size = 1000
	r.smallPartitions(size)
	r.set(r.newRelay(outbox.Options{Shards: 1}), to(&memory.Publisher{}))
	if _, err := r.pool.Exec(r.ctx, `SELECT setval('outbox_position', (SELECT min(from_position) FROM outbox_partitions))`); err != nil {
		t.Fatal(err)
	}
	r.flood(5, 1)
	r.endOfPartition()
	commit := r.late()
	r.flood(5, 1)
	r.readAll("position < (SELECT min(to_position) FROM outbox_partitions)")
	look := r.heldUp()
	type result struct {
		dropped int
		err     error
	}
	done := make(chan result, 1)
	var begun atomic.Bool
	go func() {
		var all result
		for all.err == nil { // again while that of the relay before goes on: one call at a time does something
			var n int
			_, n, all.err = outbox.Maintain(r.ctx, r.pool, size, 2)
			if all.dropped += n; begun.Load() {
				break
			}
		}
		done <- all
	}()
	look.begins()
	begun.Store(true)
	commit()
	look.ends()
	if got := <-done; got.err != nil || got.dropped != 0 {
		t.Fatalf("%d partitions were dropped, %v", got.dropped, got.err)
	}
	r.arrivesLate()
}

// look is a look at who uses the log: that of the maintenance, before it locks it.
type look struct{ begins, ends func() }

// heldUp has the looks of the maintenance take until they are told to end.
func (r *rig) heldUp() look {
	r.t.Helper()
	const begun = 4711 // the lock that is held meanwhile
	if _, err := r.pool.Exec(r.ctx, `CREATE TABLE looked ();
		ALTER FUNCTION outbox_is_held(oid[]) RENAME TO outbox_is_held_unhurried;
		CREATE FUNCTION outbox_is_held(a_tables oid[]) RETURNS boolean LANGUAGE plpgsql SET search_path = public, pg_temp AS $$ BEGIN
			IF 'outbox_events'::regclass::oid = ANY (a_tables) THEN
				PERFORM pg_advisory_xact_lock(4711);
				WHILE NOT EXISTS (SELECT FROM looked) LOOP PERFORM pg_sleep(0.01); END LOOP;
			END IF;
			RETURN outbox_is_held_unhurried(a_tables);
		END $$`); err != nil {
		r.t.Fatal(err)
	}
	return look{
		begins: func() {
			r.t.Helper()
			r.eventually("it looks who uses the log", func() bool {
				return r.int(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = $1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, begun) > 0
			})
		},
		ends: func() {
			r.t.Helper()
			if _, err := r.pool.Exec(r.ctx, `INSERT INTO looked DEFAULT VALUES`); err != nil {
				r.t.Fatal(err)
			}
		},
	}
}

// TestNobodyWaitsBehindTheMaintenanceOfTheLog has somebody read the log for long, as a dump does.
func TestNobodyWaitsBehindTheMaintenanceOfTheLog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const size = 1000
	r.smallPartitions(size)
	r.set(r.newRelay(outbox.Options{Shards: 1}), to(&memory.Publisher{}))
	r.endOfPartition()
	r.flood(5, 1)
	tx := r.begin()
	if _, err := tx.Exec(r.ctx, `LOCK TABLE outbox_events IN ACCESS SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	r.readAll("true")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			if _, dropped, err := outbox.Maintain(r.ctx, r.pool, size, 2); err != nil || dropped != 0 {
				t.Errorf("%d partitions were dropped, %v", dropped, err)
			}
		}
	}()
	for over := false; !over; {
		if n := r.int(`SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 0 {
			t.Error("it waits for the log, and everybody behind it")
			break
		}
		select {
		case <-done:
			over = true
		default:
		}
	}
	<-done
	if err := tx.Rollback(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.eventually("the partition is dropped afterwards", func() bool {
		_, dropped := r.maintain(size)
		return dropped == 1
	})
}

func TestForgettingASinkLetsTheLogGoOnWithoutIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{}
	relay, _ := r.relay(outbox.Options{}, to(p))
	r.commit(r.message("a"))
	r.await(p, 1)
	if forgotten, err := outbox.Forget(r.ctx, r.pool, "sink-1"); err != nil || forgotten {
		t.Fatalf("forgotten: %t, %v", forgotten, err)
	}
	if n := r.int(`SELECT count(*) FROM outbox_readers`); n == 0 {
		t.Error("a sink that is published to was forgotten")
	}
	relay.Remove("sink-1")
	r.eventually("it is forgotten", func() bool {
		forgotten, err := outbox.Forget(r.ctx, r.pool, "sink-1")
		if err != nil {
			t.Fatal(err)
		}
		return forgotten && r.int(`SELECT count(*) FROM outbox_readers`) == 0
	})
}
