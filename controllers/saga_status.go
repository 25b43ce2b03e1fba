package controllers

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/saga"
)

// Bounds of a status, in bytes.
const (
	maxStatusBytes      = 30 << 10 // of JSON; the promise is 32 KiB
	maxReasonColumn     = 120
	maxStepMessage      = 256
	maxFailureMessage   = 1 << 10
	maxConditionMessage = 1 << 10
)

// view is everything that a status is worked out from.
type view struct {
	name, namespace string
	generation      int64
	deleting        bool
	// now is the time for transitions that the state has no time of.
	now     time.Time
	state   *saga.State
	problem *problem
	// unstarted is true when it is known that nothing is recorded.
	unstarted bool
	previous  *v1.SagaStatus
}

// statusOf works the status out. It is pure: the same view always gives the same status. Without a state, which is when the stream is empty or cannot be
// read, everything but the conditions stays as it was.
func statusOf(v view) v1.SagaStatus {
	var s v1.SagaStatus
	switch {
	case v.state.Phase == saga.Abandoned && len(v.state.Steps) == 0: // its events cannot be read
		s = *v.previous.DeepCopy()
		s.Phase, s.RecordedVersion, s.EndedAt, s.Reason = v1.PhaseAbandoned, v.state.Version, timeOf(v.state.EndedAt), clip(reasonOf(v.state), maxReasonColumn)
	case v.state.Version > 0:
		s = summaryOf(v.state)
	default:
		s = *v.previous.DeepCopy()
		s.Phase = orPending(s.Phase)
	}
	if v.problem != nil && (!v.problem.transient || v.problem.reason == reasonQuotaExceeded) {
		s.Reason = clip(v.problem.message, maxReasonColumn)
	}
	s.ObservedGeneration = v.generation
	s.Conditions = conditionsOf(v)
	shrink(&s)
	return s
}

func orPending(p v1.SagaPhase) v1.SagaPhase {
	if p == "" {
		return v1.PhasePending
	}
	return p
}

func summaryOf(state *saga.State) v1.SagaStatus {
	s := v1.SagaStatus{
		Phase:           v1.SagaPhase(state.Phase),
		RecordedVersion: state.Version,
		StartedAt:       timeOf(state.StartedAt),
		EndedAt:         timeOf(state.EndedAt),
		Progress:        progressOf(state),
		Step:            stepOf(state),
		Reason:          clip(reasonOf(state), maxReasonColumn),
		Failure:         failureOf(state),
		Steps:           make([]v1.StepStatus, len(state.Steps)),
	}
	for i := range state.Steps {
		s.Steps[i] = stepStatusOf(&state.Steps[i])
	}
	return s
}

// progressOf counts the actions that have happened and have not been undone.
func progressOf(state *saga.State) string {
	done := 0
	for i := range state.Steps {
		if step := &state.Steps[i]; step.Do.Status == saga.Done && step.Compensation.Status != saga.Done {
			done++
		}
	}
	return fmt.Sprintf("%d/%d", done, len(state.Steps))
}

// stepOf names the step to look at: the one that failed, else those that are under way.
func stepOf(state *saga.State) string {
	switch {
	case state.Parked != nil:
		return state.Parked.Step
	case state.Failure != nil && state.Failure.Step != "":
		return state.Failure.Step
	case state.Phase.Terminal():
		return ""
	}
	first, more := "", 0
	for i := range state.Steps {
		if step := &state.Steps[i]; !step.Do.Settled() || !step.Compensation.Settled() {
			if first == "" {
				first = step.Name
			} else {
				more++
			}
		}
	}
	if more > 0 {
		return fmt.Sprintf("%s +%d", first, more)
	}
	return first
}

// reasonOf says in a few words why the saga is not simply going forward.
func reasonOf(state *saga.State) string {
	switch {
	case state.Abandoned != nil:
		return "abandoned: " + state.Abandoned.Reason
	case state.Parked != nil:
		return "compensation failed: " + text(state.Parked.Message, state.Parked.Reason)
	case state.Suspended:
		return "suspended"
	case state.Failure != nil:
		return text(state.Failure.Message, state.Failure.Reason)
	}
	for i := range state.Steps {
		if do := &state.Steps[i].Do; do.Status == saga.Waiting {
			return "retrying: " + text(do.Message, do.Reason)
		} else if do.Status == saga.Accepted {
			return "waiting for the answer to " + state.Steps[i].Name
		}
	}
	return ""
}

func text(message, reason string) string {
	if message == "" {
		return reason
	}
	return message
}

func failureOf(state *saga.State) *v1.SagaFailure {
	f := state.Failure
	if f == nil {
		return nil
	}
	return &v1.SagaFailure{Cause: string(f.Cause), Step: f.Step, Reason: f.Reason, Message: clip(f.Message, maxFailureMessage)}
}

