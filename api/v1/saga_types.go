package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Saga is one business transaction over several services: steps, each with a
// compensation that undoes it. It ends with everything done (Completed),
// with everything that may have been done undone (Compensated), or it is
// parked for a person (CompensationFailed). Deleting one that is under way
// undoes it first.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=sagas,singular=saga,shortName=sg,categories=vextrus,scope=Namespaced
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`,description="Where the saga stands as a whole."
// +kubebuilder:printcolumn:name="Steps",type=string,JSONPath=`.status.progress`,description="How many actions are done and not undone, of how many."
// +kubebuilder:printcolumn:name="Step",type=string,JSONPath=`.status.step`,description="The step to look at: the one that failed, else those under way."
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,description="Time since the saga was created."
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`,description="Why the saga is not simply going forward."
// +kubebuilder:printcolumn:name="Cause",type=string,JSONPath=`.status.failure.cause`,priority=1,description="What began the rollback."
// +kubebuilder:printcolumn:name="Started",type=date,JSONPath=`.status.startedAt`,priority=1,description="Time since the saga started."
// +kubebuilder:printcolumn:name="Ended",type=date,JSONPath=`.status.endedAt`,priority=1,description="Time since the saga ended."
// +kubebuilder:printcolumn:name="Version",type=integer,JSONPath=`.status.recordedVersion`,priority=1,description="The number of recorded events that the status shows."
// +kubebuilder:selectablefield:JSONPath=`.status.phase`
type Saga struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object metadata. The name is the saga's name for
	// people; its uid is its identity: an object that is deleted and created
	// again under the same name is another saga.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says what the saga is to do. Only suspend, cancel and
	// ttlAfterFinished can be changed after creation. At most 256 KiB of JSON.
	// +required
	Spec SagaSpec `json:"spec,omitzero"`

	// status mirrors how far the saga has come. It is a summary; the whole
	// history is in the event store.
	// +optional
	Status SagaStatus `json:"status,omitzero"` //nolint:kubeapilinter // a value, as in every resource: an empty status is none
}

// SagaList is a list of sagas.
//
// +kubebuilder:object:root=true
type SagaList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard list metadata.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items are the sagas.
	Items []Saga `json:"items"`
}

