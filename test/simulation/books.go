package simulation

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/eventstore"
	"github.com/vextrus/saga-operator/internal/saga"
)

// books are the truth: what participants did, what was sent, and what was recorded when. Operators cannot read them.
type books struct {
	w *World

	mu      sync.Mutex
	effects map[string]*effect
	sends   []send
	records map[string]*records // by uid
	panics  []string
	goneAt  map[string]saga.Phase // the recorded phase of a saga when its object went, by uid
	inGrace []string
	resumed []string
	decided map[string]int // decisions that a person has made, by uid
	bySkip  map[string]bool
}

// send is a call of a participant that left an operator.
type send struct {
	node   string
	effect *effect
	step   int
	at     time.Time
	// knew says what the node had read of the saga's history then.
	knewRollback, knewSuspended bool
	// inTime is true if the node's last recorded start of the effect was no longer ago than an attempt may take.
	inTime bool
}

// startOf names the starts of an effect that a node recorded.
type startOf struct {
	node *node
	key  string
}

// records is what was recorded of one saga, with the step of the world in which it was.
type records struct {
	started map[string]int // attempts of an effect, by key
	// lastStart is when a node last recorded that it starts or sends an attempt of an effect. A node calls for no other starts,
	// and their times are by its own clock.
	lastStart    map[startOf]time.Time
	compensating int
	suspended    int64 // the generation in the latest SagaSuspended
	decisions    int
	// known is what each node has read or written itself.
	known map[*node]*knowledge
	phase saga.Phase
	state saga.State
}

type knowledge struct{ rollback, suspended bool }

// keyRetention is how long participants remember keys.
const keyRetention = 24 * time.Hour

// effectState is where an effect stands at its participant.
type effectState int

const (
	untouched effectState = iota
	working               // the first request is at work
	pending               // accepted, to be done later
	happened
	refused
)

// effect is what a participant knows under one key.
type effect struct {
	key, name    string
	saga         *testSaga
	step         *testStep
	compensation bool
	action       *effect // that a compensation undoes
	undo         *effect // that undoes an action

	state     effectState
	seen      time.Time // when its key came first
	body      string
	callbacks []string
	attempt   int  // that the last message said it is
	busy      int  // how often it still says that it is too busy
	rejects   bool // it says no
	arrivals  []int
	doneAt    []int // steps of the world at which it happened
	undone    bool  // of an action: its barrier
	byHand    bool  // a person has undone it
	sentOnce  bool
	fates     map[fate]bool
	gateways  []int
}

func newBooks(w *World) *books {
	return &books{w: w, effects: map[string]*effect{}, records: map[string]*records{}, goneAt: map[string]saga.Phase{}, decided: map[string]int{}, bySkip: map[string]bool{}}
}

// open makes the pages of a saga.
func (b *books) open(s *testSaga) {
	b.records[s.uid] = &records{started: map[string]int{}, lastStart: map[startOf]time.Time{}, known: map[*node]*knowledge{}}
	for i := range s.steps {
		st := &s.steps[i]
		act := &effect{key: s.uid + "/" + st.name + "/action", name: s.name + "/" + st.name + "/action", saga: s, step: st, busy: st.busy, rejects: st.rejects, fates: map[fate]bool{}}
		undo := &effect{
			key: s.uid + "/" + st.name + "/compensation", name: s.name + "/" + st.name + "/compensation", saga: s, step: st, compensation: true,
			busy: st.undoBusy, rejects: st.undoRejects, action: act, fates: map[fate]bool{},
		}
		act.undo = undo
		b.effects[act.key], b.effects[undo.key] = act, undo
		st.act, st.undo = act, undo
	}
}

func (b *books) effect(key string) *effect {
	e := b.effects[key]
	if e == nil {
		panic("nobody knows the key " + key)
	}
	return e
}

func (e *effect) meet(f fate) { e.fates[f] = true }

// arrive takes a request in. It reports what is answered where that is known already.
func (e *effect) arrive(w *World, body, callback string) (reply, bool) {
	if e.seen.IsZero() || time.Since(e.seen) > keyRetention { // a key that it has forgotten is a new one
		e.seen, e.state = time.Now(), untouched
	}
	if len(e.arrivals) == 0 {
		e.body = body
	} else if e.body != body {
		w.fail(violation{rule: ruleOneBody, effect: e, text: fmt.Sprintf("the body was %s and is %s", e.body, body)})
	}
	e.arrivals = append(e.arrivals, w.step)
	if callback != "" {
		e.callbacks = append(e.callbacks, callback)
	}
	switch {
	case e.state == happened:
		return e.yes(), true
	case e.state == refused && !e.compensation:
		return e.no(http.StatusUnprocessableEntity), true
	case e.state == working, e.compensation && e.action.state == working && e.step.undoBy != byMessage: // a broker does not wait for anything
		return reply{status: http.StatusConflict, body: map[string]any{"message": "a request with this key is in progress"}}, true
	case e.state == pending:
		return reply{status: http.StatusAccepted, body: map[string]any{}}, true
	}
	return reply{}, false
}

