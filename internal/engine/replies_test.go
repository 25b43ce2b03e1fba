package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/participant"
	"github.com/vextrus/saga-operator/internal/saga"
)

// largeReply has a response that Advance does not evaluate by itself.
var largeReply = json.RawMessage(`{"body":{"id":"p-1","rest":"` + strings.Repeat("x", 3*smallReplyBytes) + `"}}`)

// replyRig is an engine with a saga whose step "pay" has been accepted and has a reply. It is not to be
// advanced by anybody but the test.
type replyRig struct {
	*Engine
	key  Key
	told atomic.Int64
}

func newReplyRig(t *testing.T, output string, response json.RawMessage) *replyRig {
	t.Helper()
	return newReplyRigWithInput(t, output, response, start(nil).Input)
}

func newReplyRigWithInput(t *testing.T, output string, response, input json.RawMessage) *replyRig {
	t.Helper()
	r := &replyRig{key: newKey(t)}
	store := memory.New()
	p := later("pay", time.Minute, func(c participant.Call) {
		a := answerTo(c)
		a.Response = response
		put(t, store, a)
	})
	def := definition("pay")
	def.Steps[0].Output = map[string]string{"id": output}
	var err error
	r.Engine, err = New(Options{Store: store, Participants: participant.Registry{"test": p}, Notify: func(Key) { r.told.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Shutdown(t.Context()) })
	obs := start(def)
	obs.Input = input
	if _, err := r.Advance(t.Context(), r.key, obs); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return r
}

func (r *replyRig) advance(t *testing.T) (saga.State, error) {
	t.Helper()
	res, err := r.Advance(t.Context(), r.key, Observation{})
	return res.State, err
}

func (r *replyRig) wantOutput(t *testing.T) {
	t.Helper()
	s, err := r.advance(t)
	if err != nil || s.Phase != saga.Completed || string(s.Step("pay").Output) != `{"id":"p-1"}` {
		t.Errorf("the saga is %s with output %s, %v", s.Phase, s.Step("pay").Output, err)
	}
}

func TestAdvanceEvaluatesSmallReplyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		newReplyRig(t, "${response.body.id}", json.RawMessage(`{"body":{"id":"p-1"}}`)).wantOutput(t)
	})
}

// TestAdvanceEvaluatesSmallReplyLaterIfInputIsLarge has an output that reads an input of 32 KiB.
func TestAdvanceEvaluatesSmallReplyLaterIfInputIsLarge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		input := json.RawMessage(`{"order":"p-1","rest":"` + strings.Repeat("x", 2*smallStateBytes) + `"}`)
		r := newReplyRigWithInput(t, "${input.order}", json.RawMessage(`{"body":{}}`), input)
		if _, err := r.advance(t); !errors.Is(err, ErrPreparing) {
			t.Fatalf("before it is evaluated: %v", err)
		}
		synctest.Wait()
		r.wantOutput(t)
	})
}

// TestAdvanceEvaluatesLargeReplyLater also holds that a reply which came in time is not given
// up because its evaluation ends later.
func TestAdvanceEvaluatesLargeReplyLater(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		output   string
		response json.RawMessage
		scarce   func(*budgets) *budget.Budget
	}{
		"a large response":  {"${response.body.id}", largeReply, func(b *budgets) *budget.Budget { return b.responses }},
		"a computed output": {"${'p' + '-1'}", json.RawMessage(`{"body":{}}`), func(b *budgets) *budget.Budget { return b.evaluation }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newReplyRig(t, test.output, test.response)
				memory := test.scarce(r.budgets).Open("shop")
				if err := memory.Take(DefaultMemory / 2); err != nil {
					t.Fatal(err)
				}
				told := r.told.Load()
				for range 2 {
					if _, err := r.advance(t); !errors.Is(err, ErrPreparing) {
						t.Fatalf("before it is evaluated: %v", err)
					}
				}
				<-time.After(replyTimeout + time.Minute)
				if got := r.told.Load() - told; got != 1 {
					t.Errorf("told %d times that there is no memory, want once", got)
				}
				if _, err := r.advance(t); !errors.Is(err, errNoMemory) {
					t.Errorf("without memory: %v", err)
				}
				memory.Close()
				if _, err := r.advance(t); !errors.Is(err, ErrPreparing) {
					t.Errorf("before it is evaluated: %v", err)
				}
				synctest.Wait()
				r.wantOutput(t)
				if used := r.budgets.responses.Used() + r.budgets.evaluation.Used(); used > 0 {
					t.Errorf("%d bytes are used after the evaluation", used)
				}
			})
		})
	}
}

