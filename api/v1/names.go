package v1

const (
	// Finalizer holds the object of a saga until the saga has ended, so that deleting a running one undoes it first.
	Finalizer = "saga.vextrus.io/compensate"
	// TraceParentAnnotation holds a W3C trace context, in the form of the header traceparent: what the saga does belongs to that trace.
	TraceParentAnnotation = "saga.vextrus.io/traceparent"
	// CreatedByAnnotation holds the name of the user who created the object.
	CreatedByAnnotation = "saga.vextrus.io/created-by"
	// ChangedByAnnotation holds the name of the user who last changed the object's spec. For a change
	// through the operator's HTTP API that is the caller of the API. It is set only in clusters with
	// the admission policies of config/admission.
	ChangedByAnnotation = "saga.vextrus.io/changed-by"
)

// The annotations by which an administrator sets the quotas of a Namespace, in the place of those that the
// operator's flags set for all. Each is a number, or -1 for no limit.
const (
	// MaxUnfinishedSagasAnnotation is the maximum number of sagas that have started and not ended.
	MaxUnfinishedSagasAnnotation = "saga.vextrus.io/max-unfinished-sagas"
	// MaxUnfinishedBytesAnnotation is the maximum total size of their specs, in bytes of JSON, for
	// example 64Mi.
	MaxUnfinishedBytesAnnotation = "saga.vextrus.io/max-unfinished-bytes"
	// MaxSinksAnnotation is the maximum number of Sinks that are published to.
	MaxSinksAnnotation = "saga.vextrus.io/max-sinks"
	// MaxAttemptsPerSecondAnnotation is the maximum rate at which attempts start; at least 1.
	MaxAttemptsPerSecondAnnotation = "saga.vextrus.io/max-attempts-per-second"
)

// The conditions of a Saga. Ready, Progressing and Stalled are always there; the other three appear when they become true.
const (
	// ConditionReady is True when the saga has ended well: everything was done, or everything that may have been done was undone.
	ConditionReady = "Ready"
	// ConditionProgressing is True while the saga moves by itself, in either direction.
	ConditionProgressing = "Progressing"
	// ConditionStalled is True when the saga does not go on by itself. Its message says what to do.
	ConditionStalled = "Stalled"
	// ConditionCompleted is True when every action succeeded.
	ConditionCompleted = "Completed"
	// ConditionCompensated is True when everything that may have been done has been undone.
	ConditionCompensated = "Compensated"
	// ConditionAbandoned is True if a person has abandoned the saga.
	ConditionAbandoned = "Abandoned"
	// ConditionCompensationFailed is True while the saga is parked because a compensation failed for good.
	ConditionCompensationFailed = "CompensationFailed"
)

// SagaPhase is where a saga stands as a whole. Completed, Compensated and Abandoned are terminal.
type SagaPhase string

// The phases of a saga.
const (
	// PhasePending: not started. A saga that cannot be understood stays here, with the condition Stalled.
	PhasePending SagaPhase = "Pending"
	// PhaseRunning: the actions are being carried out.
	PhaseRunning SagaPhase = "Running"
	// PhaseCompensating: what may have been done is being undone.
	PhaseCompensating SagaPhase = "Compensating"
	// PhaseCompleted: every action succeeded.
	PhaseCompleted SagaPhase = "Completed"
	// PhaseCompensated: everything that may have been done has been undone.
	PhaseCompensated SagaPhase = "Compensated"
	// PhaseCompensationFailed: parked, because a compensation failed for good.
	PhaseCompensationFailed SagaPhase = "CompensationFailed"
	// PhaseAbandoned: a person has abandoned the saga.
	PhaseAbandoned SagaPhase = "Abandoned"
)

// StepPhase is where one step stands.
type StepPhase string

// The phases of a step.
const (
	// StepPending: never sent.
	StepPending StepPhase = "Pending"
	// StepRunning: an attempt of the action is under way.
	StepRunning StepPhase = "Running"
	// StepRetrying: an attempt of the action failed and another will follow.
	StepRetrying StepPhase = "Retrying"
	// StepSucceeded: the action happened.
	StepSucceeded StepPhase = "Succeeded"
	// StepRejected: the participant gave a definite no.
	StepRejected StepPhase = "Rejected"
	// StepFailed: no attempt is left, and the action did not happen.
	StepFailed StepPhase = "Failed"
	// StepUnknown: no attempt is left, and the action may have happened.
	StepUnknown StepPhase = "Unknown"
	// StepCompensating: the compensation is being carried out.
	StepCompensating StepPhase = "Compensating"
	// StepCompensated: the compensation happened.
	StepCompensated StepPhase = "Compensated"
	// StepCompensationFailed: the compensation failed for good.
	StepCompensationFailed StepPhase = "CompensationFailed"
)
