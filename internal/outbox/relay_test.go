package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/memory"
)

func TestEveryCommittedMessageIsPublishedInTheOrderOfItsKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 7, Parallel: 3}}
	r.relay(outbox.Options{Page: 50}, to(p))
	const writers, each = 8, 100
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range each {
				r.commit(r.message("key-" + strconv.Itoa(w)))
			}
		})
	}
	wg.Wait()
	r.await(p, writers*each)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
	r.eventually("the backlog is gone", func() bool { s := r.status(); return s.Backlog == 0 && s.Published == writers*each })
}

func TestWhatIsCommittedLateIsPublishedToo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{}
	r.relay(outbox.Options{}, to(p))
	tx := r.begin()
	if _, err := tx.Exec(r.ctx, `INSERT INTO outbox_events (message_id, type, key, destination, data, metadata)
		VALUES (gen_random_uuid(), 'test.Late', 'late', '', '1', '{"source":"/tests","sequence":1}')`); err != nil {
		t.Fatal(err)
	}
	r.commit(r.message("early"), r.message("early"))
	r.await(p, 2)
	if err := tx.Commit(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.await(p, 3)
	if last := p.Taken()[2]; last.Key != "late" {
		t.Errorf("the third is %s", last.Key)
	}
}

func TestAtMostOneMessageOfAKeyIsOnItsWayAndManyKeysAre(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var mu sync.Mutex
	under := map[string]int{}
	several, first := make(chan struct{}), true // is closed when two are on their way for the first time: nobody gets on without
	const keys, each = 20, 10
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 1, Parallel: 16}}
	p.Fault = func(ctx context.Context, m *outbox.Message) error {
		mu.Lock()
		under[m.Key]++
		if under[m.Key] > 1 {
			t.Errorf("two of key %s at once", m.Key)
		}
		total := 0
		for _, n := range under {
			total += n
		}
		if total == 2 && first {
			first = false
			close(several)
		}
		mu.Unlock()
		select {
		case <-several:
		case <-r.ctx.Done():
		}
		_ = pause(ctx, time.Duration(rand.IntN(3))*time.Millisecond)
		mu.Lock()
		under[m.Key]--
		mu.Unlock()
		return nil
	}
	r.relay(outbox.Options{Shards: 1}, to(p))
	r.flood(keys, each)
	r.await(p, keys*each)
	if err := complete(p.Taken(), flooded(keys, each), 0); err != nil {
		t.Error(err)
	}
}

func TestAKeyThatFailsWaitsWithItsFollowersWhileAllOthersGoOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const keys, each = 50, 4
	var mended atomic.Bool
	p := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "key-7" && m.Sequence >= 2 && !mended.Load() {
			return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "not today")
		}
		return nil
	}}
	s := to(p)
	s.Retry.MaxAttempts = 1_000_000
	r.relay(outbox.Options{Page: 20}, s)
	r.flood(keys, each)
	r.await(p, keys*each-3)
	r.eventually("its messages are parked", func() bool { return len(r.parked(outbox.Selection{})) == 3 })
	if head := r.parked(outbox.Selection{})[0]; head.Key != "key-7" || head.Dead || head.Reason != outbox.ReasonRefused || head.Sink != "shop/events" {
		t.Errorf("parked is %+v", head)
	}
	mended.Store(true)
	r.await(p, keys*each)
	if err := complete(p.Taken(), flooded(keys, each), 0); err != nil {
		t.Error(err)
	}
	r.eventually("nothing is parked", func() bool { return len(r.parked(outbox.Selection{})) == 0 })
	r.commit(eventstore.Message{ID: r.message("x").ID, Type: "test.Happened", Key: "key-7", Source: "/tests", Sequence: each + 1, Data: []byte("5")})
	r.await(p, keys*each+1)
}

