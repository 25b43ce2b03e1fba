// Package eventstore keeps streams of events, and beside them, in the same transaction, the state row and the outbox messages
// that an append brings. Start reading at Store. The packages memory and postgres implement it and are held to one conformance suite,
// in storetest.
package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	// MaxAppendBytes bounds the data of everything in one append together: it travels, and is kept in memory on both sides, as one piece.
	MaxAppendBytes = 32 << 20
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
	// Type names what happened, for example saga.vextrus.io/v1.SagaCompleted; Key orders messages: those with one key are published in order.
	Type string
	Key  string
	// Destination is where the message is to go; empty for whoever wants its type.
	Destination string
	Data        json.RawMessage
	Metadata    Metadata
}

// RecordedMessage is a message as it stands in the outbox.
type RecordedMessage struct {
	Message
	// Position is a place in the outbox, with gaps.
	Position int64
}

// Append is one transaction: events at the end of one stream and what goes with them.
type Append struct {
	Stream string
	// Expected is the version that the stream must have; 0 for a stream that does not exist yet.
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
}

// Store keeps streams. All methods are safe for concurrent use.
type Store interface {
	// Append commits all of a or nothing. It fails with a *WrongVersionError when the stream is not at a.Expected, with ErrInvalid when a
	// breaks a limit or brings an event id that the store has already, and with ErrUnavailable when the store cannot be reached. After any error but
	// the first two, that of a context that ends in the middle included, the caller does not know whether the append was committed and has to load
	// the stream to see.
	Append(ctx context.Context, a Append) (Appended, error)
	// Load returns up to limit events of a stream from version from (1 is the first) on, oldest first. A stream that does not exist has no events.
	// Here and below, a limit below 1 asks for nothing and gets nothing.
	Load(ctx context.Context, stream string, from int64, limit int) ([]Recorded, error)
	// Version returns the version of a stream; 0 when it does not exist.
	Version(ctx context.Context, stream string) (int64, error)
	// UnfinishedSagas returns up to limit states that are not finished, in the order of their uid, those after the given uid only.
	UnfinishedSagas(ctx context.Context, after uuid.UUID, limit int) ([]SagaState, error)
	// SagaState returns the state row of one saga; ErrNotFound when there is none.
	SagaState(ctx context.Context, uid uuid.UUID) (SagaState, error)
	// Messages returns up to limit messages of the outbox whose position is greater than after, in the order of their positions. It is for people and tests: a
	// position is drawn before its transaction commits, so a reader that follows positions alone can pass over a message that commits late.
	Messages(ctx context.Context, after int64, limit int) ([]RecordedMessage, error)
	// Ping reports whether the store can be reached and written to right now.
	Ping(ctx context.Context) error
}

// Errors that every implementation returns; test with errors.Is.
var (
	ErrWrongVersion = errors.New("the stream is at another version")
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
