package simulation

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vextrus/saga-operator/internal/conditionscheck"
	"github.com/vextrus/saga-operator/internal/saga"
)

// rule is a promise that a world can break.
type rule string

// The promises.
const (
	ruleEnds           rule = "every saga ends or is parked, soon after the last fault"
	ruleCompleted      rule = "Completed means that every action happened and stayed"
	ruleCompensated    rule = "Compensated means that nothing is left behind"
	ruleOneBody        rule = "one key, one body"
	ruleOnce           rule = "one key, one effect"
	ruleForwardOrder   rule = "an action happens after those that it depends on"
	ruleBackwardOrder  rule = "an undo happens after those of the steps that depend on its step"
	ruleNothingForward rule = "no action is sent by an operator that knows of the rollback"
	ruleAfterUndo      rule = "no action is sent after the first undo, but in time by an operator that has not heard of it"
	ruleUndoUnstarted  rule = "nothing is undone that was not recorded as started"
	ruleSuspended      rule = "nothing is sent by an operator that knows of the suspension"
	ruleStaysSuspended rule = "a suspension lasts until the user ends it"
	ruleStopStartsNone rule = "a graceful stop starts nothing"
	ruleDecisionsOnce  rule = "a decision counts once"
	ruleObjectStays    rule = "the object stays until the saga has ended"
	ruleMirror         rule = "the status shows how the saga ended"
	ruleNoPanic        rule = "nothing panics"
)

// violation is a broken promise.
type violation struct {
	rule   rule
	saga   *testSaga
	effect *effect
	text   string
}

func (v violation) String() string {
	about := ""
	if v.effect != nil {
		met := []string{}
		for f := range v.effect.fates {
			if f != done {
				met = append(met, string(f))
			}
		}
		slices.Sort(met)
		about = fmt.Sprintf(" (%s; its calls were: %s; gateways: %v)", v.effect.name, strings.Join(met, ", "), v.effect.gateways)
	} else if v.saga != nil {
		about = " (" + v.saga.name + ")"
	}
	return fmt.Sprintf("%s: %s%s", v.rule, v.text, about)
}

// Report is what became of a world.
type Report struct {
	Seed       uint64
	Violations []violation
	// Digest is a hash of everything that happened.
	Digest uint64
	// Trace is everything that happened, where it was asked for.
	Trace []string
	// Met counts the fates of calls.
	Met map[class]map[fate]int
	// Happenings can be left out of the world by name: sagas, acts of users, ends of nodes, faults.
	Happenings []string
	Steps      int
	Phases     map[saga.Phase]int
	// States are what was recorded of each saga in the end, by name.
	States map[string]saga.State
}

func (w *World) report() *Report {
	if w.Script != nil && w.Script.Tamper != nil {
		w.Script.Tamper(w)
	}
	w.check()
	w.hashHistory()
	r := &Report{Seed: w.Seed, Violations: w.errs, Digest: w.digest, Trace: w.lines, Met: w.met, Happenings: w.happens, Steps: w.step, Phases: map[saga.Phase]int{}, States: map[string]saga.State{}}
	for name := range w.faults {
		r.Happenings = append(r.Happenings, "fault "+name)
	}
	slices.Sort(r.Happenings)
	for _, s := range w.sagas {
		if s.made {
			r.Phases[w.books.records[s.uid].phase]++
			r.States[s.name] = w.books.records[s.uid].state
		}
	}
	return r
}

// hashHistory adds everything that was recorded to the digest.
func (w *World) hashHistory() {
	for _, s := range w.sagas {
		all, err := w.store.truth.Load(context.Background(), "saga-"+s.uid, 1, 10_000)
		if err != nil {
			panic(err)
		}
		for _, e := range all {
			w.note(e.Type + string(e.Data))
		}
	}
}

// check reads the ledgers, the history and the objects.
func (w *World) check() {
	for _, s := range w.sagas {
		if !s.made {
			continue
		}
		c := &checker{w: w, s: s, r: w.books.records[s.uid]}
		c.ends()
		c.effects()
		c.order()
		c.sends()
		c.object()
	}
	for _, text := range w.books.inGrace {
		w.fail(violation{rule: ruleStopStartsNone, text: text})
	}
	for _, text := range w.books.resumed {
		w.fail(violation{rule: ruleStaysSuspended, text: text})
	}
	for _, text := range w.books.panics {
		w.fail(violation{rule: ruleNoPanic, text: text})
	}
}

type checker struct {
	w *World
	s *testSaga
	r *records
}

func (c *checker) fail(r rule, e *effect, format string, args ...any) {
	c.w.fail(violation{rule: r, saga: c.s, effect: e, text: fmt.Sprintf(format, args...)})
}

