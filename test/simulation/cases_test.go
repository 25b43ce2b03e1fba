package simulation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/saga"
)

// scenario is a world that is written by hand: one way in which the operator once broke a promise.
type scenario struct {
	name string
	// script makes the world anew for each run: sagas remember what happened to them.
	script func() *Script
	// want says what is wrong beyond broken promises; nil where the promises are enough.
	want func(*Report) string
	// open is true for a fault that is known and not closed yet. It must still break its promise, or it is to be closed here: the list only
	// shrinks. None is open.
	open bool
	// excuses recognizes the same fault in a generated world, while it is open.
	excuses func(violation) bool
}

// one is a saga of one step with an HTTP action and a compensation, tried up to attempts times.
func one(name string, attempts int) *testSaga {
	return &testSaga{name: name, barrier: true, policy: true, steps: []testStep{stepOf("charge", attempts)}}
}

func stepOf(name string, attempts int) testStep {
	return testStep{name: name, do: byResponse, undoBy: byResponse, compensated: true, attempts: attempts, undoAttempts: 5, timeout: 2 * time.Second}
}

func after(s testStep, names ...string) testStep {
	s.after = names
	return s
}

func phaseIs(name string, want saga.Phase) func(*Report) string {
	return func(r *Report) string {
		if got := r.States[name].Phase; got != want {
			return fmt.Sprintf("saga %s is %s, want %s", name, got, want)
		}
		return ""
	}
}

func cancel(w *World, name string, in time.Duration) {
	w.later(in, nil, "cancel "+name, func() { w.api.change(name, func(o *v1.Saga) { o.Spec.Cancel = true }) })
}

func suspend(w *World, name string, in time.Duration, suspended bool) {
	w.later(in, nil, fmt.Sprintf("suspend %s %t", name, suspended), func() { w.api.change(name, func(o *v1.Saga) { o.Spec.Suspend = suspended }) })
}

// gatewayAfterDoubt has the first request carried out and its answer lost; every later one is answered by a gateway.
func gatewayAfterDoubt(g gatewayAnswer) func() *Script {
	return func() *Script {
		return &Script{Gateway: g, Sagas: []*testSaga{one("order", 3)}, Fates: map[string]fate{
			"n1.1 http order/charge/action #1": failedAfter, "n1.1 http order/charge/action #2": gateway, "n1.1 http order/charge/action #3": gateway,
		}}
	}
}

