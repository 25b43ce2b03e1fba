package saga

import (
	"encoding/json"
	"time"
)

// OutcomeKind is what an attempt came to.
type OutcomeKind string

// The outcomes.
const (
	// Succeeded: it happened.
	Succeeded OutcomeKind = "Succeeded"
	// Rejected: a definite no. It did not happen and trying again would not help.
	Rejected OutcomeKind = "Rejected"
	// Retryable: it did not happen; try again.
	Retryable OutcomeKind = "Retryable"
	// Unknown: it may have happened; try again, with the same key.
	Unknown OutcomeKind = "Unknown"
	// NotSent: the operator itself knows that it has not called the participant for this attempt. It
	// does not count against the limit.
	NotSent OutcomeKind = "NotSent"
)

// Author says whose word a no is. Only the participant's own word settles a doubt: something between
// the operator and the participant cannot know what became of earlier attempts.
type Author string

// The authors of a no.
const (
	// AuthorUnknown: it may be the participant's, and nothing vouches for that.
	AuthorUnknown Author = ""
	// AuthorParticipant: the participant vouches for it, or said it in a reply.
	AuthorParticipant Author = "Participant"
	// AuthorGateway: a gateway, mesh, firewall or auth proxy gives such responses, too. So does a
	// participant that is still busy with an earlier attempt.
	AuthorGateway Author = "Gateway"
	// AuthorOperator: the operator sent nothing, or a broker did not take the message.
	AuthorOperator Author = "Operator"
)

// Outcome is what one attempt came to. It becomes a fact only when an event that says so is appended.
type Outcome struct {
	Attempt Attempt
	Kind    OutcomeKind
	// Output is the step's evaluated output, a JSON object; only with Succeeded, only of actions.
	Output json.RawMessage
	// Reason is one CamelCase word for programs, Message a short text for people. Both are empty when the attempt succeeded.
	Reason  string
	Message string
	// RetryAfter is the pause that the participant asked for; zero when it asked for none.
	RetryAfter time.Duration
	// Author says of a Rejected whose word it is.
	Author Author
	// Over says of an Unknown that the call has ended with a response, so that nothing of it is under
	// way any more.
	Over bool
	// Reply says that the outcome came later, by a callback or a broker. It is the participant's word
	// on the effect, whichever attempt led to it.
	Reply bool
	// Accepted says that the attempt has not come to an end yet: the participant has taken it, and its answer is waited for AnswerWithin from now. Kind means nothing then.
	Accepted     bool
	AnswerWithin time.Duration
}

// Cause says what began a rollback.
type Cause string

// The ways into rollback. All of them record the same event.
const (
	CauseStepRejected     Cause = "StepRejected"
	CauseRetriesExhausted Cause = "RetriesExhausted"
	CauseDeadlineExceeded Cause = "DeadlineExceeded"
	CauseCancelled        Cause = "Cancelled"
	CauseDeleted          Cause = "Deleted"
)

// Event is an immutable fact about one saga. Its JSON form is stored forever: fields are added, never renamed or removed. A field
// that changes what the event means comes with a need, so that an older version does not guess.
type Event interface {
	// EventType is the name under which the event is stored.
	EventType() string
	// DecidedAt is the time that was passed to the decision which made the event.
	DecidedAt() time.Time
	// Requires is what whoever decides from the event has to understand.
	Requires() Needs
}

// At is the time of the decision that made an event, and what the event needs of its readers.
type At struct {
	At    time.Time `json:"at"`
	Needs Needs     `json:"needs,omitempty"`
}

// DecidedAt returns the time of the decision.
func (a At) DecidedAt() time.Time { return a.At }

// Requires returns what the event needs of its readers.
func (a At) Requires() Needs { return a.Needs }