func (c *checker) ends() {
	if !c.w.ended(c.s) {
		c.fail(ruleEnds, nil, "it is %q", c.r.phase)
	}
	if c.r.decisions > c.w.books.decided[c.s.uid] {
		c.fail(ruleDecisionsOnce, nil, "%d decisions were made, and %d recorded", c.w.books.decided[c.s.uid], c.r.decisions)
	}
}

// effects compares how the saga ended with what participants did.
func (c *checker) effects() {
	for i := range c.s.steps {
		st := &c.s.steps[i]
		did, undid := len(st.act.doneAt) > 0, len(st.undo.doneAt) > 0 || st.act.byHand || c.w.books.bySkip[st.act.key]
		switch {
		case c.r.phase == saga.Completed && (!did || len(st.undo.doneAt) > 0):
			c.fail(ruleCompleted, st.act, "it happened: %t, it was undone: %t", did, undid)
		case c.r.phase == saga.Compensated && did && st.compensated && !undid:
			c.fail(ruleCompensated, st.act, "it happened, and was not undone")
		case c.r.phase == saga.Compensated && did && st.compensated && !c.s.barrier && last(st.undo.doneAt) < last(st.act.doneAt) && !st.act.byHand && !c.w.books.bySkip[st.act.key]:
			c.fail(ruleCompensated, st.act, "it happened after its undo")
		}
		for _, e := range []*effect{st.act, st.undo} {
			if len(e.doneAt) > 1 {
				c.fail(ruleOnce, e, "it happened %d times", len(e.doneAt))
			}
		}
		if len(st.undo.arrivals) > 0 && c.r.started[st.act.key] == 0 {
			c.fail(ruleUndoUnstarted, st.undo, "its action was never started")
		}
	}
}

func last(steps []int) int {
	if len(steps) == 0 {
		return -1
	}
	return steps[len(steps)-1]
}

// order checks the order of effects, both ways.
func (c *checker) order() {
	steps := map[string]*testStep{}
	for i := range c.s.steps {
		steps[c.s.steps[i].name] = &c.s.steps[i]
	}
	for i := range c.s.steps {
		st := &c.s.steps[i]
		for _, name := range st.after {
			dep := steps[name]
			if len(st.act.doneAt) > 0 && (len(dep.act.doneAt) == 0 || dep.act.doneAt[0] > st.act.arrivals[0]) {
				c.fail(ruleForwardOrder, st.act, "it was asked for before %s had happened", dep.act.name)
			}
			if len(st.act.doneAt) > 0 && st.compensated && len(dep.undo.arrivals) > 0 && !st.act.byHand && !c.w.books.bySkip[st.act.key] &&
				(len(st.undo.doneAt) == 0 || st.undo.doneAt[0] > dep.undo.arrivals[0]) {
				c.fail(ruleBackwardOrder, dep.undo, "it was asked for before %s was undone", st.act.name)
			}
		}
	}
}

// sends checks what left the operators, and when.
func (c *checker) sends() {
	firstUndo := -1
	for _, s := range c.w.books.sends {
		if s.effect.saga == c.s && s.effect.compensation && (firstUndo < 0 || s.step < firstUndo) {
			firstUndo = s.step
		}
	}
	for _, s := range c.w.books.sends {
		if s.effect.saga != c.s {
			continue
		}
		if !s.effect.compensation && s.knewRollback {
			c.fail(ruleNothingForward, s.effect, "%s sent it in step %d", s.node, s.step)
		}
		// An operator that has not heard of the rollback may send what was recorded as started before it, in that attempt's time: the undo of
		// this step waits for as long.
		if !s.effect.compensation && firstUndo >= 0 && s.step > firstUndo && (s.knewRollback || !s.inTime) {
			c.fail(ruleAfterUndo, s.effect, "%s sent it in step %d, and the first undo had been sent in step %d", s.node, s.step, firstUndo)
		}
		if s.knewSuspended {
			c.fail(ruleSuspended, s.effect, "%s sent it in step %d", s.node, s.step)
		}
	}
}

// object compares what the user sees with what was recorded.
func (c *checker) object() {
	if phase, gone := c.w.books.goneAt[c.s.uid]; gone {
		if !phase.Terminal() && phase != "" {
			c.fail(ruleObjectStays, nil, "its object went when it was %s", phase)
		}
		return
	}
	o := c.w.api.objects[c.s.name]
	if o == nil {
		return
	}
	if string(o.Status.Phase) != string(c.r.phase) {
		c.fail(ruleMirror, nil, "it is %s, and its status says %s", c.r.phase, o.Status.Phase)
	}
	if err := conditionscheck.Saga(o); err != nil {
		c.fail(ruleMirror, nil, "%v", err)
	}
}
