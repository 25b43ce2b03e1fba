package controllers

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/conditionscheck"
	"github.com/vextrus/saga-operator/internal/engine"
	"github.com/vextrus/saga-operator/internal/eventstore/memory"
	"github.com/vextrus/saga-operator/internal/saga"
)

var (
	began = time.Date(2030, 1, 2, 3, 4, 5, 678901000, time.UTC)
	ended = began.Add(7 * time.Second)
)

func running(steps ...saga.StepState) *saga.State {
	return &saga.State{Version: int64(1 + len(steps)), Phase: saga.Running, StartedAt: began, Steps: steps}
}

func step(name string, do saga.EffectStatus) saga.StepState {
	st := saga.StepState{Name: name, Do: saga.EffectState{Status: do}}
	if do != saga.NotStarted {
		st.Do.Attempts, st.Do.StartedAt = 1, began
	}
	return st
}

func undone(s saga.StepState, c saga.EffectStatus) saga.StepState {
	s.Compensation = saga.EffectState{Status: c, Attempts: 1, StartedAt: began}
	return s
}

func rolling(phase saga.Phase, f saga.Failure, steps ...saga.StepState) *saga.State {
	s := running(steps...)
	s.Phase = phase
	f.At = began.Add(time.Second)
	s.Failure = &f
	if phase.Terminal() {
		s.EndedAt = ended
	}
	return s
}

func parked(s *saga.State, step, message string) *saga.State {
	s.Phase, s.Parked = saga.CompensationFailed, &saga.Failure{Step: step, Reason: "HTTPStatus", Message: message, At: ended}
	return s
}

func show(state *saga.State) v1.SagaStatus { return statusOf(viewOf(state)) }

func viewOf(state *saga.State) view {
	return view{name: "order-1", namespace: "shop", generation: 3, now: ended, state: state, previous: &v1.SagaStatus{}}
}

func checkStatus(t *testing.T, s v1.SagaStatus) {
	t.Helper()
	if err := conditionscheck.Saga(&v1.Saga{ObjectMeta: metav1.ObjectMeta{Name: "order-1", Namespace: "shop", Generation: 3}, Status: s}); err != nil {
		t.Error(err)
	}
}

func TestTheColumnsTellWhereASagaStands(t *testing.T) {
	t.Parallel()
	declined := saga.Failure{Cause: saga.CauseStepRejected, Step: "charge", Reason: "HTTPStatus", Message: "card declined (402)"}
	waiting := step("charge", saga.Waiting)
	waiting.Do.Message = "connection refused"
	suspended := running(step("reserve", saga.NotStarted))
	suspended.Suspended = true
	finished := running(step("reserve", saga.Done), step("charge", saga.Done))
	finished.Phase, finished.EndedAt = saga.Completed, ended
	for name, c := range map[string]struct {
		state                         *saga.State
		phase, progress, step, reason string
	}{
		"running":      {running(step("reserve", saga.Done), step("charge", saga.InProgress)), "Running", "1/2", "charge", ""},
		"two at once":  {running(step("a", saga.InProgress), step("b", saga.Waiting)), "Running", "0/2", "a +1", "retrying: "},
		"retrying":     {running(step("reserve", saga.Done), waiting), "Running", "1/2", "charge", "retrying: connection refused"},
		"suspended":    {suspended, "Running", "0/1", "", "suspended"},
		"completed":    {finished, "Completed", "2/2", "", ""},
		"rolling back": {rolling(saga.Compensating, declined, undone(step("reserve", saga.Done), saga.InProgress), step("charge", saga.Refused)), "Compensating", "1/2", "charge", "card declined (402)"},
		"rolled back":  {rolling(saga.Compensated, declined, undone(step("reserve", saga.Done), saga.Done), step("charge", saga.Refused)), "Compensated", "0/2", "charge", "card declined (402)"},
		"parked":       {parked(rolling(saga.Compensating, declined, undone(step("reserve", saga.Done), saga.Parked), step("charge", saga.Refused)), "reserve", "no such reservation (404)"), "CompensationFailed", "1/2", "reserve", "compensation failed: no such reservation (404)"},
		"cancelled":    {rolling(saga.Compensating, saga.Failure{Cause: saga.CauseCancelled, Message: "the saga was cancelled"}, undone(step("reserve", saga.Done), saga.InProgress)), "Compensating", "1/1", "reserve", "the saga was cancelled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := show(c.state)
			got := []string{string(s.Phase), s.Progress, s.Step, s.Reason}
			if diff := cmp.Diff([]string{c.phase, c.progress, c.step, c.reason}, got); diff != "" {
				t.Errorf("the columns (-want +got):\n%s", diff)
			}
			checkStatus(t, s)
		})
	}
}

