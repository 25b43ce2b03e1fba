// Package eventstore keeps streams of events, and beside them, in the same transaction, the state row and the outbox messages
// that an append brings. Start reading at Store. The packages memory and postgres implement it and are held to one conformance suite,
// in storetest.
package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
)

// Limits of one append. An append beyond them fails with ErrInvalid and changes nothing.
const (
	MaxStreamIDBytes   = 255
	MaxEventBytes      = 2 << 20
	MaxEventsPerAppend = 1000
	// MaxMessagesPerAppend bounds the outbox messages.
	MaxMessagesPerAppend = 1000
	// MaxNameBytes bounds the type of an event, the type, key, destination, source, subject and namespace of a message, and the names in a state row.
	MaxNameBytes = 1 << 10
	// MaxMetadataBytes bounds the metadata of one event, and that of one message with its labels.
	MaxMetadataBytes = 64 << 10
	// MaxAppendBytes bounds everything in one append together, data, names and metadata: it travels, and is kept in memory on both sides, as one piece.
	MaxAppendBytes = 32 << 20
	// MaxStreamsPerAppend bounds the streams of one transaction.
	MaxStreamsPerAppend = 100
)

// Metadata is what is known about an event besides the fact itself.
type Metadata struct {
	// CorrelationID is shared by everything that one business transaction caused; CausationID is the event or command that caused this one.
	CorrelationID string `json:"correlationId,omitempty"`
	CausationID   string `json:"causationId,omitempty"`
	TraceParent   string `json:"traceparent,omitempty"`
	// Actor is who asked for it.
	Actor string `json:"actor,omitempty"`
}

// Event is a fact about to be appended.
type Event struct {
	// ID is a UUIDv7, made by whoever appends. It is unique over the whole store.
	ID   uuid.UUID
	Type string
	// SchemaVersion is that of Data's form, counted from 1.
	SchemaVersion int
	// Data is one JSON value in UTF-8, kept byte for byte.
	Data     json.RawMessage
	Metadata Metadata
}

// Recorded is an event as it stands in the store.
type Recorded struct {
	Event
	Stream string
	// Version is the place in the stream, counted from 1; Position a place in the order of all streams, with gaps.
	Version  int64
	Position int64
	// RecordedAt is the database's time of the append.
	RecordedAt time.Time
}

// SagaState is the row that an append puts in place of the saga's previous one. It is what recovery and queries read.
type SagaState struct {
	UID       uuid.UUID
	Namespace string
	Name      string
	Phase     string
	// Finished is true when the saga will never move again by itself or by a decision.
	Finished bool
	// Version is the version of the stream that the row is the fold of. Append sets it.
	Version int64
	// WakeAt is when the saga wants to be looked at again; zero for not before something happens.
	WakeAt time.Time
	// State is the folded state, a JSON object.
	State json.RawMessage
}

// Message waits in the outbox, committed with the change it reports.
type Message struct {
	// ID is a UUIDv7; the id of the event it reports where there is one.
	ID uuid.UUID
	// Type names what happened, for example io.vextrus.saga.Completed; Key orders messages: those with one key are published in order.
	Type string
	Key  string
	// Destination is the sink that alone is to have the message; empty for all that want it.
	Destination string
	// Source says in which context it happened, as a URI reference, for example the address of the service; Subject what it happened to.
	Source, Subject string
	// Namespace is whose message it is, and Labels what its owner has put on that: sinks select by them.
	Namespace string
	Labels    map[string]string
	// Sequence counts the messages of the key from 1, without gaps, so that whoever receives them can see that one is missing; 0 where nobody counts.
	Sequence int64
	Data     json.RawMessage
	Metadata Metadata
}

// RecordedMessage is a message as it stands in the outbox.
type RecordedMessage struct {
	Message
	// Position is a place in the outbox, with gaps.
	Position int64
	// RecordedAt is the database's time of the append.
	RecordedAt time.Time
}

// Expected versions that are not a version.
const (
	// NoStream expects a stream that does not exist yet.
	NoStream int64 = 0
	// AnyVersion expects nothing: the events go to the end of the stream, wherever that is.
	AnyVersion int64 = -1
)

