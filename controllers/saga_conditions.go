package controllers

import (
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// verdict is what the conditions have to say about a saga: one reason and message, and which of them hold.
type verdict struct {
	reason, message                            string
	progressing, stalled                       bool
	completed, compensated, compensationFailed bool
	abandoned                                  bool
	// since is when it became so; zero when only the present knows.
	since time.Time
}

// conditionsOf works the conditions out.
//
// Ready is True when the saga has ended well, in either of the two good ways: kstatus (and what builds on it: kubectl wait, Helm, Flux, Argo CD) takes
// an object that is not Ready and not Stalled for one that is still under way, and would wait for a compensated saga forever. Who wants to know whether
// everything was done asks for Completed; who wants to know whether everything was undone, for Compensated.
//
// Progressing and Stalled are never both True. Stalled means that the saga does not go on by itself: somebody has to do something, and the
// message says what. An abandoned saga stays Stalled: for every client that waits for it, it has failed.
// The last four appear when they have become true and only then.
func conditionsOf(v view) []metav1.Condition {
	w := judge(v)
	finished := w.completed || w.compensated
	list := conditionList{view: &v, since: w.since}
	list.set(v1.ConditionReady, finished, w.reason, w.message)
	list.set(v1.ConditionProgressing, w.progressing, w.reason, w.message)
	list.set(v1.ConditionStalled, w.stalled, w.reason, w.message)
	list.setOnce(v1.ConditionCompleted, w.completed, w.reason, w.message)
	list.setOnce(v1.ConditionCompensated, w.compensated, w.reason, w.message)
	list.setOnce(v1.ConditionCompensationFailed, w.compensationFailed, w.reason, w.message)
	list.setOnce(v1.ConditionAbandoned, w.abandoned, w.reason, w.message)
	return list.conditions
}

func judge(v view) verdict {
	state := v.state
	switch {
	case v.problem != nil && !v.problem.transient:
		return verdict{reason: v.problem.reason, message: problemMessage(v), stalled: true}
	case v.problem != nil:
		return verdict{reason: v.problem.reason, message: v.problem.message, progressing: true}
	case state.Version == 0:
		return verdict{reason: "Pending", message: "The saga has not started yet.", progressing: true}
	}
	switch state.Phase {
	case saga.Completed:
		return verdict{reason: "Completed", message: fmt.Sprintf("All %d actions succeeded.", len(state.Steps)), completed: true, since: state.EndedAt}
	case saga.Compensated:
		return verdict{reason: "Compensated", compensated: true, since: state.EndedAt,
			message: clip("Everything that may have been done has been undone. It was rolled back because "+because(state.Failure)+".", maxConditionMessage)}
	case saga.CompensationFailed:
		return verdict{reason: "CompensationFailed", stalled: true, compensationFailed: true, since: state.Parked.At, message: parkedMessage(v)}
	case saga.Abandoned:
		return verdict{reason: "Abandoned", stalled: true, abandoned: true, since: state.EndedAt, message: abandonedMessage(state)}
	}
	if state.Suspended {
		return verdict{reason: "Suspended", message: "No attempt is started until spec.suspend is false again; those under way end."}
	}
	if step := resisting(state); step != nil {
		return verdict{reason: ReasonCompensationRefused, message: resistedMessage(step), progressing: true, since: state.Failure.At}
	}
	if state.Phase == saga.Compensating {
		return verdict{reason: "Compensating", progressing: true, since: state.Failure.At,
			message: clip("Undoing what may have been done, because "+because(state.Failure)+".", maxConditionMessage)}
	}
	return verdict{reason: "Running", message: "The actions are being carried out.", progressing: true, since: state.StartedAt}
}

// because says in plain words what began a rollback.
func because(f *saga.Failure) string {
	if f == nil {
		return "of an unknown reason"
	}
	switch f.Cause {
	case saga.CauseStepRejected:
		return fmt.Sprintf("step %q was rejected: %s", f.Step, text(f.Message, f.Reason))
	case saga.CauseRetriesExhausted:
		return fmt.Sprintf("step %q failed on its last attempt: %s", f.Step, text(f.Message, f.Reason))
	case saga.CauseDeadlineExceeded:
		return "its deadline passed: " + text(f.Message, f.Reason)
	default:
		return text(f.Message, f.Reason)
	}
}

// abandonedMessage says who abandoned the saga, why, and which effects may remain.
func abandonedMessage(state *saga.State) string {
	a := state.Abandoned
	if a == nil {
		a = &saga.Abandonment{}
	}
	remain := "No effects of its steps remain."
	switch names := state.MayRemain(); {
	case len(state.Steps) == 0:
		remain = "Its events cannot be read: the effects of the steps in this status may remain."
	case len(names) > 0:
		remain = clip("The effects of these steps may remain, undo them by hand: "+strings.Join(names, ", "), maxConditionMessage/4) + "."
	}
	const end = " The operator does nothing more for this saga; delete it when you like."
	return clip(fmt.Sprintf("Abandoned by %s: %s", text(a.By, "an unknown user"), a.Reason), maxConditionMessage-len(remain)-len(end)-2) + ". " + remain + end
}

// parkedMessage tells a person what to do: nothing else will.
func parkedMessage(v view) string {
	p := v.state.Parked
	what := clip(fmt.Sprintf("The compensation of step %q failed permanently: %s", p.Step, text(p.Message, p.Reason)), maxConditionMessage/2)
	const decide = ". The saga is parked until a person decides, by POST …/v1/namespaces/%s/sagas/%s/decide of the operator's API: %sMarkCompensated when it was undone by hand, or Skip."
	return what + fmt.Sprintf(decide, v.namespace, v.name, retryAdvice(v.state)) + byHand(v)
}

// retryAdvice says when a retry can help; nothing if it never can.
func retryAdvice(state *saga.State) string {
	step := state.Step(state.Parked.Step)
	switch {
	case state.Parked.Reason == engine.ReasonExpressionFailed:
		return "" // what it reads cannot change any more
	case state.Parked.Reason == saga.ReasonKeyExpired:
		return "Retry, which may undo it twice because its key is old, once you know what the participant did; "
	case step != nil && step.Compensation.Refusals > 0:
		return "Retry once the participant answers otherwise: with 2xx if there is nothing to undo, or with the header Saga-Outcome: Rejected if its no is final; "
	default:
		return "Retry when the cause is fixed; "
	}
}

// ReasonCompensationRefused is the reason while a compensation is retried although a response has refused it.
const ReasonCompensationRefused = "CompensationRefused"

// resisting returns the first step whose compensation is retried although a response has refused it; nil if there is none.
func resisting(state *saga.State) *saga.StepState {
	if state.Phase != saga.Compensating {
		return nil
	}
	for i := range state.Steps {
		if c := &state.Steps[i].Compensation; c.Refusals > 0 && !c.Settled() {
			return &state.Steps[i]
		}
	}
	return nil
}

func resistedMessage(step *saga.StepState) string {
	const todo = ". Nothing vouches for it, so it is retried to its last attempt, and then the saga is parked. If there is nothing to undo, the participant has to answer 2xx; if its no is final, with the header Saga-Outcome: Rejected."
	c := &step.Compensation
	return clip(fmt.Sprintf("The compensation of step %q was refused (%d times): %s", step.Name, c.Refusals, text(c.Message, c.Reason)), maxConditionMessage-len(todo)) + todo
}

// problemMessage says what is wrong and, however long that is, what to do.
func problemMessage(v view) string {
	todo := advice(v.problem, v.unstarted)
	if !v.unstarted {
		todo += byHand(v)
	}
	return clip(v.problem.message, maxConditionMessage-len(todo)) + todo
}

// advice says what to do about a problem that does not pass by itself.
func advice(p *problem, unstarted bool) string {
	switch p.reason {
	case engine.ReasonInvalidDefinition, engine.ReasonTooLarge:
		if unstarted {
			return ". The saga was not started; delete it and create it again with this mended."
		}
		return ". What it did so far stays done until somebody undoes it by hand."
	case engine.ReasonDefinitionUnreadable:
		return ". Nothing recorded is lost: run the newer version of the operator again, or whichever could read it, and the saga goes on by itself."
	case engine.ReasonStreamUnreadable:
		return ". The event is damaged: restore it from a backup of the database, and the saga goes on by itself."
	}
	return ""
}

// byHand says how to let a saga go whose object the finalizer holds.
func byHand(v view) string {
	if !v.deleting {
		return ""
	}
	return fmt.Sprintf(` To let the saga go without undoing, abandon it: POST …/abandon of the operator's API, or manager abandon. Without either, remove the object's finalizer: kubectl patch sagas.saga.vextrus.io %s -n %s --type=json -p '[{"op":"remove","path":"/metadata/finalizers"}]'`,
		v.name, v.namespace)
}

// conditionList gathers conditions. The time of a transition changes only with the transition.
type conditionList struct {
	view       *view
	since      time.Time
	conditions []metav1.Condition
}

func (l *conditionList) set(typ string, holds bool, reason, message string) {
	c := metav1.Condition{Type: typ, Status: metav1.ConditionFalse, ObservedGeneration: l.view.generation, Reason: reason, Message: message}
	if holds {
		c.Status = metav1.ConditionTrue
	}
	c.LastTransitionTime = metav1.NewTime(l.transition(c).Truncate(time.Second))
	l.conditions = append(l.conditions, c)
}

// setOnce sets a condition that does not appear before it has held.
func (l *conditionList) setOnce(typ string, holds bool, reason, message string) {
	if holds || condition(l.view.previous.Conditions, typ) != nil {
		l.set(typ, holds, reason, message)
	}
}

func (l *conditionList) transition(c metav1.Condition) time.Time {
	if p := condition(l.view.previous.Conditions, c.Type); p != nil && p.Status == c.Status {
		return p.LastTransitionTime.Time
	}
	if l.since.IsZero() {
		return l.view.now
	}
	return l.since
}

func condition(list []metav1.Condition, typ string) *metav1.Condition {
	for i := range list {
		if list[i].Type == typ {
			return &list[i]
		}
	}
	return nil
}

func holds(c *metav1.Condition) bool { return c != nil && c.Status == metav1.ConditionTrue }