func TestEachStepHasAPhaseOfItsOwn(t *testing.T) {
	t.Parallel()
	unknown := step("x", saga.Exhausted)
	unknown.Do.InDoubt = true
	for want, st := range map[v1.StepPhase]saga.StepState{
		v1.StepPending:            step("x", saga.NotStarted),
		v1.StepRunning:            step("x", saga.InProgress),
		v1.StepRetrying:           step("x", saga.Waiting),
		v1.StepSucceeded:          step("x", saga.Done),
		v1.StepRejected:           step("x", saga.Refused),
		v1.StepFailed:             step("x", saga.Exhausted),
		v1.StepUnknown:            unknown,
		v1.StepCompensating:       undone(step("x", saga.Done), saga.Waiting),
		v1.StepCompensated:        undone(unknown, saga.Done),
		v1.StepCompensationFailed: undone(step("x", saga.Done), saga.Parked),
	} {
		if got := stepPhaseOf(&st); got != want {
			t.Errorf("phase of a step with action %q and compensation %q: %s, want %s", st.Do.Status, st.Compensation.Status, got, want)
		}
	}
}

func TestAStatusIsBoundedWhateverTheSaga(t *testing.T) {
	t.Parallel()
	for name, message := range map[string]string{
		"plain": strings.Repeat("m", 1<<10), "escaped": strings.Repeat("\x01", 1<<10), "wide": strings.Repeat("€", 341),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			steps := make([]saga.StepState, saga.MaxSteps)
			for i := range steps {
				s := undone(step(fmt.Sprintf("%s-%03d", strings.Repeat("n", saga.MaxNameLength-4), i), saga.Exhausted), saga.Parked)
				s.Do.Attempts, s.Compensation.Attempts = saga.MaxAttempts, saga.MaxAttempts
				s.Do.EndedAt, s.Compensation.EndedAt, s.Do.InDoubt = ended, ended, true
				s.Do.Message, s.Compensation.Message = message, message
				steps[i] = s
			}
			f := saga.Failure{Cause: saga.CauseRetriesExhausted, Step: steps[0].Name, Reason: strings.Repeat("R", 64), Message: message}
			v := viewOf(parked(rolling(saga.Compensating, f, steps...), steps[0].Name, message))
			v.deleting, v.name, v.namespace = true, strings.Repeat("s", 253), strings.Repeat("s", 63)
			s := statusOf(v)
			data, err := json.Marshal(s)
			if err != nil || len(data) > conditionscheck.MaxStatusBytes {
				t.Fatalf("the status takes %d bytes, want %d at most (%v)", len(data), conditionscheck.MaxStatusBytes, err)
			}
			if len(s.Steps) != saga.MaxSteps || s.Steps[199].Phase != v1.StepCompensationFailed {
				t.Errorf("steps or their phases are missing from the status")
			}
			checkStatus(t, s)
		})
	}
}

func TestAStatusThatHasRoomKeepsEverything(t *testing.T) {
	t.Parallel()
	st := step("charge", saga.Waiting)
	st.Do.Message, st.Do.Attempts = "connection refused", 3
	want := v1.StepStatus{Name: "charge", Phase: v1.StepRetrying, Attempts: 3, StartedAt: timeOf(began), Message: "connection refused"}
	if diff := cmp.Diff(want, show(running(st)).Steps[0]); diff != "" {
		t.Errorf("the step's status (-want +got):\n%s", diff)
	}
}

func TestTheSameViewGivesTheSameStatus(t *testing.T) {
	t.Parallel()
	v := viewOf(running(step("a", saga.InProgress)))
	first := statusOf(v)
	v.previous, v.now = &first, ended.Add(time.Hour)
	if diff := cmp.Diff(first, statusOf(v)); diff != "" {
		t.Errorf("the status changed although nothing had happened (-first +second):\n%s", diff)
	}
}

func TestATransitionTimeChangesOnlyWithTheTransition(t *testing.T) {
	t.Parallel()
	first := show(running(step("a", saga.Done), step("b", saga.InProgress)))
	v := viewOf(rolling(saga.Compensating, saga.Failure{Cause: saga.CauseStepRejected, Step: "b", Message: "no"}, undone(step("a", saga.Done), saga.InProgress), step("b", saga.Refused)))
	v.previous = &first
	second := statusOf(v)
	p1, p2 := condition(first.Conditions, v1.ConditionProgressing), condition(second.Conditions, v1.ConditionProgressing)
	if p2.Reason != "Compensating" || !p1.LastTransitionTime.Equal(&p2.LastTransitionTime) {
		t.Errorf("Progressing stayed True from %s (%s) to %s (%s)", p1.LastTransitionTime, p1.Reason, p2.LastTransitionTime, p2.Reason)
	}
	v = viewOf(rolling(saga.Compensated, saga.Failure{Cause: saga.CauseStepRejected, Step: "b", Message: "no"}, undone(step("a", saga.Done), saga.Done), step("b", saga.Refused)))
	v.previous, v.now = &second, ended.Add(time.Hour)
	third := statusOf(v)
	if got := condition(third.Conditions, v1.ConditionCompensated).LastTransitionTime; !got.Equal(timeOf(ended)) {
		t.Errorf("Compensated since %s, want the time of the event, %s", got, ended)
	}
}