// Append is events at the end of one stream and what goes with them.
type Append struct {
	// Stream names the stream. What stands before its first "-" is its category: "order" for "order-1042".
	Stream string
	// Encoded says that all data, and the state, were made by encoding/json in this process: that they are JSON is not checked again.
	Encoded bool
	// Expected is the version that the stream must have, or NoStream, or AnyVersion.
	Expected int64
	// Events are appended in order; at least one.
	Events   []Event
	State    *SagaState
	Messages []Message
}

// Appended is what a committed append came to.
type Appended struct {
	// Version is that of the last event appended.
	Version int64
	// Token is what a reader waits for to see this append.
	Token Token
	// Repeated says that the store had these very events in this stream already. Nothing was changed; Token is that of the repetition, and a reader that has
	// come to it has seen the events.
	Repeated bool
}

// Answer is what a participant says, later, of an attempt that it had accepted: it happened, or it was rejected.
type Answer struct {
	UID uuid.UUID
	// Step and Direction name the effect. An answer is to the effect, whichever of its attempts led to it.
	Step, Direction string
	// Round is how many attempts of the effect had been made when a person last had it tried again, and 0 before: that asks anew, and what was answered before does not count.
	Round int
	// Rejected is a definite no, with a Reason (one word for programs) and a Message (for people).
	Rejected        bool
	Reason, Message string
	// Response is what output expressions see as response: a JSON object.
	Response json.RawMessage
}

// Limits of an answer.
const (
	MaxAnswerBytes     = 1 << 20
	MaxAnswerTextBytes = 1 << 10
)

// Callback is an address at which the participant of an attempt answers later. Its token is known to the participant alone: the store has the token's hash.
type Callback struct {
	// TokenHash is the SHA-256 of the token.
	TokenHash [32]byte
	// UID, Step, Direction and Attempt name the attempt.
	UID             uuid.UUID
	Step, Direction string
	Attempt         int
	// Namespace is the namespace of the saga; empty if the saga has no state row. PutCallback ignores
	// it.
	Namespace string
	// ExpiresAt is when the token is of no use any more, to the microsecond.
	ExpiresAt time.Time
}

// Snapshot is the stored fold of a stream up to a version. It only saves time: without it the stream is folded from its first event.
type Snapshot struct {
	Stream string
	// Version is that of the last event folded.
	Version int64
	// SchemaVersion is that of the code that folded and of the form of Data. Code with another one does not use the snapshot.
	SchemaVersion int
	// Data is one JSON value in UTF-8.
	Data json.RawMessage
}

