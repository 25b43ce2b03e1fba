// Package conditionscheck says what is wrong with the status of an object: rules that hold at any moment, whatever has happened. Tests run it on
// every object that they have made.
package conditionscheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// MaxStatusBytes is the promise about the size of a status.
const MaxStatusBytes = 32 << 10

// Saga returns every rule that the status of a saga breaks, joined; nil when it breaks none. A status that has not been written yet breaks none.
func Saga(o *v1.Saga) error {
	if o.Status.Phase == "" && len(o.Status.Conditions) == 0 {
		return nil
	}
	c := checker{status: &o.Status}
	c.wellFormed(o.Generation)
	c.consistent()
	c.agreesWithPhase()
	c.stepsAgree()
	if data, err := json.Marshal(o.Status); err != nil || len(data) > MaxStatusBytes {
		c.failf("the status takes %d bytes, more than %d (%v)", len(data), MaxStatusBytes, err)
	}
	if err := errors.Join(c.errs...); err != nil {
		return fmt.Errorf("status of saga %s/%s: %w", o.Namespace, o.Name, err)
	}
	return nil
}

type checker struct {
	status *v1.SagaStatus
	errs   []error
}

func (c *checker) failf(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *checker) is(typ string) bool { return meta.IsStatusConditionTrue(c.status.Conditions, typ) }

// wellFormed: each condition says everything that a condition has to say.
func (c *checker) wellFormed(generation int64) {
	seen := map[string]bool{}
	for _, cond := range c.status.Conditions {
		switch {
		case seen[cond.Type]:
			c.failf("condition %s is there twice", cond.Type)
		case cond.Reason == "" || cond.Message == "":
			c.failf("condition %s has no reason or no message", cond.Type)
		case cond.ObservedGeneration != c.status.ObservedGeneration:
			c.failf("condition %s observed generation %d, the status %d", cond.Type, cond.ObservedGeneration, c.status.ObservedGeneration)
		case cond.LastTransitionTime.IsZero():
			c.failf("condition %s has no transition time", cond.Type)
		case cond.Status != metav1.ConditionTrue && cond.Status != metav1.ConditionFalse:
			c.failf("condition %s is %s", cond.Type, cond.Status)
		}
		seen[cond.Type] = true
	}
	for _, typ := range []string{v1.ConditionReady, v1.ConditionProgressing, v1.ConditionStalled} {
		if !seen[typ] {
			c.failf("condition %s is missing", typ)
		}
	}
	if c.status.ObservedGeneration > generation {
		c.failf("generation %d was observed, but the object is at %d", c.status.ObservedGeneration, generation)
	}
}

// consistent: no two conditions contradict each other.
func (c *checker) consistent() {
	if c.is(v1.ConditionStalled) && c.is(v1.ConditionProgressing) {
		c.failf("Stalled and Progressing are both True")
	}
	if c.is(v1.ConditionReady) && (c.is(v1.ConditionStalled) || c.is(v1.ConditionProgressing)) {
		c.failf("Ready is True while Stalled or Progressing is")
	}
	if c.is(v1.ConditionReady) != (c.is(v1.ConditionCompleted) || c.is(v1.ConditionCompensated)) {
		c.failf("Ready does not agree with Completed and Compensated")
	}
	for _, typ := range []string{v1.ConditionCompensationFailed, v1.ConditionAbandoned} {
		if c.is(typ) && !c.is(v1.ConditionStalled) {
			c.failf("%s is True and Stalled is not", typ)
		}
	}
	ends := 0
	for _, typ := range []string{v1.ConditionCompleted, v1.ConditionCompensated, v1.ConditionCompensationFailed, v1.ConditionAbandoned} {
		if c.is(typ) {
			ends++
		}
	}
	if ends > 1 {
		c.failf("more than one ending is True")
	}
}

// agreesWithPhase: phase, conditions, times and failure tell the same story.
func (c *checker) agreesWithPhase() {
	s := c.status
	for phase, typ := range map[v1.SagaPhase]string{
		v1.PhaseCompleted: v1.ConditionCompleted, v1.PhaseCompensated: v1.ConditionCompensated, v1.PhaseCompensationFailed: v1.ConditionCompensationFailed,
		v1.PhaseAbandoned: v1.ConditionAbandoned,
	} {
		// A saga that cannot be read any more shows what was known before.
		if (s.Phase == phase) != c.is(typ) && !c.is(v1.ConditionStalled) {
			c.failf("phase %s does not agree with condition %s", s.Phase, typ)
		}
	}
	well := s.Phase == v1.PhaseCompleted || s.Phase == v1.PhaseCompensated
	terminal := well || s.Phase == v1.PhaseAbandoned
	switch {
	case well && (c.is(v1.ConditionProgressing) || c.is(v1.ConditionStalled)):
		c.failf("phase %s is terminal, but Progressing or Stalled is True", s.Phase)
	case terminal == (s.EndedAt == nil):
		c.failf("phase %s does not agree with endedAt %v", s.Phase, s.EndedAt)
	case s.Phase != v1.PhasePending && s.RecordedVersion == 0, s.Phase != v1.PhasePending && s.Phase != v1.PhaseAbandoned && s.StartedAt == nil:
		c.failf("phase %s, but startedAt is %v and recordedVersion %d", s.Phase, s.StartedAt, s.RecordedVersion)
	}
	rolledBack := slices.Contains([]v1.SagaPhase{v1.PhaseCompensating, v1.PhaseCompensated, v1.PhaseCompensationFailed}, s.Phase)
	if s.Phase != v1.PhaseAbandoned && rolledBack != (s.Failure != nil) {
		c.failf("phase %s does not agree with failure %v", s.Phase, s.Failure)
	}
	if s.Phase == v1.PhaseCompensationFailed && s.Step == "" {
		c.failf("no step is named to look at")
	}
}

// stepsAgree: the phases of the steps fit that of the saga.
func (c *checker) stepsAgree() {
	s := c.status
	for _, step := range s.Steps {
		busy := step.Phase == v1.StepRunning || step.Phase == v1.StepRetrying || step.Phase == v1.StepCompensating
		undoing := step.Phase == v1.StepCompensating || step.Phase == v1.StepCompensated || step.Phase == v1.StepCompensationFailed
		switch {
		case s.Phase == v1.PhaseCompleted && step.Phase != v1.StepSucceeded:
			c.failf("the saga is Completed, but step %s is %s", step.Name, step.Phase)
		case s.EndedAt != nil && busy:
			c.failf("the saga has ended, but step %s is %s", step.Name, step.Phase)
		case undoing && (s.Phase == v1.PhasePending || s.Phase == v1.PhaseRunning):
			c.failf("the saga is %s, but step %s is %s", s.Phase, step.Name, step.Phase)
		case step.Phase == v1.StepCompensationFailed && s.Phase == v1.PhaseCompensated:
			c.failf("the saga is Compensated, but step %s is %s", step.Name, step.Phase)
		}
	}
}