func (e *effect) yes() reply {
	return reply{status: http.StatusOK, body: map[string]any{"id": "id-" + e.step.name}}
}

func (e *effect) no(status int) reply {
	return reply{status: status, vouched: true, body: map[string]any{"message": "no"}}
}

// decide does the effect, or says no to it, or that it is too busy.
func (e *effect) decide(w *World) reply {
	switch {
	case e.undone && e.saga.barrier: // its undo was here first
		e.state = refused
		return e.no(http.StatusConflict)
	case e.busy > 0:
		e.busy--
		return reply{status: http.StatusTooManyRequests, body: map[string]any{"message": "too busy"}}
	case e.rejects:
		e.state = refused
		return e.no(http.StatusUnprocessableEntity)
	}
	e.state = happened
	e.doneAt = append(e.doneAt, w.step)
	if e.compensation {
		a := e.action
		a.undone = true
		if a.state == pending && a.saga.barrier { // withdrawn
			a.state = refused
		}
	}
	return e.yes()
}

// sending notes that an operator hands a call over.
func (b *books) sending(n *node, e *effect) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k, start := b.knowledge(n, e.saga.uid), b.records[e.saga.uid].lastStart[startOf{n, e.key}]
	b.sends = append(b.sends, send{
		node: n.id, effect: e, step: b.w.step, at: time.Now(), knewRollback: k.rollback, knewSuspended: k.suspended,
		inTime: n.clock().Sub(start) <= e.step.timeout, // by its own clock
	})
	e.sentOnce = true
}

// notSent takes a call back of which nothing left the operator.
func (b *books) notSent(n *node, e *effect) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.sends) - 1; i >= 0; i-- {
		if s := &b.sends[i]; s.effect == e && s.node == n.id {
			b.sends = append(b.sends[:i], b.sends[i+1:]...)
			return
		}
	}
}

func (b *books) knowledge(n *node, uid string) *knowledge {
	r := b.records[uid]
	k := r.known[n]
	if k == nil {
		k = &knowledge{}
		r.known[n] = k
	}
	return k
}

// appended reads what a node has committed.
func (b *books) appended(n *node, a *eventstore.Append) {
	b.mu.Lock()
	defer b.mu.Unlock()
	uid := strings.TrimPrefix(a.Stream, "saga-")
	r := b.records[uid]
	for _, stored := range a.Events {
		e, err := saga.Unmarshal(stored.Type, stored.SchemaVersion, stored.Data)
		if err != nil {
			panic(err)
		}
		r.state = saga.Fold(r.state, e)
		b.learn(n, uid, e)
		switch e := e.(type) {
		case saga.AttemptStarted:
			r.started[e.Key(uid)]++
			r.lastStart[startOf{n, e.Key(uid)}] = e.DecidedAt()
			if n.state == nodeStopping {
				b.inGrace = append(b.inGrace, fmt.Sprintf("%s of %s by %s", e.Attempt, b.w.named(a.Stream), n.id))
			}
		case saga.AttemptResent:
			r.lastStart[startOf{n, e.Key(uid)}] = e.DecidedAt()
		case saga.SagaCompensating:
			r.compensating = b.w.step
		case saga.SagaSuspended:
			r.suspended = e.Generation
		case saga.SagaResumed:
			// An operator whose cache lags may still end an earlier suspension, which the user has ended.
			o, set := b.w.api.objects[r.state.Name], b.w.api.suspended[r.state.Name]
			if o != nil && o.Spec.Suspend && o.DeletionTimestamp.IsZero() && r.suspended >= set {
				b.resumed = append(b.resumed, fmt.Sprintf("%s by %s in step %d, although it is to be suspended since generation %d", r.state.Name, n.id, b.w.step, set))
			}
		case saga.DecisionMade:
			r.decisions++
		}
	}
	r.phase = r.state.Phase
}

// loaded reads what a node has read.
func (b *books) loaded(n *node, all []eventstore.Recorded) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, stored := range all {
		if e, err := saga.Unmarshal(stored.Type, stored.SchemaVersion, stored.Data); err == nil {
			b.learn(n, strings.TrimPrefix(stored.Stream, "saga-"), e)
		}
	}
}

func (b *books) learn(n *node, uid string, e saga.Event) {
	k := b.knowledge(n, uid)
	switch e.(type) {
	case saga.SagaCompensating:
		k.rollback = true
	case saga.SagaSuspended:
		k.suspended = true
	case saga.SagaResumed:
		k.suspended = false
	}
}

// gone notes that an object is no more.
func (b *books) gone(o *v1.Saga) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.goneAt[string(o.UID)] = b.records[string(o.UID)].phase
}