// TestParkedKeyHoldsBackWhatIsReadLater has the next message of a key come when its first is parked
// already.
func TestParkedKeyHoldsBackWhatIsReadLater(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 1, Parallel: 1}, Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "a" && m.Sequence == 1 {
			return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "not today")
		}
		return nil
	}}
	s := to(p)
	s.Retry.MaxAttempts = 1_000_000
	r.relay(outbox.Options{Shards: 1}, s)
	r.commit(r.message("a"))
	r.eventually("it is parked", func() bool { return len(r.parked(outbox.Selection{})) == 1 })
	r.commit(r.message("a"), r.message("b"))
	r.await(p, 1)
	if m := p.Taken()[0]; m.Key != "b" {
		t.Errorf("message %d of key %s was published, and the one before it was not", m.Sequence, m.Key)
	}
}

func TestAPoisonMessageAmongManyKeysHoldsUpOnlyItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const keys, each = 10_000, 3
	var mended atomic.Bool
	p := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "key-4711" && m.Sequence == 1 && !mended.Load() {
			return outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "it cannot be read")
		}
		return nil
	}}
	r.relay(outbox.Options{}, to(p))
	r.flood(keys, each)
	r.await(p, keys*each-each)
	r.eventually("the message is a dead letter", func() bool { return len(r.parked(outbox.Selection{Dead: true})) == 1 })
	dead := r.parked(outbox.Selection{Dead: true})[0]
	if dead.Key != "key-4711" || dead.Attempts != 3 || dead.Error != "it cannot be read" {
		t.Errorf("the dead letter is %+v", dead)
	}
	r.eventually("the status says so", func() bool {
		s := r.status()
		return s.DeadLetters == 1 && s.Backlog == each-1 && s.OldestAge > 0
	})
	mended.Store(true)
	if n, err := outbox.RetryParked(r.ctx, r.pool, outbox.Selection{Sink: "shop/events", Dead: true}); err != nil || n != 1 {
		t.Fatalf("retrying: %d, %v", n, err)
	}
	r.await(p, keys*each)
	if err := complete(p.Taken(), flooded(keys, each), 0); err != nil {
		t.Error(err)
	}
}

func TestADefiniteNoIsADeadLetterAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var tries atomic.Int32
	p := &memory.Publisher{Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Sequence == 1 {
			tries.Add(1)
			return outbox.Errorf(outbox.Rejected, outbox.ReasonTooLarge, "too large \x00 by far \xff")
		}
		return nil
	}}
	r.relay(outbox.Options{}, to(p))
	r.commit(r.message("a"), r.message("a"))
	r.eventually("it is a dead letter", func() bool { return len(r.parked(outbox.Selection{Dead: true})) == 1 })
	if n := tries.Load(); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
	r.eventually("its follower waits", func() bool { return len(r.parked(outbox.Selection{})) == 2 })
	dead := r.parked(outbox.Selection{Dead: true})[0]
	if n, err := outbox.Drop(r.ctx, r.pool, outbox.Selection{IDs: []uuid.UUID{dead.ID}}, "ann@desk", "nobody needs it"); err != nil || n != 1 {
		t.Fatalf("dropping: %d, %v", n, err)
	}
	r.await(p, 1)
	var actor, reason string
	if err := r.pool.QueryRow(r.ctx, `SELECT actor, reason FROM outbox_dropped WHERE message_id = $1`, dead.ID).Scan(&actor, &reason); err != nil || actor != "ann@desk" || reason != "nobody needs it" {
		t.Errorf("kept is %q, %q, %v", actor, reason, err)
	}
}

func TestWhoSelectsNothingIsTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := outbox.RetryParked(r.ctx, r.pool, outbox.Selection{Sink: "nobody"}); !errors.Is(err, outbox.ErrNoneSelected) {
		t.Errorf("retrying: %v", err)
	}
	if _, err := outbox.Drop(r.ctx, r.pool, outbox.Selection{OlderThan: time.Hour}, "ann", "why not"); !errors.Is(err, outbox.ErrNoneSelected) {
		t.Errorf("dropping: %v", err)
	}
	if _, err := outbox.Drop(r.ctx, r.pool, outbox.Selection{}, "ann", ""); err == nil || errors.Is(err, outbox.ErrNoneSelected) {
		t.Errorf("dropping without a reason: %v", err)
	}
}

