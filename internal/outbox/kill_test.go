package outbox_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/outbox"
)

// childURL names the database in the environment of a process that only relays, until it is killed.
const childURL = "OUTBOX_TEST_CHILD"

const (
	childShards, childPage, childBatch, childParallel = 2, 10, 4, 2
	// childHand is what such a process has in hand at most, published and not put down: in each shard what it published since it last put its checkpoint down, which is less than a
	// page, another page, and the parked messages that it tries at once.
	childHand = childShards * (2*childPage + childBatch*childParallel)
)

// child relays to its standard output: each line is a message that its reader has for good.
func child(url string) int {
	ctx := context.Background()
	pool, err := openPool(ctx, url, childURL)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	relay, err := outbox.NewRelay(outbox.Options{Pool: pool, Page: childPage, Lease: forGood, Shards: childShards})
	if err == nil {
		s := to(&lines{})
		s.Retry.MaxAttempts = 1_000_000 // a dead letter, however rare, would be missing in the end
		err = relay.Set(ctx, s)
	}
	if err == nil {
		err = relay.Run(ctx)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// lines publishes by writing lines.
type lines struct{ mu sync.Mutex }

func (*lines) Check(context.Context) error { return nil }
func (*lines) Close() error                { return nil }
func (*lines) Limits() outbox.Limits {
	return outbox.Limits{Batch: childBatch, Parallel: childParallel}
}

func (l *lines) Publish(_ context.Context, all []outbox.Message) []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	errs := make([]error, len(all))
	for i := range all {
		if rand.IntN(50) == 0 { // some messages fail, so that processes are killed while they park some, too
			errs[i] = outbox.Errorf(outbox.Failed, outbox.ReasonRefused, "not this time")
			continue
		}
		if _, err := fmt.Fprintf(os.Stdout, "%s %d\n", all[i].Key, all[i].Sequence); err != nil {
			errs[i] = err
		}
	}
	return errs
}

func TestARelayThatIsKilledLosesNothingAndRepeatsNoMoreThanItHadInHand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const keys, each, kills = 40, 60, 12
	r.flood(1, 1) // the readers begin behind this
	r.set(r.newRelay(outbox.Options{Shards: childShards}), to(&lines{}))
	feeding := make(chan struct{})
	go func() {
		defer close(feeding)
		for range each {
			for k := range keys {
				r.commit(r.message("k" + strconv.Itoa(k)))
			}
		}
	}()
	var taken []outbox.Message
	came, last := map[string]bool{}, map[string]int64{} // which messages, and the last one of each key
	all := func() bool {
		for k := range keys {
			if last["k"+strconv.Itoa(k)] != each {
				return false
			}
		}
		return true
	}
	for n := 0; !all(); n++ {
		after := 200 + rand.IntN(60)
		some := runChild(r, func(some []outbox.Message) bool {
			m := some[len(some)-1]
			last[m.Key] = m.Sequence
			return n < kills && len(some) >= after || all()
		})
		again := map[string]bool{}
		for _, m := range some {
			if name := m.Key + " " + strconv.FormatInt(m.Sequence, 10); came[name] {
				again[name] = true
			}
		}
		for _, m := range some {
			came[m.Key+" "+strconv.FormatInt(m.Sequence, 10)] = true
		}
		if len(again) > childHand {
			t.Errorf("of %d messages %d had come before, more than the %d that the process before had in hand", len(some), len(again), childHand)
		}
		taken = append(taken, some...)
		r.bury()
	}
	<-feeding
	if err := complete(taken, r.counts, len(taken)); err != nil { // how many times was looked at above
		t.Error(err)
	}
}

// runChild runs a process that relays until it has published enough, kills it then, and returns what it published.
func runChild(r *rig, enough func([]outbox.Message) bool) (taken []outbox.Message) {
	r.t.Helper()
	cmd := exec.CommandContext(r.ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childURL+"="+r.url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = r.t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	killed := false
	reader := bufio.NewReader(out)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			if line != "" || !errors.Is(err, io.EOF) {
				r.t.Logf("the last line is %q: %v", line, err)
			}
			break
		}
		var m outbox.Message
		key, n, _ := strings.Cut(strings.TrimSpace(line), " ")
		m.Key = key
		if m.Sequence, err = strconv.ParseInt(n, 10, 64); err != nil {
			r.t.Fatal(err)
		}
		if taken = append(taken, m); enough(taken) {
			killed = true
			_ = cmd.Process.Kill()
		}
	}
	if err := cmd.Wait(); !killed {
		r.t.Fatalf("the process ended by itself, after %d messages: %v", len(taken), err)
	}
	return taken
}

