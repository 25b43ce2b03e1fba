package server

import (
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
)

// fakeListener accepts the connections that a test sends.
type fakeListener struct {
	net.Listener
	incoming chan net.Conn
}

func (l *fakeListener) Accept() (net.Conn, error) {
	conn, ok := <-l.incoming
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// fakeConn is a connection from a given address. It records whether it was closed.
type fakeConn struct {
	net.Conn
	from   string
	closed chan struct{}
	once   sync.Once
}

func (c *fakeConn) RemoteAddr() net.Addr { return address(c.from) }

func (c *fakeConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// limiterFixture is a connectionLimiter on a fakeListener. It counts the refused connections.
type limiterFixture struct {
	*connectionLimiter
	t        *testing.T
	listener *fakeListener
	refused  int
}

func newLimiterFixture(t *testing.T, total int) *limiterFixture {
	f := &limiterFixture{t: t, listener: &fakeListener{}}
	f.connectionLimiter = limitConnections(f.listener, total, func() { f.refused++ })
	return f
}

func (f *limiterFixture) connect(from string) *fakeConn {
	near, far := net.Pipe()
	f.t.Cleanup(func() { _ = far.Close() })
	return &fakeConn{Conn: near, from: from, closed: make(chan struct{})}
}

// accept opens a connection from an address. admitted is nil if the limiter refuses it.
func (f *limiterFixture) accept(from string) (admitted net.Conn, c *fakeConn) {
	c = f.connect(from)
	f.listener.incoming = make(chan net.Conn, 1)
	f.listener.incoming <- c
	close(f.listener.incoming)
	admitted, _ = f.Accept()
	return admitted, c
}

// mustAdmit opens a connection from an address and fails the test if it is not admitted.
func (f *limiterFixture) mustAdmit(from string) (net.Conn, *fakeConn) {
	f.t.Helper()
	admitted, c := f.accept(from)
	if admitted == nil {
		f.t.Fatalf("the connection from %s was refused", from)
	}
	return admitted, c
}

// mustRefuse opens a connection from an address and fails the test if it is not refused and closed.
func (f *limiterFixture) mustRefuse(from string) {
	f.t.Helper()
	before := f.refused
	admitted, c := f.accept(from)
	if admitted != nil || f.refused != before+1 {
		f.t.Errorf("the connection from %s was admitted", from)
	}
	f.checkClosed(1, c)
}

// mustAdmitActive opens a connection that has sent the complete header of a request.
func (f *limiterFixture) mustAdmitActive(from string) (net.Conn, *fakeConn) {
	f.t.Helper()
	admitted, c := f.mustAdmit(from)
	f.connState(admitted, http.StateNew)
	f.connState(admitted, http.StateActive)
	return admitted, c
}

// checkClosed fails the test unless exactly the first n connections were closed.
func (f *limiterFixture) checkClosed(n int, all ...*fakeConn) {
	f.t.Helper()
	for i, c := range all {
		closed := false
		select {
		case <-c.closed:
			closed = true
		default:
		}
		if closed != (i < n) {
			f.t.Errorf("connection %d (%s): closed = %v, want %v", i, c.from, closed, i < n)
		}
	}
}

func TestConnectionLimiterLimitsAddress(t *testing.T) {
	t.Parallel()
	f := newLimiterFixture(t, 4)
	first, _ := f.mustAdmitActive("192.0.2.1:1")
	f.mustAdmitActive("192.0.2.1:2")
	f.mustRefuse("192.0.2.1:3")
	f.mustAdmitActive("192.0.2.2:1")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	f.mustRefuse("192.0.2.1:4") // half of the three that are left is one
	f.mustAdmitActive("192.0.2.3:1")
}

func TestConnectionLimiterEvictsLongestIdle(t *testing.T) {
	t.Parallel()
	f := newLimiterFixture(t, 6)
	longest, first := f.mustAdmitActive("192.0.2.1:1")
	later, second := f.mustAdmitActive("192.0.2.1:2")
	busy, third := f.mustAdmitActive("192.0.2.1:3")
	f.mustRefuse("192.0.2.1:4") // all connections are in use
	for _, idle := range []net.Conn{longest, later, busy} {
		f.connState(idle, http.StateIdle)
	}
	f.connState(busy, http.StateActive)
	f.mustAdmitActive("192.0.2.1:5")
	f.checkClosed(1, first, second, third)
	if _ = longest.Close(); len(f.open) != 3 { // the server closes the evicted connection again
		t.Errorf("%d connections are open, want 3", len(f.open))
	}
}

func TestConnectionLimiterEvictsSilentConnection(t *testing.T) {
	t.Parallel()
	f := newLimiterFixture(t, 4)
	_, active := f.mustAdmitActive("192.0.2.1:1")
	_, silent := f.mustAdmit("192.0.2.1:2")
	_, later := f.mustAdmit("192.0.2.1:3")
	f.checkClosed(1, silent, active, later)
	if f.mustAdmit("192.0.2.1:4"); len(f.open) != 2 {
		t.Errorf("%d connections are open, want 2", len(f.open))
	}
	f.checkClosed(2, silent, later, active)
}

// TestConnectionLimiterAdmitsNewAddress has two addresses take all that they can get. Their
// connections cannot be evicted.
func TestConnectionLimiterAdmitsNewAddress(t *testing.T) {
	t.Parallel()
	f := newLimiterFixture(t, 16)
	for i := range 2 {
		for range 8 >> i {
			f.mustAdmitActive(fmt.Sprintf("192.0.2.%d:1", i))
		}
		f.mustRefuse(fmt.Sprintf("192.0.2.%d:1", i))
	}
	for i := range 3 {
		f.mustAdmitActive(fmt.Sprintf("198.51.100.%d:1", i))
	}
}

// TestConnectionLimiterEvictsFromLargestAddress fills all places with silent connections. An
// address then takes places of addresses that have more than it, and not of a smaller one.
func TestConnectionLimiterEvictsFromLargestAddress(t *testing.T) {
	t.Parallel()
	f := newLimiterFixture(t, 8)
	_, small := f.mustAdmit("192.0.2.3:1") // has waited longest
	var large []*fakeConn
	for range 3 {
		_, c := f.mustAdmit("192.0.2.1:1")
		large = append(large, c)
	}
	for range 2 {
		f.mustAdmitActive("192.0.2.2:1")
	}
	f.mustAdmitActive("192.0.2.2:1") // the third
	f.checkClosed(1, append(large, small)...)
	f.mustRefuse("192.0.2.2:1") // no address has more than three
	f.mustAdmit("192.0.2.4:1")
	f.mustAdmit("192.0.2.5:1")
	f.mustAdmit("192.0.2.6:1")
	f.checkClosed(2, append(large, small)...)
}
