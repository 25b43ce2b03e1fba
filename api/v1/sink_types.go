package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Sink is a destination for the messages of its namespace's sagas: an HTTP
// service, or a broker. Each message is a CloudEvent and is published at
// least once, those of one saga in their order. A sink gets what happens from
// its creation on; what it does not take waits for it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=sinks,singular=sink,shortName=sk,categories=vextrus,scope=Namespaced
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`,description="Whether the destination takes messages."
// +kubebuilder:printcolumn:name="Kind",type=string,JSONPath=`.status.kind`,description="The kind of destination."
// +kubebuilder:printcolumn:name="Backlog",type=integer,JSONPath=`.status.backlog`,description="How many messages wait, at most."
// +kubebuilder:printcolumn:name="Oldest",type=string,JSONPath=`.status.oldestAge`,description="The age of the oldest message that waits."
// +kubebuilder:printcolumn:name="Published",type=integer,JSONPath=`.status.published`,description="How many messages were published."
// +kubebuilder:printcolumn:name="Dead",type=integer,JSONPath=`.status.deadLetters`,description="How many messages wait for a person."
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,description="Time since the sink was created."
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1,description="Why the sink is ready or not."
type Sink struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object metadata. The uid is the sink's identity:
	// one that is deleted and created again begins anew.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says which messages go where. All of it can be changed at any time.
	// +required
	Spec SinkSpec `json:"spec,omitzero"` //nolint:kubeapilinter // it is required: the rule that one kind of destination is given stands in it

	// status says how the sink is.
	// +optional
	Status SinkStatus `json:"status,omitzero"` //nolint:kubeapilinter // a value, as in every resource: an empty status is none
}

// SinkList is a list of sinks.
//
// +kubebuilder:object:root=true
type SinkList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard list metadata.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items are the sinks.
	Items []Sink `json:"items"`
}

// ClusterSink is a destination for the messages of sagas in all namespaces,
// or in those that its namespaceSelector matches. It is for administrators:
// it reads across namespaces. Its Secrets are those of the namespace that the
// operator runs in.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=clustersinks,singular=clustersink,shortName=csk,categories=vextrus,scope=Cluster
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`,description="Whether the destination takes messages."
// +kubebuilder:printcolumn:name="Kind",type=string,JSONPath=`.status.kind`,description="The kind of destination."
// +kubebuilder:printcolumn:name="Backlog",type=integer,JSONPath=`.status.backlog`,description="How many messages wait, at most."
// +kubebuilder:printcolumn:name="Oldest",type=string,JSONPath=`.status.oldestAge`,description="The age of the oldest message that waits."
// +kubebuilder:printcolumn:name="Published",type=integer,JSONPath=`.status.published`,description="How many messages were published."
// +kubebuilder:printcolumn:name="Dead",type=integer,JSONPath=`.status.deadLetters`,description="How many messages wait for a person."
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`,description="Time since the sink was created."
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,priority=1,description="Why the sink is ready or not."
type ClusterSink struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object metadata. The uid is the sink's identity:
	// one that is deleted and created again begins anew.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says which messages go where. All of it can be changed at any time.
	// +required
	Spec ClusterSinkSpec `json:"spec,omitzero"` //nolint:kubeapilinter // it is required: the rule that one kind of destination is given stands in it

	// status says how the sink is.
	// +optional
	Status SinkStatus `json:"status,omitzero"` //nolint:kubeapilinter // a value, as in every resource: an empty status is none
}

// ClusterSinkList is a list of cluster sinks.
//
// +kubebuilder:object:root=true
type ClusterSinkList struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard list metadata.
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	// items are the cluster sinks.
	Items []ClusterSink `json:"items"`
}

// ClusterSinkSpec says which messages of which namespaces go where.
//
// +kubebuilder:validation:XValidation:rule="!has(self.replies)",message="a ClusterSink takes no answers: an answer is for the sagas of one namespace",fieldPath=".replies"
type ClusterSinkSpec struct {
	SinkSpec `json:",inline"`

	// namespaceSelector selects the namespaces whose messages are taken, by
	// their labels at the time when a message is read, or the last ones of a
	// namespace that is gone by then; where those are not known its messages are
	// taken. At most 32 labels and 32 expressions. Default: all namespaces.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchLabels) || self.matchLabels.size() <= 32",message="must have at most 32 labels",fieldPath=".matchLabels"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.size() <= 32",message="must have at most 32 expressions",fieldPath=".matchExpressions"
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
}

// SinkSpec says which messages go where. Exactly one kind of destination is
// given.
//
// +kubebuilder:validation:XValidation:rule="[has(self.http), has(self.nats), has(self.kafka), has(self.rabbitmq)].exists_one(given, given)",message="exactly one kind of destination is needed: http, nats, kafka or rabbitmq",reason=FieldValueRequired
// +kubebuilder:validation:XValidation:rule="!has(self.kafka) || has(self.credentials) == has(self.kafka.mechanism)",message="credentials and kafka.mechanism are needed together: the mechanism says how the brokers are shown the credentials"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || !has(self.http) || self.http.url.startsWith('https:')",message="tls needs a url that begins with https://",fieldPath=".tls"
// +kubebuilder:validation:XValidation:rule="!has(self.tls) || !has(self.rabbitmq) || self.rabbitmq.url.startsWith('amqps:')",message="tls needs a url that begins with amqps://",fieldPath=".tls"
// +kubebuilder:validation:XValidation:rule="!has(self.credentials) || has(self.tls) || has(self.allowPlaintextCredentials) && self.allowPlaintextCredentials || has(self.http) && self.http.url.startsWith('https:') || has(self.rabbitmq) && self.rabbitmq.url.startsWith('amqps:') || has(self.nats) && self.nats.servers.exists(s, s.startsWith('tls:'))",message="credentials need an encrypted connection: https://, amqps:// or tls; set allowPlaintextCredentials to true if others on the network may read them",fieldPath=".credentials"
// +kubebuilder:validation:XValidation:rule="!has(self.replies) || !has(self.http)",message="replies needs a broker: nats, kafka or rabbitmq",fieldPath=".replies"
type SinkSpec struct {
	// types are the types of the CloudEvents that are taken, at most 64; * stands
	// for any text, anywhere in a type, for example
	// io.vextrus.saga.*. Default: all types.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9*._:/+~-]+$`
	Types []string `json:"types,omitempty"`

	// sagaSelector selects the sagas whose messages are taken, by the labels
	// that they had when the message was committed. At most 32 labels and 32
	// expressions. Default: all sagas.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.matchLabels) || self.matchLabels.size() <= 32",message="must have at most 32 labels",fieldPath=".matchLabels"
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.size() <= 32",message="must have at most 32 expressions",fieldPath=".matchExpressions"
	SagaSelector *metav1.LabelSelector `json:"sagaSelector,omitempty"`

	// mode is how a CloudEvent stands in a message of the destination's
	// protocol: Binary has its attributes in headers and its data in the body,
	// Structured has everything in the body, as JSON. Default: Binary.
	// +optional
	Mode SinkMode `json:"mode,omitempty"`

	// suspend stops publishing when true. What would have been published waits,
	// for as long as the database has room. Default: false.
	// +optional
	Suspend bool `json:"suspend,omitempty"` //nolint:kubeapilinter // the conventional name and type: Job and CronJob have the same field

	// timeout bounds connecting and the wait for an acknowledgement, for
	// example 5s. 1s to 5m. Default: 10s.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self >= duration('1s') && self <= duration('5m')",message="must be between 1s and 5m"
	Timeout *metav1.Duration `json:"timeout,omitempty"`

	// retry says how often, and after which pauses, a message is tried again
	// that the destination failed to take. A destination that takes nothing at
	// all costs no attempts: the sink waits for it.
	// +optional
	Retry *SinkRetry `json:"retry,omitempty"`

	// http posts each message to an HTTP service.
	// +optional
	HTTP *HTTPSink `json:"http,omitempty"` //nolint:kubeapilinter // one kind of several: whether it is given has to be seen

	// nats publishes to a stream of NATS JetStream.
	// +optional
	NATS *NATSSink `json:"nats,omitempty"` //nolint:kubeapilinter // one kind of several: whether it is given has to be seen

	// kafka publishes to a topic of Apache Kafka.
	// +optional
	Kafka *KafkaSink `json:"kafka,omitempty"` //nolint:kubeapilinter // one kind of several: whether it is given has to be seen

	// rabbitmq publishes to an exchange of RabbitMQ.
	// +optional
	RabbitMQ *RabbitMQSink `json:"rabbitmq,omitempty"` //nolint:kubeapilinter // one kind of several: whether it is given has to be seen

	// replies is where the answers to messages of sagas arrive, at the same
	// broker: a subject of a NATS stream, a Kafka topic or a RabbitMQ queue. It
	// has to exist. Whoever can write there can answer the sagas of the namespace.
	// Sinks may share a subject or a topic. A queue gives each message to one
	// listener only: sinks of different namespaces, and different operators, need
	// one each. At most 255 characters. Not with http. Default: nobody listens.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[^\s*>]+$`
	Replies string `json:"replies,omitempty"`

	// credentials are what the destination knows the operator by. Default: none
	// are shown.
	// +optional
	Credentials *SinkCredentials `json:"credentials,omitempty"` //nolint:kubeapilinter // whether it is given has to be seen

	// allowPlaintextCredentials lets the operator show the credentials on a
	// connection that is not encrypted. Others on the network can read them there.
	// Default: false, which refuses credentials on such a connection.
	// +optional
	AllowPlaintextCredentials bool `json:"allowPlaintextCredentials,omitempty"` //nolint:kubeapilinter // a consent, of which there is no third kind

	// tls encrypts the connection, an empty object with what the system trusts.
	// A scheme that says so (https, amqps, tls) encrypts it also without. TLS 1.2
	// at least. Default: what the scheme says; unencrypted where it says nothing.
	// +optional
	TLS *SinkTLS `json:"tls,omitempty"`
}

