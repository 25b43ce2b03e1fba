package engine

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vextrus/saga-operator/internal/budget"
	"github.com/vextrus/saga-operator/internal/saga"
)

// attempt is one that this process is to carry out.
type attempt struct {
	cancel context.CancelCauseFunc
	// sent is true from the moment in which it is handed to the participant; before, it waits for a
	// place in the pool.
	sent bool
}

// knowledge is what the engine knows of a saga's stream.
type knowledge int

const (
	// streamUnseen: nothing has been read or observed.
	streamUnseen knowledge = iota
	// streamPresumedNew: the caller brought a definition, so it means to start the saga, and the
	// stream is taken to be empty without asking the store. Most are. The first append expects an
	// empty stream; if it loses, the stream is loaded. It saves each new saga a round trip.
	streamPresumedNew
	// streamUnknown: the stream has to be loaded.
	streamUnknown
	// streamLoaded: state is the fold of the stream as it was last read or appended to.
	streamLoaded
)

// arrival is an outcome that has arrived and is not recorded yet.
type arrival struct {
	saga.Outcome
	at time.Time
}

// inOrder returns outcomes in the order in which they arrived. Those that arrived at one instant are in
// the order of their attempts, because the order in which goroutines run must not decide anything.
func inOrder(all []arrival) []saga.Outcome {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b arrival) int {
		return cmp.Or(a.at.Compare(b.at), strings.Compare(a.Attempt.Key(""), b.Attempt.Key("")))
	})
	outcomes := make([]saga.Outcome, len(all))
	for i := range all {
		outcomes[i] = all[i].Outcome
	}
	return outcomes
}

// running is what the engine holds of one saga in memory. All of it can be lost at any time: the stream has everything.
type running struct {
	key   Key
	clock func() time.Time

	// turn holds one token, which belongs to the one Advance that moves the saga. It guards the fields of this group. It is a channel
	// and not a mutex because it is held over calls of the store: a goroutine that waits for it can be seen to wait (testing/synctest).
	turn     chan struct{}
	stream   knowledge
	state    saga.State
	plan     *saga.Plan
	observed Observation
	// hold is of the plan, if it is kept between two calls of Advance; guarded by mu.
	hold *planHold
	kept *plansInUse
	// stateAccount holds the memory of state between two calls of Advance.
	stateAccount *budget.Account

	// mu guards what attempts touch when they end.
	mu       sync.Mutex
	outcomes []arrival
	// outputAccount holds the memory of large outputs among them; recording ends when some are recorded.
	outputAccount *budget.Account
	recording     context.Context
	stopRecording context.CancelFunc
	// attempts are those that this process is to carry out; nil once the saga has been abandoned.
	attempts map[saga.Attempt]*attempt
	// replies are those that are being evaluated; replyError is why the latest of them could not be.
	replies    map[saga.Attempt]bool
	replyError error
	// preparation is the compilation of the definition, until its result has been taken.
	preparation *preparation
}

func newRunning(key Key, b *budgets, clock func() time.Time) *running {
	return &running{
		key: key, clock: clock, stateAccount: b.states.Open(key.Namespace), kept: b.kept, outputAccount: b.outputs.Open(key.Namespace),
		turn: make(chan struct{}, 1), attempts: map[saga.Attempt]*attempt{},
	}
}

// enter waits for the saga's turn; leave ends it.
func (r *running) enter() { r.turn <- struct{}{} }
func (r *running) leave() { <-r.turn }

func (r *running) result() Result {
	res := Result{State: r.state}
	if r.plan != nil {
		res.Wake = r.plan.Wake(r.state)
	}
	return res
}

// The transitions of what is known of the stream:
//
//	unseen → presumedNew or unknown   an observation with a definition, or without
//	any → loaded                      the stream has been read, or an append has been committed
//	any → unknown                     an append lost, or it is not known what was committed

func (r *running) observe(obs Observation) {
	r.observed = obs
	if r.stream != streamUnseen && r.stream != streamPresumedNew {
		return
	}
	r.stream = streamUnknown
	if obs.Definition != nil {
		r.stream = streamPresumedNew
	}
}

func (r *running) setLoaded(s saga.State) {
	r.stream, r.state = streamLoaded, s
	r.dropPlan()
}

func (r *running) setCommitted(s saga.State) {
	r.stream, r.state = streamLoaded, s
}

func (r *running) dropState() {
	r.stateAccount.Close()
	r.stream, r.state = streamUnknown, saga.State{}
	r.dropPlan()
}

// attemptsUnderWay returns the attempts that wait for a place in the pool or have been sent.
func (r *running) attemptsUnderWay() []saga.Attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.attempts))
}