func TestASinkThatIsAwayKeepsItsBacklogInTheLogAndDrainsInOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const keys, each = 1_000, 100
	var back atomic.Bool
	var tries atomic.Int64
	p := &memory.Publisher{Fault: func(context.Context, *outbox.Message) error {
		if !back.Load() {
			tries.Add(1)
			return outbox.Errorf(outbox.Unavailable, outbox.ReasonConnectionFailed, "connecting to nowhere: refused")
		}
		return nil
	}}
	other := &memory.Publisher{}
	second := outbox.Sink{ID: "sink-2", Name: "shop/other", Publisher: other}
	r.relay(outbox.Options{}, to(p), second)
	r.flood(keys, each)
	r.await(other, keys*each)
	s := r.status()
	r.eventually("the status says so", func() bool { s = r.status(); return s.Reason == outbox.ReasonConnectionFailed })
	if s.Backlog != keys*each || s.OldestAge <= 0 || s.Trouble == "" {
		t.Errorf("the status is %+v", s)
	}
	if n := len(r.parked(outbox.Selection{})); n != 0 {
		t.Errorf("%d messages are parked", n)
	}
	if n := tries.Load(); n > 20_000 { // a call for each message would be 100,000, and that is only the first time
		t.Errorf("the sink was tried with %d messages", n)
	}
	back.Store(true)
	r.await(p, keys*each)
	if err := complete(p.Taken(), flooded(keys, each), 0); err != nil {
		t.Error(err)
	}
	r.eventually("the trouble is over", func() bool { s = r.status(); return s.Reason == "" && s.Backlog == 0 })
}

func TestASinkThatRefusesEverythingIsLeftAloneBeforeItsDeadLettersPileUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const keys = 20_000
	var back atomic.Bool
	var tries atomic.Int64
	p := &memory.Publisher{Fault: func(context.Context, *outbox.Message) error {
		if back.Load() {
			return nil
		}
		tries.Add(1)
		return errors.New("no")
	}}
	r.relay(outbox.Options{Shards: 1, Page: 500}, to(p)) // whose messages are dead letters after three attempts, milliseconds apart
	r.flood(keys, 1)
	r.eventually("the status says so", func() bool { return r.status().Reason != "" })
	since := tries.Load()
	r.eventually("it is tried again and again", func() bool { return tries.Load() > since+8 })
	if n := len(r.parked(outbox.Selection{Limit: keys})); n > 500 {
		t.Errorf("%d messages are parked", n)
	}
	s := r.status()
	if s.DeadLetters > 500 || s.Backlog+s.DeadLetters < keys {
		t.Errorf("the status is %+v", s)
	}
	back.Store(true)
	r.eventually("the trouble is over", func() bool { s = r.status(); return s.Reason == "" && s.Backlog == 0 })
	if n := len(p.Taken()); s.DeadLetters > 500 || n != keys-int(s.DeadLetters) {
		t.Errorf("%d messages of %d have arrived, and %d are dead letters", n, keys, s.DeadLetters)
	}
}

func TestANewSinkGetsWhatIsCommittedFromNowOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.commit(r.message("a"), r.message("b"))
	p := &memory.Publisher{}
	r.relay(outbox.Options{}, to(p))
	r.commit(r.message("a"))
	r.await(p, 1)
	if m := p.Taken()[0]; m.Sequence != 2 {
		t.Errorf("it got %d of key %s", m.Sequence, m.Key)
	}
}

