package saga

import (
	"encoding/json"
	"time"
)

// Phase is where a saga stands as a whole.
type Phase string

// The phases. Completed, Compensated and Abandoned are terminal and never change again;
// CompensationFailed is parked until a person decides.
const (
	Pending            Phase = "Pending"
	Running            Phase = "Running"
	Compensating       Phase = "Compensating"
	Completed          Phase = "Completed"
	Compensated        Phase = "Compensated"
	CompensationFailed Phase = "CompensationFailed"
	// Abandoned: a person has abandoned the saga.
	Abandoned Phase = "Abandoned"
)

// Terminal reports whether the phase never changes again.
func (p Phase) Terminal() bool { return p == Completed || p == Compensated || p == Abandoned }

// StepState is the fold of all events about one step.
type StepState struct {
	Name         string          `json:"name"`
	Do           EffectState     `json:"do"`
	Compensation EffectState     `json:"compensation,omitzero"`
	Output       json.RawMessage `json:"output,omitempty"`
}

// Failure says why a saga rolls back, and where it is stuck.
type Failure struct {
	Cause   Cause     `json:"cause,omitempty"`
	Step    string    `json:"step,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Message string    `json:"message,omitempty"`
	At      time.Time `json:"at,omitzero"`
	// Version is the version of the stream at which the saga was parked: a decision names it.
	Version int64 `json:"version,omitempty"`
}

// State is the fold of a saga's stream. A State is a value: nothing that is reachable from it is changed after it was returned.
type State struct {
	// Version is the number of events folded, and so the version of the stream.
	Version   int64  `json:"version"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Phase     Phase  `json:"phase"`
	Suspended bool   `json:"suspended,omitempty"`
	// SuspendGeneration is the metadata.generation at which it was last suspended or resumed. What an
	// older version of the object asks for changes nothing.
	SuspendGeneration int64 `json:"suspendGeneration,omitempty"`
	// Decisions are those that people have made about it, the oldest first. There can be any number, so
	// they are not repeated in the stored state, which has to fit into a row.
	Decisions []DecisionMade `json:"-"`
	// Failure is set from SagaCompensating on.
	Failure *Failure `json:"failure,omitempty"`
	// Parked is set while the saga waits for a person.
	Parked *Failure `json:"parked,omitempty"`
	// Abandoned is set once the saga has been abandoned.
	Abandoned  *Abandonment `json:"abandoned,omitempty"`
	StartedAt  time.Time    `json:"startedAt,omitzero"`
	EndedAt    time.Time    `json:"endedAt,omitzero"`
	DeadlineAt time.Time    `json:"deadlineAt,omitzero"`
	Steps      []StepState  `json:"steps,omitempty"`
	// Notices is how many notices the events had.
	Notices int64 `json:"notices,omitempty"`
	// Needs are those of all events.
	Needs Needs `json:"needs,omitempty"`

	// Definition and Input come from the first event and are not repeated in the stored state.
	Definition Definition      `json:"-"`
	Input      json.RawMessage `json:"-"`
	CreatedBy  string          `json:"createdBy,omitempty"`
	// NamespaceUID is the uid of the saga's namespace; empty if it was not recorded.
	NamespaceUID string `json:"namespaceUid,omitempty"`
	// TraceParent is the W3C trace context that the saga belongs to; empty where it is a trace of its own.
	TraceParent string `json:"traceParent,omitempty"`
	// Labels are those that the saga had when it started.
	Labels map[string]string `json:"-"`
}

// ForRow returns the part of the state that is stored in the saga's row. The code that takes replies reads it there. Everything
// else is read from the stream.
func (s State) ForRow() State {
	row := State{Version: s.Version, UID: s.UID, Namespace: s.Namespace, NamespaceUID: s.NamespaceUID, Name: s.Name, Phase: s.Phase, Needs: s.Needs, Abandoned: s.Abandoned}
	for i := range s.Steps {
		step := &s.Steps[i]
		if do, undo := step.Do.forRow(), step.Compensation.forRow(); do != undo || do != (EffectState{}) {
			row.Steps = append(row.Steps, StepState{Name: step.Name, Do: do, Compensation: undo})
		}
	}
	return row
}

// Bytes estimates the memory of the state, in bytes. It does not count the definition, which sagas
// share.
func (s *State) Bytes() int64 {
	const step, fixed = 1 << 10, 1 << 10
	sum := int64(fixed + len(s.Input) + len(s.Steps)*step)
	for i := range s.Steps {
		sum += int64(len(s.Steps[i].Output))
	}
	return sum
}

// forRow returns an empty state for an effect that no reply can be for, and that no person has had retried.
func (f *EffectState) forRow() EffectState {
	if f.Settled() && f.Before == 0 {
		return EffectState{}
	}
	return EffectState{Status: f.Status, Attempts: f.Attempts, Before: f.Before}
}

// Effect returns the state of an effect as it is; see effect.
func (s *State) Effect(id EffectID) EffectState { return *s.effect(id) }

// effect returns the state of an effect, the only place that looks one up. An event about an effect
// that the saga does not have changes nothing: the result is a state that belongs to no saga.
func (s *State) effect(id EffectID) *EffectState {
	step := s.Step(id.Step)
	if step == nil || id.Item != "" {
		return &EffectState{}
	}
	return step.Effect(id.Direction)
}

// Effect returns the state of the step's action or compensation.
func (s *StepState) Effect(dir Direction) *EffectState {
	if dir == Compensation {
		return &s.Compensation
	}
	return &s.Do
}

// effects calls yield with every effect: all actions in the order of the definition, then all
// compensations.
func (s *State) effects(yield func(EffectID, *EffectState) bool) {
	for i := range s.Steps {
		if !yield(EffectID{Step: s.Steps[i].Name, Direction: Action}, &s.Steps[i].Do) {
			return
		}
	}
	for i := range s.Steps {
		if !yield(EffectID{Step: s.Steps[i].Name, Direction: Compensation}, &s.Steps[i].Compensation) {
			return
		}
	}
}

// Step returns the state of the named step, or nil.
func (s *State) Step(name string) *StepState {
	for i := range s.Steps {
		if s.Steps[i].Name == name {
			return &s.Steps[i]
		}
	}
	return nil
}