// Store keeps streams. All methods are safe for concurrent use.
type Store interface {
	// Append commits all of a or nothing. Appending events that the stream has already, in the same order, is a success that changes nothing: who does not
	// know what became of an append may send it again. It fails with a *WrongVersionError when the stream is not at a.Expected, with ErrArchived when it takes
	// no more events, with ErrInvalid when a breaks a limit or brings an event id that the store has elsewhere, and with ErrUnavailable when the store
	// cannot be reached. After any other error, that of a context that ends in the middle included, and after ErrUnavailable, the caller does not know
	// whether the append was committed.
	Append(ctx context.Context, a Append) (Appended, error)
	// AppendAll commits appends to several streams, each named once, in one transaction: all of them or, when one fails as in Append, none. The events
	// get their positions in the order given.
	AppendAll(ctx context.Context, all []Append) ([]Appended, error)
	// Load returns up to limit events of a stream from version from (1 is the first) on, oldest first. A stream that does not exist has no events.
	// Here and below, a limit below 1 asks for nothing and gets nothing.
	Load(ctx context.Context, stream string, from int64, limit int) ([]Recorded, error)
	// LoadBackwards returns up to limit events of a stream from version from down, newest first. LastVersion begins at the end.
	LoadBackwards(ctx context.Context, stream string, from int64, limit int) ([]Recorded, error)
	// ReadAll returns the next page of the order of all events that a reader with checkpoint from has not had yet, up to limit of those that the filter
	// lets through. Every event is in exactly one of the pages that follow from one another, and the events of a stream come in their order. There is
	// no order between streams but this: an event that was appended after another had been read comes after it.
	ReadAll(ctx context.Context, from Checkpoint, filter Filter, limit int) (Page, error)
	// Version returns the version of a stream; 0 when it does not exist.
	Version(ctx context.Context, stream string) (int64, error)
	// Archive ends a stream that is at the expected version: it takes no more events, and stays readable. Archiving it again is a success.
	Archive(ctx context.Context, stream string, expected int64) error
	// RemoveFinished removes up to limit sagas that finished before a time, with their events, snapshots and state rows, and returns how many. Their streams stay
	// archived, so that no saga begins a second time under an old uid. A saga with an event that some projection has not read yet stays. Nothing else removes events.
	RemoveFinished(ctx context.Context, before time.Time, limit int) (int, error)
	// SaveSnapshot puts a snapshot in place of the stream's previous one, unless that has a later schema version, or the same and a later version. What is later
	// than the stream itself counts as nothing.
	SaveSnapshot(ctx context.Context, s Snapshot) error
	// LoadSnapshot returns the snapshot of a stream; ErrNotFound when there is none, or when what is stored is damaged.
	LoadSnapshot(ctx context.Context, stream string) (Snapshot, error)
	// UnfinishedSagas returns up to limit states that are not finished, in the order of their uid, those after the given uid only.
	UnfinishedSagas(ctx context.Context, after uuid.UUID, limit int) ([]SagaState, error)
	// SagaState returns the state row of one saga; ErrNotFound when there is none.
	SagaState(ctx context.Context, uid uuid.UUID) (SagaState, error)
	// PutAnswer keeps the answer to an effect of a saga that has not finished. It reports false where that has an answer in this round already, has finished, or is not known: nothing is
	// changed then.
	PutAnswer(ctx context.Context, a Answer) (bool, error)
	// Answers returns the answers, of all rounds, to the effects of some steps of a saga, in no order. A Response of more than maxResponse bytes is left out; at most
	// it has MaxAnswerBytes.
	Answers(ctx context.Context, uid uuid.UUID, maxResponse int, steps ...string) ([]Answer, error)
	// Nudge has TakeAnswered return a saga, once, although it has no new answer: something else was appended to its stream. A saga that is not known is ignored.
	Nudge(ctx context.Context, uid uuid.UUID) error
	// TakeAnswered returns up to limit states of sagas that have an answer which no call has returned before, or a nudge.
	TakeAnswered(ctx context.Context, limit int) ([]SagaState, error)
	// PutCallback keeps a callback, for as long as the saga's state row at most. Keeping it again is a success.
	PutCallback(ctx context.Context, c Callback) error
	// Callback returns the callback of a token's hash; ErrNotFound when there is none.
	Callback(ctx context.Context, tokenHash [32]byte) (Callback, error)
	// RemoveCallbacks removes up to limit callbacks that expired before a time, and returns how many.
	RemoveCallbacks(ctx context.Context, expiredBefore time.Time, limit int) (int, error)
	// Messages returns up to limit messages of the outbox whose position is greater than after, in the order of their positions. It is for people and tests: a
	// position is drawn before its transaction commits, so a reader that follows positions alone can pass over a message that commits late.
	Messages(ctx context.Context, after int64, limit int) ([]RecordedMessage, error)
	// Ping reports whether the store can be reached and written to right now.
	Ping(ctx context.Context) error
}

// LastVersion is where LoadBackwards begins at the end of a stream.
const LastVersion int64 = math.MaxInt64

// Errors that every implementation returns; test with errors.Is.
var (
	ErrWrongVersion = errors.New("the stream is at another version")
	ErrArchived     = errors.New("the stream is archived and takes no more events")
	ErrInvalid      = errors.New("the append is not valid")
	ErrUnavailable  = errors.New("the event store is not available")
	ErrNotFound     = errors.New("not found")
)

// WrongVersionError is the loss of the compare-and-set. It is an ErrWrongVersion.
type WrongVersionError struct {
	Stream           string
	Expected, Actual int64
}

func (e *WrongVersionError) Error() string {
	return fmt.Sprintf("appending to stream %s: expected version %d, but it is at %d", e.Stream, e.Expected, e.Actual)
}

// Is makes errors.Is(err, ErrWrongVersion) true.
func (e *WrongVersionError) Is(target error) bool { return target == ErrWrongVersion }
