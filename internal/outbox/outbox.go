// Package outbox publishes what was committed to the outbox: every message at least once, those of one key in their order, to each sink that wants them.
// Start reading at Relay. A Sink is a destination; what carries messages to one is its Publisher, of which each kind of broker has a package below sink.
//
// The outbox is a table to which appends add rows in their own transaction, and that nobody updates. Each sink reads it by a checkpoint of its own, in shards
// by key. What a sink does not take is parked beside the table, with every later message of the same key, until it goes through or a person decides.
package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// Message is a message of the outbox on its way to a sink.
type Message struct {
	eventstore.RecordedMessage
	// Attempt is the number of the attempt of a step that publishes the message; zero if no step does. It travels as the extension
	// sagaattempt, and a reply that repeats it is known to be to this attempt.
	Attempt int
}

// Publisher carries messages to one destination. It is safe for concurrent use, and connects when it is first needed.
type Publisher interface {
	// Publish sends messages, no two of which have the same key, and returns as many errors. One is nil when the destination has taken its message for good; else
	// it is an *Error that says whose fault it is. It returns when all are settled or ctx is done; what is not settled then has Failed.
	Publish(ctx context.Context, all []Message) []error
	// Check connects and looks whether the destination would take a message, without sending one. Its error is an *Error of kind Unavailable.
	Check(ctx context.Context) error
	// Limits says how messages are best handed over.
	Limits() Limits
	// Close ends the connection. What is being published fails.
	Close() error
}

// Limits is how many messages are handed to a publisher.
type Limits struct {
	// Batch is the messages in one call, at most; Parallel the calls at once.
	Batch, Parallel int
}

// Incoming is a message that came back from a broker.
type Incoming struct {
	// Headers have lower-case names.
	Headers map[string]string
	Body    []byte
}

// Listener is a publisher whose broker can also be listened to.
type Listener interface {
	// Listen hands over what arrives at an address (a subject, topic or queue), for all listeners of one group together once, until ctx is done or the connection fails. A
	// message is acknowledged once handle has returned nil; otherwise it comes again.
	Listen(ctx context.Context, address, group string, handle func(context.Context, Incoming) error) error
}

// Kind says whose fault it is that a message was not taken.
type Kind int

// The kinds of failure.
const (
	// Failed: the destination may not have taken this message, and may take it later. The attempt counts.
	Failed Kind = iota
	// Rejected: a definite no to this message; trying again would not help.
	Rejected
	// Unavailable: the destination takes nothing at the moment, whatever the message: it cannot be reached, or refuses who we are. No attempt counts; the sink waits.
	Unavailable
)

// Reasons for which a sink is not ready, for programs; shown in its condition.
const (
	ReasonConnectionFailed = "ConnectionFailed" // no connection: an unknown host, a port where nobody listens
	ReasonEgressDenied     = "EgressDenied"     // the egress policy forbids the address
	ReasonTLSFailed        = "TLSFailed"        // the certificate does not verify, or ours is refused
	ReasonUnauthorized     = "Unauthorized"     // the credentials are wrong, or allow too little
	ReasonNotFound         = "NotFound"         // the topic, stream, exchange or path does not exist
	ReasonTimeout          = "Timeout"          // no answer in time
	ReasonBusy             = "Busy"             // it asked to be left alone for a while
	ReasonRefused          = "Refused"          // it said no to a message
	ReasonTooLarge         = "TooLarge"         // the message is larger than it takes
	ReasonInternal         = "InternalError"    // the operator's own code panicked
	ReasonUndecided        = "Undecided"        // it cannot be said at the moment which messages are wanted
)

// Error says why a message was not taken, or why a sink is not ready.
type Error struct {
	Kind Kind
	// Reason is one of the reasons above.
	Reason string
	// RetryAfter is the pause that the destination asked for; zero when it asked for none.
	RetryAfter time.Duration
	// Open says of an error that is Unavailable that the message may have been taken all the same: somebody before the destination answered for it.
	Open bool
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an error of a kind.
func Errorf(kind Kind, reason, format string, args ...any) *Error {
	return &Error{Kind: kind, Reason: reason, Err: fmt.Errorf(format, args...)}
}

// Retry is how often and when a message is tried again.
type Retry struct {
	// MaxAttempts is after how many the message is a dead letter; at least 1.
	MaxAttempts int
	// InitialBackoff is the longest pause after the first attempt. It doubles with each, up to MaxBackoff. Each pause is drawn between zero and the longest (full jitter).
	InitialBackoff, MaxBackoff time.Duration
}

// Sink is a destination.
type Sink struct {
	// ID identifies the sink for good: what was read and parked for it is kept under it. Name is for people, logs and metrics.
	ID, Name string
	// Wants says whether the sink takes a message that names no destination. All where nil. A message may be asked about again, after a crash or by another relay, so the answer
	// should come from the message alone; where it needs more, Prepare gets that first.
	Wants func(*Message) bool
	// Prepare, where given, learns what Wants has to know of some messages. An error says that this cannot be had at the moment: the messages wait, and nothing is passed over.
	Prepare   func(ctx context.Context, all []Message) error
	Publisher Publisher
	Retry     Retry
	// Timeout bounds one call of the publisher; 10 s by default.
	Timeout time.Duration
	// Replies is the address (a subject, topic or queue) at which answers to messages arrive; empty where there are none. The publisher has to be a Listener then.
	Replies string
}