// The events.
type (
	// SagaStarted is the first event of every saga. It freezes what the saga is to do.
	SagaStarted struct {
		At
		UID       string `json:"uid"`
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
		// NamespaceUID is the uid of the namespace; empty in events of versions that did not record it.
		NamespaceUID string `json:"namespaceUid,omitempty"`
		CreatedBy    string `json:"createdBy,omitempty"`
		// TraceParent is the W3C trace context that the saga belongs to; empty where it is a trace of its own.
		TraceParent string `json:"traceParent,omitempty"`
		// Labels are those of the saga's object. Sinks select by them.
		Labels     map[string]string `json:"labels,omitempty"`
		Definition Definition        `json:"definition"`
		// Encoded is the stored form of Definition, from a plan that has it; nil where it is still to be encoded.
		Encoded json.RawMessage `json:"-"`
		Input   json.RawMessage `json:"input,omitempty"`
		// DeadlineAt is when the way forward ends; zero when the definition has no deadline.
		DeadlineAt time.Time `json:"deadlineAt,omitzero"`
	}
	// AttemptStarted is the intent to call a participant. It is committed before the call.
	AttemptStarted struct {
		At
		Attempt
	}
	// AttemptResent is the intent to call a participant again for an attempt that somebody else started, who may have called it and died before he could say what it came to. Whatever the
	// call comes to now, that one may have happened.
	AttemptResent struct {
		At
		Attempt
		// QuietUntil is when an undo may start: UndoMargin after the end of the latest call of the
		// attempt. Another process may report its own call first.
		QuietUntil time.Time `json:"quietUntil,omitzero"`
	}
	// AttemptSucceeded says that the effect happened.
	AttemptSucceeded struct {
		At
		Attempt
		Output json.RawMessage `json:"output,omitempty"`
	}
	// AttemptAccepted says that the participant has taken the attempt and will answer. Without an answer by AnswerBy its outcome is unknown.
	AttemptAccepted struct {
		At
		Attempt
		AnswerBy time.Time `json:"answerBy"`
	}
	// AttemptFailed says that an attempt ended otherwise, and what follows it.
	AttemptFailed struct {
		At
		Attempt
		Outcome OutcomeKind `json:"outcome"`
		// Author says of a Rejected whose word it is.
		Author  Author `json:"author,omitempty"`
		Reason  string `json:"reason,omitempty"`
		Message string `json:"message,omitempty"`
		// Next is what follows; RetryAt is when, if it is another attempt.
		Next    Next      `json:"next"`
		RetryAt time.Time `json:"retryAt,omitzero"`
		// QuietUntil is when an undo may start: UndoMargin after the end of a call that may still be
		// under way. An earlier undo could overtake its action.
		QuietUntil time.Time `json:"quietUntil,omitzero"`
	}
	// SagaCompensating is the one way into rollback.
	SagaCompensating struct {
		At
		Cause Cause `json:"cause"`
		// Step is the step that failed; empty when none did.
		Step    string `json:"step,omitempty"`
		Reason  string `json:"reason,omitempty"`
		Message string `json:"message,omitempty"`
	}
	// SagaCompleted says that every action succeeded.
	SagaCompleted struct{ At }
	// SagaCompensated says that everything that may have been done has been undone.
	SagaCompensated struct{ At }
	// SagaParked says that a compensation failed permanently and nothing else is left to do: a person
	// has to decide.
	SagaParked struct {
		At
		// Step is the first step, in the order of the definition, whose compensation failed.
		Step    string `json:"step"`
		Reason  string `json:"reason,omitempty"`
		Message string `json:"message,omitempty"`
	}
	// DecisionMade says what a person has decided about a parked saga, which goes on with it.
	DecisionMade struct {
		At
		// Step is the step whose compensation had failed; empty for all such steps.
		Step string `json:"step,omitempty"`
		// ID names the decision: the same one again changes nothing. About is the version of the parking.
		ID      string  `json:"id,omitempty"`
		About   int64   `json:"about,omitempty"`
		Verdict Verdict `json:"verdict"`
		By      string  `json:"by,omitempty"`
		Reason  string  `json:"reason,omitempty"`
	}
	// SagaAbandoned says that a person has abandoned the saga: the operator does nothing more for it.
	SagaAbandoned struct {
		At
		By     string `json:"by,omitempty"`
		Reason string `json:"reason"`
	}
	// SagaSuspended says that no attempt will be started until SagaResumed.
	SagaSuspended struct {
		At
		// Generation is the metadata.generation of the object that asked for it.
		Generation int64 `json:"generation,omitempty"`
	}
	// SagaResumed ends a suspension.
	SagaResumed struct {
		At
		// Generation is the metadata.generation of the object that asked for it.
		Generation int64 `json:"generation,omitempty"`
	}
)

// EventType implements Event.
func (SagaStarted) EventType() string { return "SagaStarted" }

// EventType implements Event.
func (AttemptStarted) EventType() string { return "AttemptStarted" }

// EventType implements Event.
func (AttemptResent) EventType() string { return "AttemptResent" }

// EventType implements Event.
func (AttemptSucceeded) EventType() string { return "AttemptSucceeded" }

// EventType implements Event.
func (AttemptAccepted) EventType() string { return "AttemptAccepted" }

// EventType implements Event.
func (AttemptFailed) EventType() string { return "AttemptFailed" }

// EventType implements Event.
func (SagaCompensating) EventType() string { return "SagaCompensating" }

// EventType implements Event.
func (SagaCompleted) EventType() string { return "SagaCompleted" }

// EventType implements Event.
func (SagaCompensated) EventType() string { return "SagaCompensated" }

// EventType implements Event.
func (SagaParked) EventType() string { return "SagaParked" }

// EventType implements Event.
func (DecisionMade) EventType() string { return "DecisionMade" }

// EventType implements Event.
func (SagaAbandoned) EventType() string { return "SagaAbandoned" }

// EventType implements Event.
func (SagaSuspended) EventType() string { return "SagaSuspended" }

// EventType implements Event.
func (SagaResumed) EventType() string { return "SagaResumed" }