func TestAStallTellsAPersonWhatToDo(t *testing.T) {
	t.Parallel()
	declined := saga.Failure{Cause: saga.CauseStepRejected, Step: "charge", Message: "declined"}
	v := viewOf(parked(rolling(saga.Compensating, declined, undone(step("reserve", saga.Done), saga.Parked)), "reserve", "gone (404)"))
	v.deleting = true
	s := statusOf(v)
	checkStatus(t, s)
	message := condition(s.Conditions, v1.ConditionCompensationFailed).Message
	for _, want := range []string{`"reserve"`, "gone (404)", "kubectl patch sagas.saga.vextrus.io order-1 -n shop", "finalizers"} {
		if !strings.Contains(message, want) {
			t.Errorf("the message of CompensationFailed does not say %q: %s", want, message)
		}
	}
}

func TestAnInvalidDefinitionNamesItsFieldsAndIsBounded(t *testing.T) {
	t.Parallel()
	var errs []saga.FieldError
	for i := range 200 {
		errs = append(errs, saga.FieldError{Field: fmt.Sprintf("spec.steps[%d].http.url", i), Message: strings.Repeat("bad ", 100)})
	}
	v := viewOf(&saga.State{})
	v.problem = &problem{reason: engine.ReasonInvalidDefinition, message: fieldErrors(errs)}
	s := statusOf(v)
	checkStatus(t, s)
	stalled := condition(s.Conditions, v1.ConditionStalled)
	if !holds(stalled) || stalled.Reason != "InvalidDefinition" || !strings.Contains(stalled.Message, "spec.steps[0].http.url") || !strings.Contains(stalled.Message, "more") {
		t.Errorf("Stalled does not name the field and how many more there are: %+v", stalled)
	}
	if len(stalled.Message) > maxConditionMessage {
		t.Errorf("the message has %d bytes, want %d at most", len(stalled.Message), maxConditionMessage)
	}
}

func TestAProblemLeavesWhatWasKnownInPlace(t *testing.T) {
	t.Parallel()
	first := show(running(step("a", saga.InProgress)))
	v := viewOf(&saga.State{})
	v.previous, v.problem = &first, &problem{reason: engine.ReasonStreamUnreadable, message: errors.New("version 3 is garbage").Error()}
	s := statusOf(v)
	checkStatus(t, s)
	if s.Phase != v1.PhaseRunning || len(s.Steps) != 1 || s.RecordedVersion != first.RecordedVersion {
		t.Errorf("the status forgot what was known: %+v", s)
	}
}

func TestASagaThatCannotBeReadSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for reason, todo := range map[string]string{
		engine.ReasonDefinitionUnreadable: "run the newer version of the operator again",
		engine.ReasonStreamUnreadable:     "restore it from a backup",
	} {
		v := viewOf(&saga.State{})
		v.problem = &problem{reason: reason, message: "version 3 is not readable"}
		c := condition(statusOf(v).Conditions, v1.ConditionStalled)
		if !holds(c) || !strings.Contains(c.Message, "version 3 is not readable") || !strings.Contains(c.Message, todo) {
			t.Errorf("%s: %+v", reason, c)
		}
	}
}

func TestTheConditionCheckerFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	good := show(running(step("a", saga.InProgress)))
	for name, spoil := range map[string]func(*v1.SagaStatus){
		"stalled and progressing": func(s *v1.SagaStatus) { condition(s.Conditions, v1.ConditionStalled).Status = metav1.ConditionTrue },
		"ready while running":     func(s *v1.SagaStatus) { condition(s.Conditions, v1.ConditionReady).Status = metav1.ConditionTrue },
		"no reason":               func(s *v1.SagaStatus) { s.Conditions[0].Reason = "" },
		"another generation":      func(s *v1.SagaStatus) { s.Conditions[0].ObservedGeneration = 1 },
		"a phase of its own":      func(s *v1.SagaStatus) { s.Phase = v1.PhaseCompleted },
		"an end of its own":       func(s *v1.SagaStatus) { s.EndedAt = timeOf(ended) },
		"a condition missing":     func(s *v1.SagaStatus) { s.Conditions = s.Conditions[1:] },
		"undoing while running":   func(s *v1.SagaStatus) { s.Steps[0].Phase = v1.StepCompensated },
	} {
		s := good.DeepCopy()
		spoil(s)
		o := &v1.Saga{Status: *s}
		o.Generation = 3
		if conditionscheck.Saga(o) == nil {
			t.Errorf("%s: the checker found nothing", name)
		}
	}
}

// TestAStatusThatIsForbiddenForAMomentIsShownSoonAfter refuses the first writes, as an API server does that has just been started and has not read the roles yet.
func TestAStatusThatIsForbiddenForAMomentIsShownSoonAfter(t *testing.T) {
	t.Parallel()
	r := newRigWithoutOperator(t, memory.New())
	var asked atomic.Int32
	r.beforeStatus = func(o client.Object) error {
		if asked.Add(1) <= 2 {
			return apierrors.NewForbidden(schema.GroupResource{Group: v1.GroupVersion.Group, Resource: "sagas"}, o.GetName(), errors.New("the roles have not been read"))
		}
		return nil
	}
	r.startOperator()
	r.create("order", order)
	r.waitPhase("order", v1.PhaseCompleted)
	if n := asked.Load(); n < 3 {
		t.Errorf("the status was written %d times", n)
	}
}