func TestASinkGetsWhatItWantsAndWhatIsSentToIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p, q := &memory.Publisher{}, &memory.Publisher{}
	first := to(p)
	first.Wants = func(m *outbox.Message) bool { return m.Namespace == "shop" }
	second := outbox.Sink{ID: "sink-2", Name: "bank/events", Publisher: q, Wants: func(m *outbox.Message) bool { return m.Namespace == "bank" }}
	r.relay(outbox.Options{}, first, second)
	mine, other, sent, last := r.message("a"), r.message("b"), r.message("c"), r.message("d")
	other.Namespace = "bank"
	sent.Destination = "bank/events"
	r.commit(mine, other, sent, last)
	r.await(p, 2)
	r.await(q, 2)
	var got []string
	for _, m := range append(p.Taken(), q.Taken()...) {
		got = append(got, m.Key)
	}
	slices.Sort(got[:2])
	slices.Sort(got[2:])
	if fmt.Sprint(got) != "[a d b c]" {
		t.Errorf("they got %v", got)
	}
}

func TestAChangedSinkTakesOverWithoutLossAndTheOldConnectionIsClosed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p, q := &memory.Publisher{}, &memory.Publisher{}
	relay, _ := r.relay(outbox.Options{}, to(p))
	for range 50 {
		r.commit(r.message("a"))
	}
	r.set(relay, to(q))
	for range 50 {
		r.commit(r.message("a"))
	}
	r.eventually("all is published", func() bool { return len(p.Taken())+len(q.Taken()) >= 100 })
	if err := complete(append(p.Taken(), q.Taken()...), r.counts, 0); err != nil {
		t.Error(err)
	}
	r.eventually("the old connection is closed", p.Closed)
	relay.Remove("sink-1")
	r.eventually("the new one is closed with its sink", q.Closed)
}

func TestAPublisherThatPanicsOrMiscountsHoldsUpOnlyItsMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var once, twice atomic.Bool
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 1, Parallel: 2}, Fault: func(_ context.Context, m *outbox.Message) error {
		if m.Key == "a" && !once.Swap(true) {
			panic("boom")
		}
		return nil
	}}
	r.relay(outbox.Options{}, to(forgetful{p, &twice}))
	r.commit(r.message("a"), r.message("b"), r.message("a"), r.message("b"))
	r.await(p, 4)
	if err := complete(p.Taken(), r.counts, 0); err != nil {
		t.Error(err)
	}
}

// forgetful gives no answer to the first message of key b.
type forgetful struct {
	*memory.Publisher
	done *atomic.Bool
}

func (f forgetful) Publish(ctx context.Context, all []outbox.Message) []error {
	if all[0].Key == "b" && !f.done.Swap(true) {
		return nil
	}
	return f.Publisher.Publish(ctx, all)
}

// TestARelayThatIsStoppedInTheMiddleOfAPageGoesOnThere stops it while much of the page that it has read is not published yet.
func TestARelayThatIsStoppedInTheMiddleOfAPageGoesOnThere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const keys, each, enough = 10, 10, 30
	reached, stopping := make(chan struct{}), make(chan struct{})
	var n atomic.Int64
	p := &memory.Publisher{Sizes: outbox.Limits{Batch: 1, Parallel: 1}, Fault: func(context.Context, *outbox.Message) error {
		if n.Add(1) == enough {
			close(reached)
			<-stopping
		}
		return nil
	}}
	relay := r.newRelay(outbox.Options{Shards: 1})
	r.set(relay, to(p))
	r.flood(keys, each)
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.ctx))
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	<-reached
	cancel()
	close(stopping)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := len(p.Taken()); got != enough {
		t.Fatalf("%d messages were published before the relay stopped, want %d", got, enough)
	}
	if backlog := r.status().Backlog; backlog < keys*each-enough {
		t.Fatalf("%d messages wait after the stop, and %d were not published", backlog, keys*each-enough)
	}
	q := &memory.Publisher{}
	r.relay(outbox.Options{}, to(q))
	r.await(q, keys*each-enough)
	if err := complete(append(p.Taken(), q.Taken()...), flooded(keys, each), 1); err != nil {
		t.Error(err)
	}
}