// SagaSpec says what a saga is to do.
//
// Rules that compare with the old object stand here and not at the fields,
// because at an optional field they miss that it was added or removed. Lists
// with keys are equal in any order, and the order of steps matters: hence the
// names. What dependsOn names is looked up here only in sagas of up to 64
// steps: beyond, it would cost more than the API server allows, and is left to
// the operator.
//
// +kubebuilder:validation:XValidation:rule="self.steps.size() > 64 || [self.steps.map(step, step.name)].all(names, self.steps.all(step, !has(step.dependsOn) || step.dependsOn.all(name, name in names)))",message="a dependsOn names a step that does not exist",fieldPath=".steps"
// +kubebuilder:validation:XValidation:rule="self.steps == oldSelf.steps && self.steps.map(step, step.name) == oldSelf.steps.map(step, step.name)",message="steps cannot be changed after creation: a saga keeps the plan that it started with; create another one instead",fieldPath=".steps"
// +kubebuilder:validation:XValidation:rule="has(self.input) == has(oldSelf.input) && (!has(self.input) || self.input == oldSelf.input)",message="input cannot be changed after creation: create another saga instead",fieldPath=".input"
// +kubebuilder:validation:XValidation:rule="has(self.deadline) == has(oldSelf.deadline) && (!has(self.deadline) || self.deadline == oldSelf.deadline)",message="deadline cannot be changed after creation; to end the saga now, set cancel",fieldPath=".deadline"
// +kubebuilder:validation:XValidation:rule="!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)",message="cancel cannot be taken back: the rollback may have begun",fieldPath=".cancel"
type SagaSpec struct {
	// steps are the parts of the transaction, 1 to 200. Each has a name that no
	// other has. They run in the order in which they are written, unless
	// dependsOn says otherwise. Cannot be changed after creation.
	// +required
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=200
	Steps []Step `json:"steps,omitempty"`

	// input is any JSON object, at most 64 KiB and 256 fields. Expressions read
	// it as ${input.…}. It is recorded with the saga: it is no place for
	// secrets. Default: an empty object. Cannot be changed after creation.
	// +optional
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:MaxProperties=256
	Input *JSON `json:"input,omitempty"`

	// deadline bounds the way forward: the time from the start of the saga to
	// the end of its last action, for example 10m. When it passes, no further
	// action is sent and the saga is rolled back; the rollback itself is not
	// bound by it. More than 0s, at most 720h (30 days). Default: none, the saga
	// goes forward for as long as its retries allow. Cannot be changed after
	// creation.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self > duration('0s') && self <= duration('720h')",message="must be more than 0s and at most 720h"
	Deadline *metav1.Duration `json:"deadline,omitempty"`

	// suspend holds the saga when true: no attempt is started, neither of
	// actions nor of compensations; attempts under way end and are recorded. The
	// deadline runs on. Back to false, the saga goes on where it was. Default:
	// false.
	// +optional
	Suspend bool `json:"suspend,omitempty"` //nolint:kubeapilinter // the conventional name and type: Job and CronJob have the same field

	// cancel has the saga rolled back when true: no further action is sent,
	// and everything that may have been done is undone. It cannot be taken back,
	// and does nothing to a saga that has ended. Default: false.
	// +optional
	Cancel bool `json:"cancel,omitempty"` //nolint:kubeapilinter // a wish that is there or not: a third state has no meaning

	// ttlAfterFinished is how long the object is kept after the saga has ended
	// Completed or Compensated, for example 24h; then it is deleted. Its history
	// stays in the event store. A saga that is parked is never deleted by it. 0s
	// deletes at once; at most 8760h (365 days). Default: the object is kept
	// until somebody deletes it. Can be changed at any time.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self <= duration('8760h')",message="must be at most 8760h"
	TTLAfterFinished *metav1.Duration `json:"ttlAfterFinished,omitempty"`
}

// Step is one part of a saga: an action, and what undoes it. Exactly one
// kind of action is given.
//
// +kubebuilder:validation:XValidation:rule="!has(self.dependsOn) || self.dependsOn.all(name, name != self.name)",message="a step cannot depend on itself",fieldPath=".dependsOn"
type Step struct {
	// name names the step within its saga: lower-case letters, digits and,
	// inside, hyphens; at most 63 characters. It is part of the idempotency key
	// of everything the step does.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`
	Name string `json:"name,omitempty"`

	// dependsOn names the steps whose actions must have succeeded before this
	// one starts, at most 32. Without it the step follows the one that is
	// written before it. An empty list starts it at once, beside the others.
	// Steps that do not depend on each other run in parallel. A saga whose steps
	// depend on each other in a circle is not started, and says so in its
	// condition Stalled.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	DependsOn []string `json:"dependsOn,omitzero"` //nolint:kubeapilinter // an empty list means something else than none

	// The action of the step.
	Effect `json:",inline"`

	// output keeps values of the participant's answer for later steps, at most
	// 64. Each name maps to a template over response (status, headers, body),
	// input, saga and the steps that this one depends on, for example
	// reservation: ${response.body.id}, which later steps read as
	// ${steps["reserve-stock"].output.reservation}. Names consist of letters,
	// digits and underscores, do not begin with a digit, and have at most 63
	// characters; a template has at most 8192 characters.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]{0,62}$'))",message="the name of an output consists of letters, digits and underscores, does not begin with a digit, and has at most 63 characters"
	Output map[string]OutputTemplate `json:"output,omitzero"` //nolint:kubeapilinter // a typed client must write an empty map back, or it changes what is frozen

	// compensation undoes the action. It is carried out when the saga is rolled
	// back, if the action succeeded or may have happened, and never if it was
	// not sent or was definitely rejected. It has to succeed also when there is
	// nothing to undo, and should go by something that the saga chose, such as
	// ${input.orderId}: after an unknown outcome there is no output. Without it
	// there is nothing to undo.
	// +optional
	Compensation *Effect `json:"compensation,omitempty"`
}