// waiting returns the outcomes that have arrived and are not recorded yet.
func (r *running) waiting() []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.outcomes)
}

// recorded drops the oldest n outcomes: they are facts now, or came too late to become any. It returns
// how many are left.
func (r *running) recorded(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcomes = slices.Delete(r.outcomes, 0, n)
	r.fitOutputAccount()
	if n > 0 && r.recording != nil {
		r.stopRecording()
		r.recording = nil
	}
	return len(r.outcomes)
}

// untilRecorded returns a context that ends when outcomes that wait now are recorded.
func (r *running) untilRecorded() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.outcomes) == 0 {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		return over
	}
	if r.recording == nil {
		r.recording, r.stopRecording = context.WithCancel(context.Background())
	}
	return r.recording
}

// fitOutputAccount gives back the memory of outputs that are recorded. r.mu is held.
func (r *running) fitOutputAccount() {
	r.outputAccount.ShrinkTo(int64(r.outputBytes()))
}

func (r *running) outputBytes() int {
	total := 0
	for i := range r.outcomes {
		total += len(r.outcomes[i].Output)
	}
	return total
}

// difference cancels the attempts that are under way and should not be, and returns those that should be and are not. An attempt whose outcome is
// waiting has ended, but not in the state yet: it is not to be started again.
func (r *running) difference(want []saga.Attempt) []saga.Attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, at := range r.attempts {
		if !slices.Contains(want, a) {
			at.cancel(nil)
			delete(r.attempts, a)
		}
	}
	return r.missingLocked(want)
}

// missing returns those attempts of which nothing is known here: they are not under way, and have not ended.
func (r *running) missing(want []saga.Attempt) []saga.Attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.missingLocked(want)
}

func (r *running) missingLocked(want []saga.Attempt) []saga.Attempt {
	return slices.DeleteFunc(want, func(a saga.Attempt) bool {
		_, underWay := r.attempts[a]
		return underWay || slices.ContainsFunc(r.outcomes, func(o arrival) bool { return o.Attempt == a })
	})
}

// begin notes an attempt as under way; false when the saga has been abandoned.
func (r *running) begin(a saga.Attempt, cancel context.CancelCauseFunc) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempts == nil {
		return false
	}
	r.attempts[a] = &attempt{cancel: cancel}
	return true
}

// send marks an attempt as handed to the participant; false if it has been withdrawn or cancelled.
func (r *running) send(a saga.Attempt) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.attempts[a]
	if at == nil || at.sent {
		return false
	}
	at.sent = true
	return true
}

// withdraw takes back the attempts that are not to be sent and have not been, and puts it beside the
// saga that they were not. It reports whether there were any.
func (r *running) withdraw(unwanted func(saga.Attempt) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var back []saga.Attempt
	for a, at := range r.attempts {
		if !at.sent && unwanted(a) {
			back = append(back, a)
		}
	}
	slices.SortFunc(back, func(a, b saga.Attempt) int { return strings.Compare(a.Key(""), b.Key("")) })
	for _, a := range back {
		r.attempts[a].cancel(nil)
		delete(r.attempts, a)
		r.addOutcome(notSent(a))
	}
	return len(back) > 0
}

// notSent is the outcome of an attempt for which the participant was not called.
func notSent(a saga.Attempt) saga.Outcome {
	return saga.Outcome{Attempt: a, Kind: saga.NotSent, Reason: reasonNotSent, Message: "the participant was not called for this attempt"}
}

// interruptActions ends the calls of actions that are under way. Their outcomes are recorded all the same.
func (r *running) interruptActions(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, at := range r.attempts {
		if at.sent && a.Direction == saga.Action {
			at.cancel(cause)
		}
	}
}

// end puts an outcome beside the saga. It reports false for an attempt that was cancelled or
// abandoned meanwhile: its outcome says nothing about the participant.
func (r *running) end(o saga.Outcome) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, underWay := r.attempts[o.Attempt]; !underWay {
		return false
	}
	delete(r.attempts, o.Attempt)
	r.addOutcome(o)
	return true
}

// addOutcome adds an outcome to those that are not recorded yet. They have the limit of all outputs of a
// saga. r.mu is held.
func (r *running) addOutcome(o saga.Outcome) {
	if n := len(o.Output); n > 0 {
		o = o.LimitOutputs(n + r.outputBytes())
	}
	r.outcomes = append(r.outcomes, arrival{Outcome: o, at: r.clock()})
}

// abandon cancels every attempt and ignores what they come to.
func (r *running) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, at := range r.attempts {
		at.cancel(nil)
	}
	r.attempts, r.outcomes = nil, nil
	r.stateAccount.Close()
	r.hold.release()
	r.outputAccount.Close()
	if r.recording != nil {
		r.stopRecording()
	}
}