func TestReplyEvaluationLoadsDroppedState(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New()
		p := later("pay", time.Minute, func(c participant.Call) {
			a := answerTo(c)
			a.Response = largeReply
			put(t, store, a)
		})
		def := definition("pay")
		def.Steps[0].Output = map[string]string{"both": "${input.order + response.body.id}"}
		obs := start(def)
		obs.Input = json.RawMessage(fmt.Sprintf(`{"order":"42","rest":%q}`, strings.Repeat("x", 2*smallStateBytes)))
		b := newBench(t, store, p, obs).run()
		b.queue.Enqueue(newKey(t))
		if r := b.await(); r.State.Phase != saga.Completed || string(r.State.Step("pay").Output) != `{"both":"42p-1"}` {
			t.Errorf("the saga is %s with output %s", r.State.Phase, r.State.Step("pay").Output)
		}
		b.stop()
	})
}

func TestShutdownRecordsReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReplyRig(t, "${response.body.id}", largeReply)
		r.closed = true
		held := r.sagas[r.key.UID]
		held.observe(Observation{})
		for range 2 {
			if _, err := r.advanceOnce(t.Context(), held); err != nil {
				t.Fatal(err)
			}
		}
		if got := string(held.state.Step("pay").Output); got != `{"id":"p-1"}` {
			t.Errorf("the output is %s", got)
		}
	})
}

func TestInvalidReplyIsUnknown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReplyRig(t, "${response.body.id + '!'}", json.RawMessage(`[]`))
		_, _ = r.advance(t)
		synctest.Wait()
		s, err := r.advance(t)
		if err != nil || s.Version == 0 {
			t.Fatalf("the reply is not recorded: %v", err)
		}
		if do := s.Step("pay").Do; do.Reason != reasonOutput {
			t.Errorf("%+v", do)
		}
	})
}

// TestRepliesOfOneSagaAreRecordedTogether has more replies than are evaluated at a time, with outputs of
// which two find memory. They are recorded together, once all are evaluated.
func TestRepliesOfOneSagaAreRecordedTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const steps, size = 2*maxReplies + 1, 50 << 10
		store, def := memory.New(), &saga.Definition{}
		for i := range steps {
			s := definition("a").Steps[0]
			s.Name, s.Output = fmt.Sprint("s", i), map[string]string{"all": "${response.body}"}
			def.Steps = append(def.Steps, s)
		}
		p := &scripted{do: func(_ context.Context, c participant.Call) participant.Result {
			a := answerTo(c)
			a.Response = json.RawMessage(fmt.Sprintf(`{"body":%q}`, strings.Repeat("x", size)))
			put(t, store, a)
			return participant.Result{Accepted: true, AnswerWithin: time.Hour}
		}}
		e, err := New(Options{Store: store, Participants: participant.Registry{"test": p}, Notify: func(Key) {}, Memory: Memory{Outputs: 5 * size}})
		if err != nil {
			t.Fatal(err)
		}
		k := newKey(t)
		if _, err := e.compileNow(t.Context(), k.Namespace, *def); err != nil {
			t.Fatal(err)
		}
		var s saga.State
		for i := range 10 {
			r, err := e.Advance(t.Context(), k, start(def))
			if err != nil && !errors.Is(err, ErrPreparing) {
				t.Fatal(err)
			}
			if s = r.State; s.Phase.Terminal() {
				break
			}
			synctest.Wait()
			if n := len(e.sagas[k.UID].waiting()); i == 1 && (n == 0 || n > maxReplies+2) {
				t.Errorf("the outputs of %d replies wait to be recorded, want at most %d", n, maxReplies+2)
			}
			<-time.After(2 * replyTimeout)
		}
		if s.Phase != saga.Completed || len(s.Step("s0").Output) < size {
			t.Errorf("the saga is %s", s.Phase)
		}
		e.Forget(k)
		synctest.Wait()
		if used := e.budgets.outputs.Used(); used > 0 {
			t.Errorf("%d bytes are used when all outputs are recorded", used)
		}
	})
}

// TestForgottenSagaHoldsNoReply has a saga that is forgotten while its reply is evaluated.
func TestForgottenSagaHoldsNoReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReplyRig(t, "${response.body.rest}", largeReply)
		memory := r.budgets.responses.Open("shop")
		if err := memory.Take(DefaultMemory / 2); err != nil {
			t.Fatal(err)
		}
		if _, err := r.advance(t); !errors.Is(err, ErrPreparing) {
			t.Fatal(err)
		}
		held := r.sagas[r.key.UID]
		r.Forget(r.key)
		memory.Close()
		synctest.Wait()
		if len(held.waiting()) > 0 || len(held.replies) > 0 {
			t.Errorf("%d outcomes wait, %d replies are evaluated", len(held.waiting()), len(held.replies))
		}
		if used := r.budgets.outputs.Used() + r.budgets.states.Used(); used > 0 {
			t.Errorf("%d bytes are used", used)
		}
	})
}
