// Package sinktest is the conformance suite of publishers: what the one of every kind of sink must do, one named behaviour each. The test of a kind calls Run.
//
// What a destination cannot do is left out of its Harness, and the behaviours that need it are skipped, each with a line that says what was missing.
package sinktest

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/vextrus/saga-operator/internal/outbox"
)

// Secret is the password or token with which a destination that asks for one is set up. It must not be in any error.
const Secret = "canary-in-the-mine-7f3a"

// Harness is a destination with nothing in it, and what a test can do with it.
type Harness struct {
	// New makes a publisher to the destination. The suite closes it.
	New func(t *testing.T, w With) outbox.Publisher
	// Received returns all that the destination has, in order; what has several queues or partitions keeps the order within each.
	Received func(t *testing.T) []Got
	// Stop ends the server and its connections, and returns when nobody listens any more; Start has it back at the same address. Nil where that cannot be done.
	Stop, Start func(t *testing.T)

	// Local is whether there is no connection that could fail.
	Local bool
	// Unordered is whether the protocol has no key of its own, by which it would keep messages in order. Received then need not know it.
	Unordered bool
	// Credentials is whether the destination asks for Secret, and takes nothing else.
	Credentials bool
	// Missing is whether there is something that can be missing: a topic, a stream, an exchange or a path.
	Missing bool
	// Deduplicates is whether the destination leaves out what it already has.
	Deduplicates bool
	// TooLarge is a size in bytes of a body that the destination does not take; 0 where it takes all.
	TooLarge int
}

// With says how a publisher is to be made. What is zero is as the destination needs it.
type With struct {
	Mode outbox.Mode
	// Dial makes connections; Timeout is the connection's.
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	Timeout time.Duration
	// Address is a host and port in place of the destination's own.
	Address string
	// WrongCredentials asks for others than the right ones, and Missing for a topic, stream, exchange or path that does not exist.
	WrongCredentials, Missing bool
}

// Got is a message as the destination has it: attributes in its headers as they were before they were escaped, and the content type as "content-type", also where the
// protocol has it elsewhere.
type Got struct {
	// Key is the protocol's; empty where it has none.
	Key string
	// ID is what the consumer, or the destination, knows a repetition by.
	ID string
	outbox.Incoming
}

// behaviour is one thing that every publisher must do.
type behaviour struct {
	name  string
	check func(*fixture)
}

// Run checks every behaviour, each against a destination of its own: open is called for each and makes one with nothing in it, which is gone when its test ends.
func Run(t *testing.T, open func(t *testing.T) *Harness) {
	t.Helper()
	for _, group := range [][]behaviour{delivery, faults, endings} {
		for _, b := range group {
			t.Run(b.name, func(t *testing.T) {
				t.Parallel()
				b.check(&fixture{T: t, h: open(t)})
			})
		}
	}
}
