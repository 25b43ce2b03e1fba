package simulation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// stepKind is how a participant of a test is asked and answers.
type stepKind string

// The kinds.
const (
	byResponse stepKind = "response" // HTTP, answered at once
	byCallback stepKind = "callback" // HTTP, answered later
	byMessage  stepKind = "message"  // done when the broker has it
	byReply    stepKind = "reply"    // a message that is answered later
)

// testSaga is a saga of the world, as a user would write it and as its participants behave.
type testSaga struct {
	index     int
	name, uid string
	steps     []testStep
	deadline  time.Duration
	// barrier says that its participants remember an undo that comes before its action.
	barrier bool
	// policy says that the admission policy has put the finalizer on.
	policy  bool
	made    bool // its object was created
	deleted bool
}

// testStep is one step and the behaviour of its participant.
type testStep struct {
	name           string
	after          []string
	do, undoBy     stepKind
	compensated    bool // it has a compensation
	rejects        bool
	busy, undoBusy int
	undoRejects    bool
	attempts       int
	undoAttempts   int
	timeout        time.Duration
	readsOutput    bool // its compensation reads its own output
	act, undo      *effect
}

func (s *testStep) kind(compensation bool) stepKind {
	if compensation {
		return s.undoBy
	}
	return s.do
}

// later reports whether the participant answers later.
func (s *testStep) later(compensation bool) bool {
	k := s.kind(compensation)
	return k == byCallback || k == byReply
}

// plan makes the sagas of the world and puts onto the agenda what users and machines will do.
func (w *World) plan() {
	if w.Script != nil {
		w.sagas = w.Script.Sagas
		for i, s := range w.sagas {
			s.index = i
			w.admit(s, 0)
		}
		if w.Script.Acts != nil {
			w.Script.Acts(w)
		}
		return
	}
	for i := range w.Sagas {
		s := w.generate(i)
		w.sagas = append(w.sagas, s)
		if w.happening("saga " + s.name) {
			w.admit(s, w.between("created", s.name, 0, 30*time.Second))
			w.planActs(s)
		}
	}
	for i := range w.nodes {
		w.planNode(i)
	}
	if w.LoseCommits {
		w.later(w.between("lose", "", 10*time.Second, storm), nil, "the store loses commits", func() { w.store.loseLast(1 + w.below("lost", "", 5)) })
	}
}

// admit has a user create a saga, and opens the books for it.
func (w *World) admit(s *testSaga, in time.Duration) {
	if s.uid == "" {
		s.uid = uuid.NewSHA1(uuid.NameSpaceOID, []byte(fmt.Sprintf("%d/%s", w.Seed, s.name))).String()
	}
	w.books.open(s)
	w.later(in, nil, "create "+s.name, func() {
		s.made = true
		w.api.put(s.object())
	})
}

// generate draws a saga.
func (w *World) generate(i int) *testSaga {
	s := &testSaga{index: i, name: fmt.Sprintf("saga-%02d", i)}
	s.barrier, s.policy = w.likely("barrier", s.name, 0.7), w.likely("policy", s.name, 0.8)
	if w.likely("deadline", s.name, 0.3) {
		s.deadline = w.between("deadline of", s.name, 5*time.Second, time.Minute)
	}
	for k := range 1 + w.below("steps", s.name, 5) {
		s.steps = append(s.steps, w.generateStep(s, k))
	}
	return s
}

func (w *World) likely(kind, name string, p float64) bool { return w.chance.happens(kind, name, p) }