var scenarios = []scenario{
	{name: "GatewayNotFoundInDoubtSettlesNothing", script: gatewayAfterDoubt(gateways[2])},
	{name: "GatewayUnauthorizedInDoubtSettlesNothing", script: gatewayAfterDoubt(gateways[0])},
	{name: "ConflictInDoubtIsAskedAgain", script: func() *Script {
		return &Script{Sagas: []*testSaga{one("order", 2)}, Fates: map[string]fate{"n1.1 http order/charge/action #1": slow}}
	}},
	{name: "UnavailableAfterTheEffectIsUnknown", script: func() *Script {
		return &Script{Gateway: gateways[5], Sagas: []*testSaga{one("order", 1)}, Fates: map[string]fate{"n1.1 http order/charge/action #1": gatewayDone}}
	}},
	{name: "LoginPageIsNoSuccess", script: func() *Script {
		return &Script{Gateway: gateways[7], Sagas: []*testSaga{one("order", 1)}, Fates: map[string]fate{"n1.1 http order/charge/action #1": gateway}}
	}},
	{name: "CompensationOutlastsAGateway", want: phaseIs("order", saga.Compensated), script: func() *Script {
		s := one("order", 1)
		s.steps = append(s.steps, after(stepOf("ship", 1), "charge"))
		s.steps[1].rejects = true
		return &Script{Gateway: gateways[2], Sagas: []*testSaga{s}, Fates: map[string]fate{"n1.1 http order/charge/compensation #1": gateway}}
	}},
	{name: "KeptReplyCountsWithoutAcceptance", want: phaseIs("order", saga.Completed), script: func() *Script {
		s := one("order", 3)
		s.steps[0].do = byCallback
		return &Script{Sagas: []*testSaga{s}, Fates: map[string]fate{
			"n1.1 http order/charge/action #1": failedAfter, "n1.1 http order/charge/action #2": failedBefore, "n1.1 http order/charge/action #3": failedBefore,
		}, Delays: map[string]time.Duration{"n1.1 http order/charge/action #2": 30 * time.Second, "n1.1 http order/charge/action #3": 30 * time.Second}}
	}},
	{name: "ReplyOfTheLastRoundDoesNotCount", want: phaseIs("order", saga.Compensated), script: replyOfTheLastRound},
	{name: "ForgottenKeyIsNotSentAgain", script: func() *Script {
		return &Script{Sagas: []*testSaga{one("order", 3)}, Fates: map[string]fate{"n1.1 http order/charge/action #1": failedAfter},
			Delays: map[string]time.Duration{"n1.1 http order/charge/action #1": time.Second},
			Acts: func(w *World) {
				suspend(w, "order", 500*time.Millisecond, true)
				suspend(w, "order", 30*time.Hour, false)
			}}
	}},
	{name: "ForgottenKeyIsNotSentAgainAfterAnOutage", want: phaseIs("order", saga.Compensated), script: func() *Script {
		// The action has been carried out, and the operator dies before it can record that. Nobody runs it again for longer than keys live.
		return &Script{Sagas: []*testSaga{one("order", 3)}, Delays: map[string]time.Duration{"n1.1 append order #2": time.Minute},
			Acts: func(w *World) {
				w.later(time.Second, nil, "crash", func() { w.kill(w.nodes[0]) })
				w.later(30*time.Hour, nil, "restart", func() { w.nodes[0] = w.startNode(0, 2) })
			}}
	}},
	{name: "QueuedActionIsNotSentAfterACancel", script: func() *Script {
		return queuedBehind(func(w *World) { cancel(w, "order", time.Second) })
	}},
	{name: "QueuedActionIsNotSentWhileSuspended", script: func() *Script {
		return queuedBehind(func(w *World) { suspend(w, "order", time.Second, true); suspend(w, "order", time.Minute, false) })
	}},
	{name: "CrashedActionIsNotSentDuringRollback", script: crashedAction},
	{name: "UndoWaitsForAnActionThatACrashLeftBehind", script: func() *Script {
		s := crashedAction()
		s.Sagas[0].barrier = false
		s.Fates["n1.1 http order/pay/action #1"] = late
		return s
	}},
	{name: "UndoWaitsForACallAtTheEndOfItsTime", script: func() *Script { return calledElsewhere(500 * time.Microsecond) }},
	{name: "UndoWaitsForACallByASlowerClock", script: func() *Script { return calledElsewhere(longestSkew) }},
	{name: "ActionOfALostAppendIsNotSentDuringRollback", script: func() *Script {
		return &Script{Sagas: []*testSaga{one("order", 1)}, Fates: map[string]fate{"n1.1 append order #1": failedAfter},
			Delays: map[string]time.Duration{"n1.1 append order #1": time.Second},
			Acts:   func(w *World) { cancel(w, "order", time.Second) }}
	}},
	{name: "GracefulStopStartsNothing", script: func() *Script {
		s := one("order", 1)
		s.steps = append(s.steps, after(stepOf("ship", 1), "charge"))
		return &Script{Sagas: []*testSaga{s}, Delays: map[string]time.Duration{"n1.1 http order/charge/action #1": time.Second},
			Acts: func(w *World) {
				w.later(500*time.Millisecond, nil, "stop", func() { w.stop(w.nodes[0], 5*time.Second) })
				w.later(time.Minute, nil, "restart", func() { w.nodes[0] = w.startNode(0, 2) })
			}}
	}},
	{name: "StaleOperatorDoesNotResume", script: func() *Script {
		s := one("order", 1)
		s.steps = append(s.steps, after(stepOf("ship", 1), "charge"))
		return &Script{Nodes: 2, Sagas: []*testSaga{s}, Delays: map[string]time.Duration{
			"n1.1 http order/charge/action #1": 5 * time.Second, "n2.1 http order/charge/action #1": 5 * time.Second,
			"n2.1 order@1": 2 * time.Second, "n2.1 order@2": time.Hour, "n2.1 order@3": time.Hour, "n2.1 order@4": time.Hour,
		}, Acts: func(w *World) { suspend(w, "order", time.Second, true); suspend(w, "order", 10*time.Minute, false) }}
	}},
	{name: "RepeatedDecisionChangesNoOtherStep", script: repeatedDecision},
	{name: "StreamBegunBetweenTwoReadsIsNotRemoved", script: func() *Script {
		return &Script{Nodes: 2, Sagas: []*testSaga{one("order", 1)}, Fates: map[string]fate{"n1.1 append order #1": failedBefore},
			Delays: map[string]time.Duration{
				"n1.1 version order #1": 350 * time.Millisecond, "n2.1 order@1": 600 * time.Millisecond, "n2.1 order@2": time.Minute, "n2.1 http order/charge/action #1": time.Second,
			},
			Acts: func(w *World) {
				w.later(400*time.Millisecond, nil, "delete order", func() { w.api.delete(w.api.objects["order"]) })
			}}
	}},
}

// queuedBehind has one place for attempts, which another saga's attempt holds for two seconds.
func queuedBehind(acts func(w *World)) *Script {
	first, second := one("first", 1), one("order", 1)
	first.steps[0].timeout, second.steps[0].timeout = 10*time.Second, time.Minute // its time is not over when its place is free
	return &Script{Places: 1, Sagas: []*testSaga{first, second}, Delays: map[string]time.Duration{"n1.1 http first/charge/action #1": 3 * time.Second},
		Acts: func(w *World) {
			w.agenda[1].at = w.agenda[1].at.Add(100 * time.Millisecond) // the second saga is made a little later
			acts(w)
		}}
}

