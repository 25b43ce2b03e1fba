// Package ports draws TCP ports of the loopback address for servers that have
// to be told theirs before they start, and that come back to it after a
// restart: for tests, benchmarks and the demo.
//
// A port that the kernel has picked and that is closed again may be anybody's a
// moment later, also of an outgoing connection. So these ports are taken from
// outside the range in which the kernel picks, and each is held from when it is
// drawn until it is released: the UDP port of the same number is bound
// meanwhile. That is a lock that needs no file, that all users of the machine
// share, and that ends with its process.
package ports

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

const (
	loopback = "127.0.0.1"
	// first keeps clear of ports that well-known services have.
	first = 10_000
	last  = 65_535
	// ephemeral begins the range in which kernels pick where they do not say.
	ephemeral = 32_768
)

// Port is a port that nobody else draws until it is released.
type Port struct {
	Number int
	held   net.PacketConn
}

// Draw draws a free port. The caller must Release it.
func Draw(ctx context.Context) (*Port, error) {
	from, to := outside(os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"))
	return draw(ctx, from, to)
}

// draw draws one of the ports from and to, and between.
func draw(ctx context.Context, from, to int) (*Port, error) {
	// Chance keeps processes that start together from trying the same ones in turn.
	n := to - from + 1
	start := rand.IntN(n)
	for i := range n {
		p, err := Take(ctx, from+(start+i)%n)
		if err == nil || ctx.Err() != nil {
			return p, err
		}
	}
	return nil, fmt.Errorf("drawing a port: every port from %d to %d is taken", from, to)
}

// Take takes a port of which the number is given, and fails when somebody else
// has it or listens at it. The caller must Release it.
func Take(ctx context.Context, number int) (*Port, error) {
	var listen net.ListenConfig
	address := net.JoinHostPort(loopback, strconv.Itoa(number))
	held, err := listen.ListenPacket(ctx, "udp4", address)
	if err != nil {
		return nil, fmt.Errorf("taking port %d: %w", number, err)
	}
	l, err := listen.Listen(ctx, "tcp4", address)
	if err == nil {
		err = l.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("taking port %d: %w", number, err), held.Close())
	}
	return &Port{Number: number, held: held}, nil
}

// Address is the port with its host, as in 127.0.0.1:12345.
func (p *Port) Address() string { return net.JoinHostPort(loopback, strconv.Itoa(p.Number)) }

// Release lets others draw the port. It may be called again, and of a port that
// was never drawn.
func (p *Port) Release() {
	if p != nil {
		_ = p.held.Close() // nothing was sent
	}
}

// ForTest draws a port for a server of a test that is stopped and comes back, and returns its address. It is released when the test ends.
func ForTest(t interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Fatal(...any)
}) string {
	t.Helper()
	p, err := Draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Release)
	return p.Address()
}

// outside returns the larger part of the ports that the kernel does not pick
// from, given how it says which those are.
func outside(text []byte, err error) (from, to int) {
	low, high := ephemeral, last
	if err == nil {
		if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
			low, high = ephemeral, last
		}
	}
	switch below, above := low-first, last-high; {
	case below <= 0 && above <= 0: // the kernel picks from all: there is nothing better
		return first, last
	case below >= above:
		return first, low - 1
	default:
		return max(high+1, first), last
	}
}