// SinkMode is how a CloudEvent stands in a message of the destination's
// protocol.
//
// +kubebuilder:validation:Enum=Binary;Structured
type SinkMode string

// The modes.
const (
	// SinkBinary has the attributes in headers and the data in the body.
	SinkBinary SinkMode = "Binary"
	// SinkStructured has everything in the body, as JSON.
	SinkStructured SinkMode = "Structured"
)

// SinkRetry is exponential backoff with full jitter: the pause before the next
// attempt is drawn evenly between zero and a bound that begins at
// initialBackoff, doubles with each attempt, and stops growing at maxBackoff.
//
// +kubebuilder:validation:XValidation:rule="!has(self.initialBackoff) || !has(self.maxBackoff) || self.initialBackoff <= self.maxBackoff",message="maxBackoff must not be shorter than initialBackoff",fieldPath=".maxBackoff"
type SinkRetry struct {
	// maxAttempts is how often a message is tried in all, 1 to 100. After that it
	// is a dead letter, which waits for a person, and the later messages of the
	// same saga with it. Default: 20.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MaxAttempts int32 `json:"maxAttempts,omitempty"`

	// initialBackoff bounds the pause before the second attempt, for example
	// 200ms. At most 24h. Default: 1s, or maxBackoff if that is shorter.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self <= duration('24h')",message="must be at most 24h"
	InitialBackoff *metav1.Duration `json:"initialBackoff,omitempty"`

	// maxBackoff bounds every pause, for example 1m. Not shorter than
	// initialBackoff, at most 24h. Default: 5m, or initialBackoff if that is
	// longer.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=duration
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(\.[0-9]{1,9})?h)?([0-9]{1,7}(\.[0-9]{1,9})?m)?([0-9]{1,9}(\.[0-9]{1,9})?s)?([0-9]{1,9}(\.[0-9]{1,9})?ms)?$`
	// +kubebuilder:validation:XValidation:rule="self <= duration('24h')",message="must be at most 24h"
	MaxBackoff *metav1.Duration `json:"maxBackoff,omitempty"`
}

// HTTPSink is an HTTP service that takes messages: one request each, by POST.
// 2xx means that the message was taken. Redirects are not followed.
type HTTPSink struct {
	// url is where messages are posted: http:// or https://, host and path, at
	// most 2048 characters, without user or password.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^https?://[^/?#@\\\s]+([/?][^#\\\s]*)?$')`,message="must be http:// or https:// with a host, without user or password (they come from a Secret) and without a fragment"
	URL string `json:"url,omitempty"`

	// headers are sent with every message, at most 32, each value at most 4096
	// characters. They are no place for secrets: those come from credentials.
	// Headers that the operator sets itself (Idempotency-Key and User-Agent among
	// them), those of credentials, those that begin with ce- and those by which
	// gateways tell who the client is cannot be given.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(name, name.matches('^[A-Za-z0-9!#$%&*+.^_|~-]{1,128}$'))",message="the name of a header consists of letters, digits and !#$%&*+-.^_|~, and has at most 128 characters"
	// +kubebuilder:validation:XValidation:rule="self.all(name, !name.matches('(?i)^(ce-.*|host|content-.*|transfer-encoding|connection|authorization|proxy-.*|cookie|idempotency-key|user-agent)$'))",message="these headers cannot be given: ce-*, Host, Content-*, Transfer-Encoding, Connection, Authorization, Proxy-*, Cookie, Idempotency-Key and User-Agent; credentials come from a Secret"
	Headers map[string]HeaderValue `json:"headers,omitempty"`
}

