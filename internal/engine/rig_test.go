package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
	"github.com/vextrus/saga-operator/internal/testenv/keyqueue"
)

// patience bounds what a test waits for; nothing takes that long.
const patience = 10 * time.Minute

// TestMain looks for goroutines that have outlived the tests. One that is about to end may take its time.
func TestMain(m *testing.M) {
	code := m.Run()
	for enough := time.Now().Add(2 * time.Minute); code == 0; {
		err := goleak.Find()
		if err == nil {
			break
		}
		if time.Now().After(enough) {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// scripted is a participant that does what a test says, and notes every call. It stands where a test needs a fault.
type scripted struct {
	mu    sync.Mutex
	calls []participant.Call
	do    func(context.Context, participant.Call) participant.Result
	check func(map[string]any) []saga.FieldError
}

func (s *scripted) Check(with map[string]any) []saga.FieldError {
	if s.check == nil {
		return nil
	}
	return s.check(with)
}

func (s *scripted) Do(ctx context.Context, c participant.Call) participant.Result {
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.mu.Unlock()
	if s.do == nil {
		return participant.Result{Kind: saga.Succeeded}
	}
	return s.do(ctx, c)
}

func (s *scripted) seen() []participant.Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]participant.Call(nil), s.calls...)
}

func rejectStep(name string) func(context.Context, participant.Call) participant.Result {
	return func(_ context.Context, c participant.Call) participant.Result {
		if c.Attempt.Step == name && c.Attempt.Direction == saga.Action {
			return participant.Result{Kind: saga.Rejected, Author: saga.AuthorParticipant, Reason: "No", Message: "no"}
		}
		return participant.Result{Kind: saga.Succeeded}
	}
}

func definition(steps ...string) *saga.Definition {
	def := &saga.Definition{}
	effect := func() saga.Effect {
		return saga.Effect{Kind: "test", With: json.RawMessage(`{"order": "${input.order}"}`), AttemptTimeout: time.Hour,
			Retry: saga.Retry{MaxAttempts: 3, InitialBackoff: time.Millisecond, MaxBackoff: time.Millisecond}}
	}
	for i, name := range steps {
		undo := effect()
		s := saga.Step{Name: name, Do: effect(), Compensation: &undo}
		if i > 0 {
			s.DependsOn = []string{steps[i-1]}
		}
		def.Steps = append(def.Steps, s)
	}
	return def
}

func newKey(t testing.TB) Key {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return Key{Namespace: "shop", Name: "order", UID: id.String()}
}

// unhurried is a store whose last writes take as long as they take: the engine's own bound is for databases that hang.
type unhurried struct{ eventstore.Store }

func (u unhurried) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	return u.Store.Append(context.WithoutCancel(ctx), a)
}

func (u unhurried) Load(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	return u.Store.Load(context.WithoutCancel(ctx), stream, from, limit)
}

func (u unhurried) Version(ctx context.Context, stream string) (int64, error) {
	return u.Store.Version(context.WithoutCancel(ctx), stream)
}

func (u unhurried) Answers(ctx context.Context, uid uuid.UUID, maxResponse int, steps ...string) ([]eventstore.Answer, error) {
	return u.Store.Answers(context.WithoutCancel(ctx), uid, maxResponse, steps...)
}

// clock is one that tests put forward.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bench is an engine with a queue on a store, as one process of the operator would have it.
type bench struct {
	t      testing.TB
	engine *Engine
	queue  *keyqueue.Queue[Key]
	obs    Observation // of every saga
	ended  chan Result
	stop   func()

	mu   sync.Mutex
	ends map[Key]int64 // the version at which each saga has ended last
}

// end notes that a saga has ended. The queue says it again of one that is queued once more.
func (b *bench) end(k Key, r Result) {
	b.mu.Lock()
	again := b.ends[k] == r.State.Version
	b.ends[k] = r.State.Version
	b.mu.Unlock()
	if !again {
		b.ended <- r
	}
}

func newBench(t testing.TB, store eventstore.Store, p participant.Participant, obs Observation) *bench {
	t.Helper()
	b := &bench{t: t, obs: obs, ended: make(chan Result, 1000), ends: map[Key]int64{}}
	b.queue = &keyqueue.Queue[Key]{Workers: 4, Retry: time.Millisecond, Advance: b.advance}
	e, err := New(Options{Store: store, Participants: participant.Registry{"test": p}, Notify: b.queue.Enqueue})
	if err != nil {
		t.Fatal(err)
	}
	b.engine = e
	return b
}

// advance does what internal/testenv/driver does, which these tests cannot import.
func (b *bench) advance(ctx context.Context, k Key) (time.Duration, error) {
	res, err := b.engine.Advance(ctx, k, b.obs)
	switch {
	case err != nil:
		if _, _, transient := Problem(err); transient {
			return 0, err
		}
		return keyqueue.Never, err
	case res.State.Phase.Terminal() || res.State.Parked != nil:
		b.engine.Forget(k)
		b.end(k, res)
	case !res.Wake.IsZero():
		return max(res.Wake.Sub(b.engine.Clock()), 0), nil
	}
	return keyqueue.Never, nil
}

// run starts the queue with the sagas that are not finished; the test's end stops it and then the
// engine.
func (b *bench) run() *bench {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.engine.Unfinished(ctx, func(k Key) bool { b.queue.Enqueue(k); return true })
		b.queue.Run(ctx)
	}()
	b.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		_ = b.engine.Shutdown(gone)
	})
	b.t.Cleanup(b.stop)
	return b
}

func (b *bench) await() Result {
	b.t.Helper()
	select {
	case r := <-b.ended:
		return r
	case <-time.After(patience):
		b.t.Fatal("the saga does not end")
		return Result{}
	}
}

func start(def *saga.Definition) Observation {
	return Observation{Definition: def, Input: json.RawMessage(`{"order":"42"}`), CreatedBy: "ada"}
}

// history returns the types of the events in a saga's stream, and checks that the versions have no gap.
func history(t testing.TB, store eventstore.Store, k Key) []string {
	t.Helper()
	events, err := store.Load(context.Background(), StreamOf(k.UID), 1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, e := range events {
		if e.Version != int64(i)+1 {
			t.Fatalf("event %d of stream %s has version %d", i+1, e.Stream, e.Version)
		}
		names = append(names, e.Type)
	}
	return names
}