// OutputTemplate is a text with ${…} expressions over an answer.
//
// +kubebuilder:validation:MaxLength=8192
type OutputTemplate string

// Effect is something that a participant is asked to do, and how
// persistently. Exactly one kind is given.
//
// +kubebuilder:validation:XValidation:rule="[has(self.http), has(self.message)].exists_one(given, given)",message="exactly one kind of action is needed: http or message",reason=FieldValueRequired
type Effect struct {
	// http calls an HTTP service.
	// +optional
	HTTP *HTTPRequest `json:"http,omitempty"` //nolint:kubeapilinter // one kind of several: whether it is given has to be seen

	// message publishes a message to a sink, and can wait for the answer to it.
	// +optional
	Message *MessageRequest `json:"message,omitempty"` //nolint:kubeapilinter // one kind of several: whether it is given has to be seen

	// retry says how often, and after which pauses, it is tried again when it
	// did not happen or may not have happened.
	// +optional
	Retry *Retry `json:"retry,omitempty"`

	// attemptTimeout bounds one attempt, for example 5s. An attempt that takes
	// longer is given up; as it may have happened, it is tried again with the
	// same idempotency key. 1ms to 1h; the operator may allow less, by default
	// 1m. Default: 30s.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self >= duration('1ms') && self <= duration('1h')",message="must be between 1ms and 1h"
	AttemptTimeout *metav1.Duration `json:"attemptTimeout,omitempty"`
}

// HTTPMethod is the method of an HTTP request.
//
// +kubebuilder:validation:Enum=GET;POST;PUT;PATCH;DELETE
type HTTPMethod string

// MessageRequest is a message to a sink: a CloudEvent whose id is the same for
// all attempts, so that a consumer knows it again.
type MessageRequest struct {
	// sink names a Sink in the namespace of the saga.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Sink string `json:"sink,omitempty"`

	// type is the type of the CloudEvent, for example
	// com.example.charge.requested. Those that begin with io.vextrus.saga. are the
	// operator's own.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('io.vextrus.saga.')",message="types that begin with io.vextrus.saga. are the operator's own"
	Type string `json:"type,omitempty"`

	// subject is what the message is about; the saga's name by default. It may
	// hold ${…} expressions.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Subject string `json:"subject,omitempty"`

	// key orders messages: those with one key arrive in the order in which they
	// were sent. The saga's uid by default. It may hold ${…} expressions.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Key string `json:"key,omitempty"`

	// data is what the message says: any JSON, whose strings may hold ${…}
	// expressions. At most 256 KiB when rendered.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	Data *JSON `json:"data,omitempty"`

	// reply has the step wait for an answer: a CloudEvent that comes to the
	// sink's reply address, with the correlationid of the message.
	// +optional
	Reply *MessageReply `json:"reply,omitempty"` //nolint:kubeapilinter // whether it is given has to be seen
}

// MessageReply is the answer that a step waits for.
type MessageReply struct {
	// timeout is how long it waits. Without an answer by then nobody knows
	// what became of the message: it is sent again, and compensated in the end.
	// 1s to 720h.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self >= duration('1s') && self <= duration('720h')",message="must be between 1s and 720h"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
}