// HeaderValue is the value of a header.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=4096
// +kubebuilder:validation:Pattern=`^[\t\x20-\x7e]*$`
type HeaderValue string

// NATSSink is a subject of NATS that a stream of JetStream listens to.
type NATSSink struct {
	// servers are some of the servers, 1 to 16: nats://host:port, tls://host:port
	// or host:port, each at most 255 characters, without user or password. The
	// port is 4222 where none is given.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:items:Pattern=`^((nats|tls)://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`
	Servers []string `json:"servers,omitempty"`

	// subject is where messages are published, at most 255 characters. {type},
	// {namespace} and {subject} in it stand for the type of the message, the
	// namespace of the saga, and what the message is about, for example
	// sagas.{namespace}.{type}.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[^\s*>]+$`
	Subject string `json:"subject,omitempty"`
}

// KafkaSink is a topic of Apache Kafka. Messages of one saga go to one
// partition.
type KafkaSink struct {
	// brokers are some of the brokers, 1 to 16: host:port, each at most 255
	// characters. The others are learnt from them. The port is 9092 where none is
	// given.
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:items:Pattern=`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`
	Brokers []string `json:"brokers,omitempty"`

	// topic is the name of the topic, at most 249 characters. It has to exist.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=249
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9._-]+$`
	Topic string `json:"topic,omitempty"`

	// mechanism is how the brokers are shown the credentials: PLAIN,
	// SCRAM-SHA-256 or SCRAM-SHA-512. Needed with credentials, and only then.
	// +optional
	Mechanism KafkaMechanism `json:"mechanism,omitempty"`
}

// KafkaMechanism is how a Kafka broker is shown credentials.
//
// +kubebuilder:validation:Enum=PLAIN;SCRAM-SHA-256;SCRAM-SHA-512
type KafkaMechanism string

// RabbitMQSink is an exchange of RabbitMQ. A message that no queue takes is
// not published.
type RabbitMQSink struct {
	// url is the broker: amqp:// or amqps://, host, port and virtual host, for
	// example amqps://rabbitmq:5671/shop, at most 2048 characters, without user
	// or password.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^amqps?://[^/?#@\\\s]+(/[^/?#\\\s]*)?$')`,message="must be amqp:// or amqps:// with a host and at most a virtual host, without user or password (they come from a Secret)"
	URL string `json:"url,omitempty"`

	// exchange is what messages are published to, at most 255 characters. It has
	// to exist. Default: the default exchange, for which the routing key names a
	// queue.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	Exchange string `json:"exchange,omitempty"`

	// routingKey is the routing key of messages, at most 255 characters. {type},
	// {namespace} and {subject} in it stand for the type of the message, the
	// namespace of the saga, and what the message is about.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	RoutingKey string `json:"routingKey,omitempty"`
}

// SinkCredentials are what a destination knows the operator by.
type SinkCredentials struct {
	// secretRef names the Secret with the keys username, password and token, at
	// least one of them.
	// +required
	SecretRef SinkSecretReference `json:"secretRef,omitzero"`
}

// SinkTLS is how a connection is encrypted.
type SinkTLS struct {
	// secretRef names a Secret with ca.crt (whom to trust), or tls.crt and
	// tls.key (who the operator is), or all three. Default: what the system
	// trusts, and no certificate of the operator's own.
	// +optional
	SecretRef *SinkSecretReference `json:"secretRef,omitempty"` //nolint:kubeapilinter // whether it is given has to be seen

	// serverName is the name that the destination's certificate has to have, at
	// most 253 characters. Default: the host that is connected to.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9._:-]+$`
	ServerName string `json:"serverName,omitempty"`
}

// SinkSecretReference names a Secret of the sink's own namespace, or, for a
// ClusterSink, of the operator's. The Secret has to say where it may be sent
// to: its annotation saga.vextrus.io/hosts lists the names of the hosts,
// separated by commas; *.example.com stands for all names below example.com.
type SinkSecretReference struct {
	// name is the name of the Secret, at most 253 characters.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`
}
