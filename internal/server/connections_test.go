package server

import (
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

func newLimiterFixture(t *testing.T, total, perAddress int) *limiterFixture {
	f := &limiterFixture{t: t, listener: &fakeListener{incoming: make(chan net.Conn, 1)}}
	f.connectionLimiter = limitConnections(f.listener, total, perAddress, func() { f.refused++ })
	return f
}

func (f *limiterFixture) connect(from string) *fakeConn {
	near, far := net.Pipe()
	f.t.Cleanup(func() { _ = far.Close() })
	return &fakeConn{Conn: near, from: from, closed: make(chan struct{})}
}

// mustAdmit opens a connection from an address and fails the test if it is not admitted.
func (f *limiterFixture) mustAdmit(from string) (net.Conn, *fakeConn) {
	f.t.Helper()
	c := f.connect(from)
	f.listener.incoming <- c
	admitted, err := f.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	return admitted, c
}

// mustRefuse opens a connection from an address and fails the test if it is not refused and closed.
func (f *limiterFixture) mustRefuse(from string) {
	f.t.Helper()
	before, c := f.refused, f.connect(from)
	f.listener.incoming <- c
	close(f.listener.incoming)
	if _, err := f.Accept(); err == nil || f.refused != before+1 {
		f.t.Errorf("the connection from %s was admitted", from)
	}
	select {
	case <-c.closed:
	default:
		f.t.Errorf("the connection from %s was not closed", from)
	}
	f.listener.incoming = make(chan net.Conn, 1)
}

func TestConnectionLimiterLimitsAddress(t *testing.T) {
	t.Parallel()
	f := newLimiterFixture(t, 4, 2)
	first, _ := f.mustAdmit("192.0.2.1:1")
	f.mustAdmit("192.0.2.1:2")
	f.mustRefuse("192.0.2.1:3")
	f.mustAdmit("192.0.2.2:1")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	f.mustAdmit("192.0.2.1:4") // the closed connection no longer counts
}

func TestConnectionLimiterEvictsLongestIdle(t *testing.T) {
	t.Parallel()
	f := newLimiterFixture(t, 3, 3)
	longest, evicted := f.mustAdmit("192.0.2.1:1")
	later, kept := f.mustAdmit("192.0.2.1:2")
	busy, _ := f.mustAdmit("192.0.2.1:3")
	f.mustRefuse("192.0.2.2:1") // all connections are in use
	for _, idle := range []net.Conn{longest, later, busy} {
		f.connState(idle, http.StateIdle)
	}
	f.connState(busy, http.StateActive)
	f.mustAdmit("192.0.2.2:2")
	<-evicted.closed
	select {
	case <-kept.closed:
		t.Error("a second connection was closed for one new connection")
	default:
	}
	if _ = longest.Close(); len(f.open) != 3 { // the server closes the evicted connection again
		t.Errorf("%d connections are open, want 3", len(f.open))
	}
}