func stepStatusOf(step *saga.StepState) v1.StepStatus {
	s := v1.StepStatus{
		Name:                 step.Name,
		Phase:                stepPhaseOf(step),
		Attempts:             int32(step.Do.Attempts),
		CompensationAttempts: int32(step.Compensation.Attempts),
		StartedAt:            timeOf(step.Do.StartedAt),
		EndedAt:              timeOf(step.Do.EndedAt),
		Message:              step.Do.Message,
	}
	if step.Compensation.Status != saga.NotStarted {
		s.EndedAt = timeOf(step.Compensation.EndedAt)
		if step.Compensation.Message != "" {
			s.Message = step.Compensation.Message
		}
	}
	s.Message = clip(s.Message, maxStepMessage)
	return s
}

func stepPhaseOf(step *saga.StepState) v1.StepPhase {
	switch undo := &step.Compensation; {
	case !undo.Settled():
		return v1.StepCompensating
	case undo.Status == saga.Done:
		return v1.StepCompensated
	case undo.FailedForGood():
		return v1.StepCompensationFailed
	}
	switch step.Do.Status {
	case saga.InProgress, saga.Accepted:
		return v1.StepRunning
	case saga.Waiting:
		return v1.StepRetrying
	case saga.Done:
		return v1.StepSucceeded
	case saga.Refused:
		return v1.StepRejected
	case saga.Exhausted, saga.Parked:
		if step.Do.InDoubt {
			return v1.StepUnknown
		}
		return v1.StepFailed
	default:
		return v1.StepPending
	}
}

// timeOf gives a time the precision that the API server keeps, so that what was written equals what is read.
func timeOf(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	return &metav1.Time{Time: t.Truncate(time.Second)}
}

// shrinking are the ways to make a status smaller, the least missed first.
var shrinking = []func(*v1.SagaStatus){
	func(s *v1.SagaStatus) { clipMessages(s, 64) },
	func(s *v1.SagaStatus) { forSteps(s, func(p *v1.StepStatus) { dropTimesIf(p, over(p.Phase)) }) },
	func(s *v1.SagaStatus) { clipMessages(s, 0) },
	func(s *v1.SagaStatus) { forSteps(s, func(p *v1.StepStatus) { dropTimesIf(p, true) }) },
	func(s *v1.SagaStatus) {
		forSteps(s, func(p *v1.StepStatus) { p.Attempts, p.CompensationAttempts = 0, 0 })
	},
	func(s *v1.SagaStatus) {
		if s.Failure != nil {
			s.Failure.Message = clip(s.Failure.Message, maxReasonColumn)
		}
		for i := range s.Conditions {
			s.Conditions[i].Message = clip(s.Conditions[i].Message, maxReasonColumn)
		}
	},
}

// shrink keeps a status within its bound, whatever the saga: etcd and every watcher pay for each byte. The whole history is in the event store.
func shrink(s *v1.SagaStatus) {
	for _, smaller := range shrinking {
		if size(s) <= maxStatusBytes {
			return
		}
		smaller(s)
	}
}

// size is what the status takes as JSON. Characters that JSON escapes make it larger than its texts.
func size(s *v1.SagaStatus) int {
	data, err := json.Marshal(s)
	if err != nil {
		return 0 // strings, numbers and times: it cannot fail
	}
	return len(data)
}

func forSteps(s *v1.SagaStatus, f func(*v1.StepStatus)) {
	for i := range s.Steps {
		f(&s.Steps[i])
	}
}

func clipMessages(s *v1.SagaStatus, limit int) {
	forSteps(s, func(p *v1.StepStatus) { p.Message = clip(p.Message, limit) })
}

func dropTimesIf(p *v1.StepStatus, drop bool) {
	if drop {
		p.StartedAt, p.EndedAt = nil, nil
	}
}

// over reports whether nothing more happens in a step of that phase.
func over(p v1.StepPhase) bool {
	return p == v1.StepSucceeded || p == v1.StepCompensated || p == v1.StepRejected
}

// clip shortens a text to so many bytes of valid UTF-8, and shows that it did.
func clip(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	const more = "…"
	if limit -= len(more); limit <= 0 {
		return ""
	}
	for !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit] + more
}

// fieldErrors tells what is wrong with a definition: all of it where it fits, and how much is left out where not.
func fieldErrors(errs []saga.FieldError) string {
	var b strings.Builder
	for i, e := range errs {
		if b.Len()+len(e.Error()) > maxConditionMessage/2 && i > 0 {
			fmt.Fprintf(&b, "; and %d more", len(errs)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(clip(e.Error(), maxConditionMessage/2))
	}
	return b.String()
}