func (w *World) generateStep(s *testSaga, k int) testStep {
	name := fmt.Sprintf("s%d", k)
	full := s.name + "/" + name
	st := testStep{
		name: name, do: pick(w.chance, "kind", full, byResponse, byResponse, byResponse, byCallback, byMessage, byReply),
		undoBy:      pick(w.chance, "undo kind", full, byResponse, byResponse, byResponse, byCallback, byMessage, byReply),
		compensated: w.likely("compensated", full, 0.85), rejects: w.likely("rejects", full, 0.1), undoRejects: w.likely("undo rejects", full, 0.05),
		attempts: 1 + w.below("attempts", full, 4), undoAttempts: 2 + w.below("undo attempts", full, 6),
		timeout: w.between("timeout", full, 2*time.Second, 10*time.Second),
	}
	if w.likely("busy", full, 0.15) {
		st.busy = 1 + w.below("how busy", full, 3)
	}
	if w.likely("undo busy", full, 0.15) {
		st.undoBusy = 1 + w.below("how busy to undo", full, 3)
	}
	if !s.barrier { // what is done later, and what brokers deliver, needs one
		st.do, st.undoBy = byResponse, byResponse
	}
	if st.do == byMessage { // a broker has no opinion about messages
		st.busy, st.rejects = 0, false
	}
	if st.undoBy == byMessage {
		st.undoBusy, st.undoRejects = 0, false
	}
	st.readsOutput = st.do == byResponse && w.likely("reads output", full, 0.2)
	for j := range k {
		if w.likely("depends", fmt.Sprintf("%s on %d", full, j), 0.4) {
			st.after = append(st.after, fmt.Sprintf("s%d", j))
		}
	}
	return st
}

// object is what the user applies.
func (s *testSaga) object() *v1.Saga {
	o := &v1.Saga{}
	o.Namespace, o.Name, o.UID, o.Generation = "sim", s.name, types.UID(s.uid), 1
	o.CreationTimestamp = metav1.Time{Time: time.Now()}
	if s.policy {
		o.Finalizers = []string{v1.Finalizer}
	}
	o.Spec.Input = &v1.JSON{Raw: []byte(`{"order":"` + s.name + `"}`)}
	if s.deadline > 0 {
		o.Spec.Deadline = &metav1.Duration{Duration: s.deadline}
	}
	for i := range s.steps {
		st := &s.steps[i]
		step := v1.Step{Name: st.name, DependsOn: append([]string{}, st.after...), Effect: st.effect(false)}
		if st.readsOutput {
			step.Output = map[string]v1.OutputTemplate{"id": "${response.body.id}"}
		}
		if st.compensated {
			e := st.effect(true)
			step.Compensation = &e
		}
		o.Spec.Steps = append(o.Spec.Steps, step)
	}
	return o
}

func (s *testStep) effect(compensation bool) v1.Effect {
	e := v1.Effect{AttemptTimeout: &metav1.Duration{Duration: s.timeout}}
	e.Retry = &v1.Retry{
		MaxAttempts: int32(s.attempts), InitialBackoff: &metav1.Duration{Duration: 200 * time.Millisecond}, MaxBackoff: &metav1.Duration{Duration: 5 * time.Second},
	}
	body := `{"order":"${input.order}"}`
	if compensation {
		e.Retry.MaxAttempts = int32(s.undoAttempts)
		if s.readsOutput {
			body = `{"order":"${input.order}","id":"${steps.` + s.name + `.output.id}"}`
		}
	}
	switch k := s.kind(compensation); k {
	case byMessage, byReply:
		e.Message = &v1.MessageRequest{Sink: "events", Type: "com.example.asked", Data: &v1.JSON{Raw: []byte(body)}}
		if k == byReply {
			e.Message.Reply = &v1.MessageReply{Timeout: &metav1.Duration{Duration: 15 * time.Second}}
		}
	default:
		e.HTTP = &v1.HTTPRequest{Method: "POST", URL: "http://participant.test/effects", Body: &v1.JSON{Raw: []byte(body)}}
		if k == byCallback {
			e.HTTP.Completion, e.HTTP.CallbackTimeout = v1.CompletionCallback, &metav1.Duration{Duration: 15 * time.Second}
		}
	}
	return e
}

// planActs draws what users do to a saga.
func (w *World) planActs(s *testSaga) {
	at := func(what string) time.Duration { return w.between(what, s.name, 0, storm) }
	act := func(what string, p float64, do func()) {
		if name := what + " " + s.name; w.likely("act", name, p) && w.happening(name) {
			w.later(at(what), nil, name, do)
		}
	}
	act("cancel", 0.15, func() { w.api.change(s.name, func(o *v1.Saga) { o.Spec.Cancel = true }) })
	act("delete", 0.1, func() {
		if o := w.api.objects[s.name]; o != nil {
			s.deleted = true
			w.api.delete(o)
		}
	})
	for i := range 2 {
		act(fmt.Sprintf("suspend %d", i), 0.15, func() {
			w.api.change(s.name, func(o *v1.Saga) { o.Spec.Suspend = true })
			w.later(w.between("suspended", fmt.Sprintf("%s %d", s.name, i), 0, 10*time.Second), nil, fmt.Sprintf("resume %d %s", i, s.name), func() {
				w.api.change(s.name, func(o *v1.Saga) { o.Spec.Suspend = false })
			})
		})
	}
	for i := range 3 {
		act(fmt.Sprintf("decide %d", i), 0.5, func() { w.decide(s, fmt.Sprintf("%d %s", i, s.name)) })
	}
}