// HTTPRequest is a call of an HTTP service. Every attempt carries the same
// body and the headers Idempotency-Key, Saga-Id, Saga-Step and traceparent.
// 2xx means that it happened; 429 and a connection that never came about mean
// that it did not, and it is retried; other 4xx and redirects, which are not
// followed, reject the action as long as nothing may have happened. The header
// Saga-Outcome: Rejected makes a 2xx or 4xx the participant's own word, which
// settles what earlier attempts left open; without it they stay unknown.
// Everything else may have happened and is retried under the same key.
//
// +kubebuilder:validation:XValidation:rule="has(self.callbackTimeout) == (has(self.completion) && self.completion == 'Callback')",message="callbackTimeout is needed with completion: Callback, and only with it"
type HTTPRequest struct {
	// method is the HTTP method: GET, POST, PUT, PATCH or DELETE.
	// +required
	Method HTTPMethod `json:"method,omitempty"`

	// url is where the request is sent: http:// or https://, host and path, at
	// most 2048 characters, without user or password. It may hold ${…}
	// expressions; their values are escaped for the place at which they stand.
	// No value chooses the host: in it a value is letters, digits and -, and an
	// expression at the beginning or in the port chooses between texts.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^(https?://|\$\{)`
	URL string `json:"url,omitempty"`

	// headers are sent beside the operator's own, at most 32, each value at most
	// 4096 characters. Values may hold ${…} expressions. They are recorded with
	// the saga: they are no place for secrets. Refused are those of the operator
	// and of the connection, and those by which gateways tell who the client is.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(name, name.matches('^[A-Za-z0-9!#$%&*+.^_|~-]{1,128}$'))",message="the name of a header consists of letters, digits and !#$%&*+-.^_|~, and has at most 128 characters"
	Headers map[string]HeaderTemplate `json:"headers,omitzero"` //nolint:kubeapilinter // a typed client must write an empty map back, or it changes what is frozen

	// body is any JSON value and is sent as JSON; not with GET. Strings in it
	// may hold ${…} expressions: one that is exactly ${…} becomes the value
	// itself, whatever its type. At most 1 MiB when rendered. Default: no body.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	Body *JSON `json:"body,omitempty"`

	// completion says when it has happened. Response: when the request has been
	// answered. Callback: the request has the header Saga-Callback, a URL; a
	// participant that answers 202 says there later, once, what became of it, and
	// any other answer counts at once. Default: Response.
	// +optional
	Completion Completion `json:"completion,omitempty"`

	// callbackTimeout is how long the answer may take that comes by callback.
	// Without one by then nobody knows what became of it: it is tried again, and
	// compensated in the end. 1s to 720h. Needed with completion: Callback.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self >= duration('1s') && self <= duration('720h')",message="must be between 1s and 720h"
	CallbackTimeout *metav1.Duration `json:"callbackTimeout,omitempty"`
}

// Completion says when an HTTP action has happened.
//
// +kubebuilder:validation:Enum=Response;Callback
type Completion string

// The completions.
const (
	CompletionResponse Completion = "Response"
	CompletionCallback Completion = "Callback"
)

// HeaderTemplate is the value of a header, a text that may hold ${…}
// expressions.
//
// +kubebuilder:validation:MaxLength=4096
type HeaderTemplate string

// Retry is exponential backoff with full jitter: the pause before the next
// attempt is drawn evenly between zero and a bound that begins at
// initialBackoff, doubles with each attempt, and stops growing at
// maxBackoff. A participant that asks for a longer pause (Retry-After) is
// given it, up to a limit.
//
// +kubebuilder:validation:XValidation:rule="!has(self.initialBackoff) || !has(self.maxBackoff) || self.initialBackoff <= self.maxBackoff",message="maxBackoff must not be shorter than initialBackoff",fieldPath=".maxBackoff"
type Retry struct {
	// maxAttempts is how often it is tried in all, 1 to 100. When an action's
	// last attempt fails, the saga is rolled back; when a compensation's last
	// attempt fails, the saga is parked for a person. Default: 5 for an action,
	// 20 for a compensation.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxAttempts int32 `json:"maxAttempts,omitempty"`

	// initialBackoff bounds the pause before the second attempt, for example
	// 200ms. 0s to 24h; 0s is taken as 100ms. Default: 1s, or maxBackoff if that
	// is shorter.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self <= duration('24h')",message="must be at most 24h"
	InitialBackoff *metav1.Duration `json:"initialBackoff,omitempty"`

	// maxBackoff bounds every pause, for example 30s. Not shorter than
	// initialBackoff, at most 24h. Default: 1m for an action, 5m for a
	// compensation, or initialBackoff if that is longer.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self <= duration('24h')",message="must be at most 24h"
	MaxBackoff *metav1.Duration `json:"maxBackoff,omitempty"`
}
