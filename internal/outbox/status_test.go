package outbox_test

import (
	"testing"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

// beginSink registers the sink of the tests without running a relay, so that its checkpoint stays where it is.
func (r *rig) beginSink() {
	r.t.Helper()
	if err := r.newRelay(outbox.Options{Shards: 2}).Begin(r.ctx, "sink-1", "shop/events"); err != nil {
		r.t.Fatal(err)
	}
}

// TestStatusAgesLateMessage commits a message whose position is below the floor of the sink's checkpoint. Its transaction was running when the checkpoint was taken.
func TestStatusAgesLateMessage(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*rig){
		"of the newest transaction": func(*rig) {},
		"of an older transaction":   func(r *rig) { r.flood(3, 1) },
		"read past by a relay": func(r *rig) {
			_, stop := r.relay(outbox.Options{Shards: 2}, to(&memory.Publisher{}))
			r.flood(3, 1)
			r.eventually("the checkpoint is behind everything", func() bool { return r.status().Published == 3 && r.status().Backlog == 0 })
			stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			commit := r.late()
			prepare(r)
			r.beginSink()
			commit()
			if s := r.status(); s.Backlog != 1 || s.OldestAge <= 0 {
				t.Errorf("the status is %+v", s)
			}
		})
	}
}

// TestStatusIgnoresUncommittedMessage draws a position above the floor and does not commit.
func TestStatusIgnoresUncommittedMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.beginSink()
	commit := r.late()
	if s := r.status(); s.Backlog != 0 || s.OldestAge != 0 {
		t.Errorf("the status is %+v before the commit", s)
	}
	commit()
	if s := r.status(); s.Backlog != 1 || s.OldestAge <= 0 {
		t.Errorf("the status is %+v after the commit", s)
	}
}

// TestStatusCountsLargeLateTransaction commits many messages at positions below the floor, in a transaction whose id is the first that the checkpoint does not know.
func TestStatusCountsLargeLateTransaction(t *testing.T) {
	t.Parallel()
	const messages = 100_000
	r := newRig(t)
	tx := r.begin()
	if _, err := tx.Exec(r.ctx, `INSERT INTO outbox_events (message_id, type, key, destination, data, metadata)
		SELECT gen_random_uuid(), 'test.Late', 'late', '', '1', '{"source":"/tests","sequence":1}' FROM generate_series(1, $1)`, messages); err != nil {
		t.Fatal(err)
	}
	r.beginSink()
	var id string
	if err := tx.QueryRow(r.ctx, `SELECT pg_current_xact_id()::text`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	if _, err := r.pool.Exec(r.ctx, `UPDATE outbox_readers SET done = ($1 || ':' || $1 || ':')::pg_snapshot`, id); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(r.ctx); err != nil {
		t.Fatal(err)
	}
	if s := r.status(); s.Backlog != messages || s.OldestAge <= 0 {
		t.Errorf("the status is %+v", s)
	}
}