// crashedAction has two steps side by side: the first has been done, the attempt of the second is under way when the operator dies, and a cancel is there when it comes back.
func crashedAction() *Script {
	s := one("order", 1)
	s.steps = append(s.steps, stepOf("pay", 1))
	return &Script{Sagas: []*testSaga{s}, Delays: map[string]time.Duration{"n1.1 http order/pay/action #1": time.Second, "n1.2 http order/pay/action #1": time.Second}, Fates: map[string]fate{}, Acts: func(w *World) {
		cancel(w, "order", 1100*time.Millisecond)
		w.later(500*time.Millisecond, nil, "crash", func() { w.kill(w.nodes[0]) })
		w.later(2*time.Second, nil, "restart", func() { w.nodes[0] = w.startNode(0, 2) })
	}}
}

// calledElsewhere is a world of two operators. The first calls the participant, which acts at the very
// end of the attempt's time. The second reads a cancel before the first does, and undoes the action.
// The second operator's clock is ahead of the first operator's clock by twice the skew.
func calledElsewhere(skew time.Duration) *Script {
	s := one("order", 1)
	s.barrier = false
	return &Script{Nodes: 2, Sagas: []*testSaga{s}, Skews: []time.Duration{-skew, skew},
		Fates: map[string]fate{"n1.1 http order/charge/action #1": hungAfter},
		Delays: map[string]time.Duration{
			"n1.1 http order/charge/action #1": 2 * time.Second, "n1.1 version order #1": 10 * time.Second,
			"n2.1 order@1": 100 * time.Millisecond, "n1.1 order@2": time.Hour, "n1.1 order@3": time.Hour, "n1.1 order@4": time.Hour, "n1.1 order@5": time.Hour,
		}, Acts: func(w *World) { cancel(w, "order", 50*time.Millisecond) }}
}

// replyOfTheLastRound has a compensation rejected by a reply that the broker delivers once more after a person has had it tried again.
func replyOfTheLastRound() *Script {
	s := one("order", 1)
	s.steps = append(s.steps, after(stepOf("ship", 1), "charge"))
	s.steps[0].undoBy, s.steps[0].undoRejects, s.steps[1].rejects, s.steps[0].timeout = byReply, true, true, 5*time.Minute
	return &Script{Sagas: []*testSaga{s}, Fates: map[string]fate{"reply order/charge/compensation try 1": repeated},
		Delays: map[string]time.Duration{"n1.1 publish order/charge/compensation #2": 90 * time.Second, "repeated reply order/charge/compensation": 70 * time.Second},
		Acts: func(w *World) {
			w.later(time.Minute, nil, "mend", func() { s.steps[0].undo.rejects = false })
			decide(w, time.Minute, "retry", done, saga.Decision{Step: "charge", Verdict: saga.Retried})
		}}
}

// decide has a person decide about the saga "order".
func decide(w *World, in time.Duration, name string, f fate, d saga.Decision) {
	d.ID = name
	w.later(in, nil, name, func() {
		w.books.decided[w.sagas[0].uid]++
		for i := range w.sagas[0].steps {
			if st := &w.sagas[0].steps[i]; d.Verdict == saga.MarkedCompensated && st.name == "charge" {
				st.act.byHand = true
			}
		}
		w.incoming(decisionCall, "decision "+name, func(ctx context.Context, n *node) bool {
			err := n.engine.Decide(ctx, engine.Key{Namespace: "sim", Name: "order", UID: w.sagas[0].uid}, d)
			return err != nil && !strings.Contains(err.Error(), "waits for a decision")
		})
	})
}

// repeatedDecision has the compensations of two steps fail, one after the other. A person undoes the first by hand and says so, and the answer is lost.
func repeatedDecision() *Script {
	s := one("order", 1)
	s.steps = []testStep{stepOf("reserve", 1), after(stepOf("charge", 1), "reserve"), after(stepOf("ship", 1), "charge")}
	s.steps[0].undoRejects, s.steps[1].undoRejects, s.steps[2].rejects = true, true, true
	return &Script{Sagas: []*testSaga{s}, Fates: map[string]fate{"decision undone try 1": failedAfter}, Acts: func(w *World) {
		decide(w, time.Minute, "undone", done, saga.Decision{Verdict: saga.MarkedCompensated})
	}}
}

// excused reports whether a violation is that of a fault which is known and open.
func excused(v violation) bool {
	return slices.ContainsFunc(scenarios, func(s scenario) bool { return s.open && s.excuses != nil && s.excuses(v) })
}

// TestScenarios runs each case. One that is open has to fail, so that nobody forgets to close it here.
func TestScenarios(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			r := Run(t, Config{Seed: 1, Script: s.script(), Trace: true})
			var broken []string
			for _, v := range r.Violations {
				broken = append(broken, v.String())
			}
			if s.want != nil {
				if wrong := s.want(r); wrong != "" {
					broken = append(broken, wrong)
				}
			}
			switch {
			case s.open && len(broken) == 0:
				t.Errorf("this fault is closed: take it off the list\n%s", strings.Join(r.Trace, "\n"))
			case !s.open && len(broken) > 0:
				t.Errorf("%s\n%s", strings.Join(broken, "\n"), strings.Join(r.Trace, "\n"))
			default:
				t.Log(strings.Join(broken, "\n"))
			}
		})
	}
}
