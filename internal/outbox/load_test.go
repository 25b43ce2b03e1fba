package outbox_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func TestWhatASinkDoesNotWantCostsItLittle(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var saves atomic.Int64
	r.troubled(func(sql string) bool {
		if strings.HasPrefix(sql, "UPDATE outbox_readers SET epoch") {
			saves.Add(1)
		}
		return false
	})
	relay := r.newRelay(outbox.Options{Pool: r.relays, Shards: 1})
	s := to(&memory.Publisher{})
	s.Wants = func(*outbox.Message) bool { return false }
	r.set(relay, s)
	began := time.Now()
	stop := r.run(relay)
	for range 40 { // for a few seconds something happens in the cluster all the time
		r.commit(r.message("other"))
		relay.Wake()
		if err := pause(r.ctx, 75*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually("the checkpoint follows all the same", func() bool {
		return r.int(`SELECT count(*) FROM outbox_readers WHERE floor >= (SELECT last_value FROM outbox_position)`) == 1
	})
	n, most := saves.Load(), int64(time.Since(began)/time.Second)+2
	stop()
	if n > most {
		t.Errorf("the checkpoint was put down %d times, want at most %d", n, most)
	}
}

func TestAPageIsBoundedByItsBytesToo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const keys, size, bound = 60, 50_000, 200_000
	p := &memory.Publisher{}
	most := &largest{Publisher: p}
	r.set(r.newRelay(outbox.Options{Shards: 1}), to(p))
	for n := range keys {
		m := r.message("key-" + string(rune('a'+n%20)))
		m.Data = json.RawMessage(`"` + strings.Repeat("x", size) + `"`)
		r.commit(m)
	}
	for n := range 200 { // small ones go in large pages again
		r.commit(r.message("small-" + string(rune('a'+n%20))))
	}
	r.relay(outbox.Options{}.PageBytes(bound), to(most))
	r.await(p, keys+200)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
	if n := most.bytes.Load(); n > bound+size+2 {
		t.Errorf("messages of %d bytes were handed over at once", n)
	}
}

// largest knows how large the largest call was.
type largest struct {
	*memory.Publisher
	bytes atomic.Int64
}

func (l *largest) Publish(ctx context.Context, all []outbox.Message) []error {
	var n int64
	for _, m := range all {
		n += int64(len(m.Data))
	}
	l.bytes.Store(max(l.bytes.Load(), n))
	return l.Publisher.Publish(ctx, all)
}

func TestNothingIsReadAheadOfASinkThatTakesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var reads, tries atomic.Int64
	r.troubled(func(sql string) bool {
		if strings.Contains(sql, "read_outbox(") {
			reads.Add(1)
		}
		return false
	})
	var back atomic.Bool
	p := &memory.Publisher{Fault: func(context.Context, *outbox.Message) error {
		if back.Load() {
			return nil
		}
		tries.Add(1)
		return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "nobody there")
	}}
	relay := r.newRelay(outbox.Options{Pool: r.relays, Shards: 1, Page: 10})
	r.set(relay, to(p))
	r.flood(100, 1)
	stop := r.run(relay)
	r.eventually("it is tried again and again", func() bool { return tries.Load() > 12 })
	if n := reads.Load(); n != 1 {
		t.Errorf("%d pages were read", n)
	}
	back.Store(true)
	r.await(p, 100)
	stop()
}
