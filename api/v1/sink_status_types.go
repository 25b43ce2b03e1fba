package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SinkStatus says how a sink is.
type SinkStatus struct {
	// conditions follow the conventions of kstatus. Ready is True while the
	// destination takes messages, and else says in its message what to do.
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

	// kind is the kind of destination: HTTP, NATS, Kafka or RabbitMQ.
	// +optional
	// +kubebuilder:validation:Enum=HTTP;NATS;Kafka;RabbitMQ
	Kind SinkKind `json:"kind,omitempty"`

	// backlog is how many messages wait, at most: some of them may turn out to be
	// for others.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Backlog *int64 `json:"backlog,omitempty"`

	// oldestAge is the age of the oldest message that waits; absent while none
	// does.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	OldestAge *metav1.Duration `json:"oldestAge,omitempty"`

	// published is how many messages were published.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Published *int64 `json:"published,omitempty"`

	// deadLetters is how many messages wait for a person, with all their attempts
	// used up, or refused for good.
	// +optional
	// +kubebuilder:validation:Minimum=0
	DeadLetters *int64 `json:"deadLetters,omitempty"`

	// lastError is why the destination last took nothing. It stays when that is
	// over.
	// +optional
	LastError *SinkError `json:"lastError,omitempty"`
}

// SinkKind is a kind of destination.
type SinkKind string

// The kinds of destination.
const (
	// SinkHTTP is an HTTP service.
	SinkHTTP SinkKind = "HTTP"
	// SinkNATS is NATS JetStream.
	SinkNATS SinkKind = "NATS"
	// SinkKafka is Apache Kafka.
	SinkKafka SinkKind = "Kafka"
	// SinkRabbitMQ is RabbitMQ.
	SinkRabbitMQ SinkKind = "RabbitMQ"
)

// SinkError is why a destination took nothing.
type SinkError struct {
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

	// time is when it was last found so for the first time.
	// +optional
	Time *metav1.Time `json:"time,omitempty"`
}

// SecretHostsAnnotation is the annotation by which a Secret lists the hosts that it may be sent to, separated by commas.
const SecretHostsAnnotation = "saga.vextrus.io/hosts" //nolint:gosec // a name, and no secret

// The reasons of a sink's condition Ready that have to do with the sink itself. Those that have to do with its destination are the outbox's: ConnectionFailed, Unauthorized
// and so on.
const (
	// SinkReasonReady: the destination takes messages.
	SinkReasonReady = "Ready"
	// SinkReasonSuspended: spec.suspend is true.
	SinkReasonSuspended = "Suspended"
	// SinkReasonInvalid: the spec says what cannot be.
	SinkReasonInvalid = "InvalidSpec"
	// SinkReasonQuotaExceeded: the namespace has as many older Sinks as it may have.
	SinkReasonQuotaExceeded = "QuotaExceeded"
	// SinkReasonNotEncrypted: the credentials would be readable on the network.
	SinkReasonNotEncrypted = "NotEncrypted"
	// SinkReasonSecretNotFound: a Secret does not exist.
	SinkReasonSecretNotFound = "SecretNotFound"
	// SinkReasonSecretInvalid: a Secret has not the keys that it should have, or what is in them cannot be used.
	SinkReasonSecretInvalid = "SecretInvalid"
	// SinkReasonSecretNotForHost: a Secret does not list the host of the destination.
	SinkReasonSecretNotForHost = "SecretNotForHost"
	// SinkReasonSecretForbidden: the operator may not read a Secret.
	SinkReasonSecretForbidden = "SecretForbidden"
	// SinkReasonOutboxUnavailable: the operator's database does not answer.
	SinkReasonOutboxUnavailable = "OutboxUnavailable"
)