// bury has the time pass after which the leases of a process that was killed are over, when the last of its statements is.
func (r *rig) bury() {
	r.t.Helper()
	r.eventually("its connections are gone", func() bool {
		return r.int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1`, childURL) == 0
	})
	for _, sql := range []string{`UPDATE outbox_readers SET lease_until = lease_until - $1::interval`, `UPDATE outbox_relays SET seen_at = seen_at - $1::interval`} {
		if _, err := r.pool.Exec(r.ctx, sql, forGood); err != nil {
			r.t.Fatal(err)
		}
	}
}

// renewal reports whether a statement renews a lease, and so learns that it is lost.
func renewal(sql string) bool { return strings.Contains(sql, "RETURNING commands") }

// TestAStaleRelayPublishesNothingBeyondWhatItHadInHand has one that nobody tells that its lease is somebody else's: it has to look before it publishes more.
func TestAStaleRelayPublishesNothingBeyondWhatItHadInHand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.troubled(renewal)
	var log lockedLog
	stale := &slow{gate: make(chan struct{}), began: make(chan struct{}, 1000), batch: 4}
	_, stop := r.relay(outbox.Options{Pool: r.relays, Shards: 1, Page: 100, Logger: slog.New(slog.NewTextHandler(&log, nil))}, to(stale))
	open := sync.OnceFunc(func() { close(stale.gate) })
	t.Cleanup(open)
	r.flood(20, 5)
	<-stale.began // it has a batch in hand
	if _, err := r.pool.Exec(r.ctx, `UPDATE outbox_readers SET lease_epoch = lease_epoch + 1, owner = 'thief', lease_until = now() + interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	if err := pause(r.ctx, 200*time.Millisecond); err != nil { // after which it is not certain any more of what it knew
		t.Fatal(err)
	}
	open()
	r.eventually("it finds that the lease is lost, or goes on", func() bool { return strings.Contains(log.String(), "somebody else's now") || stale.calls.Load() > 1 })
	stop()
	if n := stale.calls.Load(); n != 1 {
		t.Errorf("the stale relay called the broker %d times", n)
	}
	if n := r.int(`SELECT published FROM outbox_readers`); n != 0 {
		t.Errorf("it counted %d messages", n)
	}
	if n := r.int(`SELECT count(*) FROM outbox_readers WHERE owner = 'thief' AND lease_until > now()`); n != 1 {
		t.Error("the lease is not the other's any more")
	}
}

func TestALeaseThatCannotBeRenewedIsGivenUpWhenItEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.troubled(renewal)
	stuck := &slow{gate: make(chan struct{}), began: make(chan struct{}, 1000), batch: 4}
	s := to(stuck)
	s.Timeout = time.Hour
	r.relay(outbox.Options{Pool: r.relays, Shards: 1, Lease: 2 * time.Second}, s)
	t.Cleanup(func() { close(stuck.gate) })
	r.flood(4, 1)
	<-stuck.began
	r.eventually("what is under way is given up", stuck.given.Load)
}

func TestSeveralRelaysShareTheShardsAndOneThatGoesLeavesItsPart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	shared := &gathered{}
	_, stopA := r.relay(outbox.Options{Owner: "a", Shards: 4}, to(shared.publisher("a")))
	r.eventually("one relay has all shards", func() bool { return r.owners()["a"] == 4 })
	r.relay(outbox.Options{Owner: "b"}, to(shared.publisher("b")))
	r.eventually("two relays have two each", func() bool { return r.owners()["a"] == 2 && r.owners()["b"] == 2 })
	const keys, each = 40, 50
	r.flood(keys, each/2)
	r.eventually("half is published", func() bool { return shared.len() >= keys*each/2 })
	stopA()
	for n := each/2 + 1; n <= each; n++ {
		for k := range keys {
			r.commit(eventstore.Message{ID: uuid.New(), Type: "test.Happened", Key: fmt.Sprintf("key-%d", k+1), Source: "/tests", Sequence: int64(n), Data: json.RawMessage(`1`)})
		}
	}
	r.eventually("all is published", func() bool { return shared.len() >= keys*each })
	if err := complete(shared.all(), flooded(keys, each), 0); err != nil {
		t.Error(err)
	}
	if by := shared.by(); by["a"] == 0 || by["b"] == 0 {
		t.Errorf("published were %v", by)
	}
	r.eventually("the other has all shards", func() bool { return r.owners()["b"] == 4 })
}