// planNode draws the ends of a node's lives.
func (w *World) planNode(i int) {
	for life := 1; life <= 3; life++ {
		name := fmt.Sprintf("crash n%d.%d", i+1, life)
		p, graceful := 0.5, w.likely("graceful", name, 0.4)
		if !w.likely("ends", name, p) || !w.happening(name) {
			return
		}
		low := time.Duration(life-1) * storm / 3
		w.later(w.between("ends at", name, low, low+storm/3), nil, name, func() {
			n := w.nodes[i]
			if graceful {
				w.stop(n, 5*time.Second)
			} else {
				w.kill(n)
			}
			w.later(w.between("down", name, 6*time.Second, 15*time.Second), nil, "restart "+name, func() {
				w.kill(n)
				w.nodes[i] = w.startNode(i, life+1)
			})
		})
	}
}

// decide has a person decide about a parked saga, by what its object and its history say.
func (w *World) decide(s *testSaga, name string) {
	uid := uuid.MustParse(s.uid)
	row, err := w.store.truth.SagaState(context.Background(), uid)
	if err != nil || row.Phase != string(saga.CompensationFailed) {
		return
	}
	state := w.books.records[s.uid].state
	d := saga.Decision{ID: name, About: state.Parked.Version, Verdict: pick(w.chance, "verdict", name, saga.Verdicts...), By: "ann", Reason: name}
	for i := range s.steps {
		st := state.Step(s.steps[i].name)
		if !st.Compensation.FailedForGood() {
			continue
		}
		if d.Step == "" {
			d.Step = st.Name
		}
		if w.likely("all", name, 0.5) {
			w.prepare(&s.steps[i], d.Verdict)
		} else if st.Name == d.Step {
			w.prepare(&s.steps[i], d.Verdict)
		}
	}
	if w.likely("all", name, 0.5) {
		d.Step = ""
	}
	w.books.decided[s.uid]++
	w.incoming(decisionCall, "decision "+name, func(ctx context.Context, n *node) bool {
		err := n.engine.Decide(ctx, engine.Key{Namespace: "sim", Name: s.name, UID: s.uid}, d)
		var refused *saga.DecisionError
		return err != nil && !errors.As(err, &refused) && !strings.Contains(err.Error(), "not started")
	})
}

// prepare is what a person does before deciding: undo by hand, or mend what refused.
func (w *World) prepare(st *testStep, v saga.Verdict) {
	switch v {
	case saga.MarkedCompensated:
		st.act.byHand = true
	case saga.Skipped:
		w.books.bySkip[st.act.key] = true
	default:
		st.undo.rejects = false
	}
}

// named is the name of the saga that a stream belongs to.
func (w *World) named(stream string) string {
	for _, s := range w.sagas {
		if "saga-"+s.uid == stream {
			return s.name
		}
	}
	return stream
}

// ended reports whether a saga has ended or is parked, or was deleted before it began.
func (w *World) ended(s *testSaga) bool {
	phase := w.books.records[s.uid].phase
	_, gone := w.books.goneAt[s.uid]
	return phase.Terminal() || phase == saga.CompensationFailed || gone && phase == ""
}

// allEnded reports whether every saga has ended or is parked.
func (w *World) allEnded() bool {
	for _, s := range w.sagas {
		if !s.made {
			if !w.Without["saga "+s.name] {
				return false
			}
			continue
		}
		if !w.ended(s) {
			return false
		}
		r := w.books.records[s.uid]
		if o := w.api.objects[s.name]; o != nil && string(o.Status.Phase) != string(r.phase) {
			return false
		}
	}
	return true
}
