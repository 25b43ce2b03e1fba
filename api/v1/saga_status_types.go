package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SagaStatus mirrors how far a saga has come, in at most 32 KiB. It is
// written after the fact: what happened is in the event store.
type SagaStatus struct {
	// conditions follow the conventions of kstatus. Ready is True when the saga
	// has ended well, Completed or Compensated; Progressing is True while it
	// moves by itself; Stalled is True when it does not, with a message that
	// says what to do. Completed, Compensated, CompensationFailed and Abandoned
	// appear when they become true, for kubectl wait --for=condition=Completed.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +patchStrategy=merge
	// +patchMergeKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty" patchStrategy:"merge" patchMergeKey:"type"`

	// observedGeneration is the metadata.generation that the status was worked
	// out from.
	// +optional
	// +kubebuilder:validation:Minimum=1
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// phase is where the saga stands as a whole: Pending, Running, Compensating,
	// Completed, Compensated, Abandoned, or CompensationFailed, which is parked
	// until a person decides. Completed, Compensated and Abandoned never change
	// again.
	// +optional
	// +kubebuilder:validation:Enum=Pending;Running;Compensating;Completed;Compensated;CompensationFailed;Abandoned
	Phase SagaPhase `json:"phase,omitempty"`

	// progress says how many actions are done and not undone, of how many, for
	// example 2/4.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=16
	Progress string `json:"progress,omitempty"`

	// step is the step to look at: the one that failed, else the one that is
	// under way; with several of them the first and how many more, for example
	// charge +1.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=80
	Step string `json:"step,omitempty"`

	// reason says in a few words why the saga is not simply going forward, for
	// example card declined (402).
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Reason string `json:"reason,omitempty"`

	// failure says what began the rollback. It is absent while the saga goes
	// forward.
	// +optional
	Failure *SagaFailure `json:"failure,omitempty"`

	// recordedVersion is the number of recorded events that the status shows:
	// the version of the saga's stream in the event store.
	// +optional
	// +kubebuilder:validation:Minimum=1
	RecordedVersion int64 `json:"recordedVersion,omitempty"`

	// startedAt is when the saga started.
	// +optional
	StartedAt *metav1.Time `json:"startedAt,omitempty"`

	// endedAt is when the saga ended, Completed or Compensated.
	// +optional
	EndedAt *metav1.Time `json:"endedAt,omitempty"`

	// steps are the steps of the saga, in the order in which they were written.
	// In a large saga messages and times of single steps may be left out.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=200
	Steps []StepStatus `json:"steps,omitempty"`
}

// SagaFailure says what began a rollback.
type SagaFailure struct {
	// cause is the way into the rollback: StepRejected (a participant gave a
	// definite no), RetriesExhausted (the last attempt failed),
	// DeadlineExceeded, Cancelled or Deleted.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Cause string `json:"cause,omitempty"`

	// step is the step that failed; absent when none did.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Step string `json:"step,omitempty"`

	// reason is one CamelCase word for programs.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Reason string `json:"reason,omitempty"`

	// message is a short text for people.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
}

// StepStatus is how far one step has come.
type StepStatus struct {
	// name is the name of the step.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name,omitempty"`

	// phase is where the step stands: Pending (never sent), Running, Retrying
	// (an attempt failed, another will follow), Succeeded, Rejected (a definite
	// no), Failed (no attempt is left, and it did not happen), Unknown (no
	// attempt is left, and it may have happened), Compensating, Compensated or
	// CompensationFailed.
	// +optional
	// +kubebuilder:validation:Enum=Pending;Running;Retrying;Succeeded;Rejected;Failed;Unknown;Compensating;Compensated;CompensationFailed
	Phase StepPhase `json:"phase,omitempty"`

	// attempts is how often the action has been tried.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Attempts int32 `json:"attempts,omitempty"`

	// compensationAttempts is how often the compensation has been tried.
	// +optional
	// +kubebuilder:validation:Minimum=1
	CompensationAttempts int32 `json:"compensationAttempts,omitempty"`

	// startedAt is when the first attempt of the action started.
	// +optional
	StartedAt *metav1.Time `json:"startedAt,omitempty"`

	// endedAt is when the action ended; once the compensation has started, when
	// that ended.
	// +optional
	EndedAt *metav1.Time `json:"endedAt,omitempty"`

	// message says what the last attempt that did not succeed came to.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Message string `json:"message,omitempty"`
}
