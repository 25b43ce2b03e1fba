package server

import (
	"net"
	"net/http"
	"sync"
	"testing"
)

// crowd is a listener whose connections come from where a test says.
type crowd struct {
	net.Listener
	come chan net.Conn
}

func (c *crowd) Accept() (net.Conn, error) {
	conn, ok := <-c.come
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// visitor is a connection from an address, and says whether it was closed.
type visitor struct {
	net.Conn
	from   string
	closed chan struct{}
	once   sync.Once
}

func (v *visitor) RemoteAddr() net.Addr { return address(v.from) }

func (v *visitor) Close() error {
	v.once.Do(func() { close(v.closed) })
	return v.Conn.Close()
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// room is a limited listener, and what came of those who knocked.
type room struct {
	*connections
	t       *testing.T
	crowd   *crowd
	refused int
}

func newRoom(t *testing.T, total, each int) *room {
	r := &room{t: t, crowd: &crowd{come: make(chan net.Conn, 1)}}
	r.connections = limitConnections(r.crowd, total, each, func() { r.refused++ })
	return r
}

// enters has somebody come from an address who is let in.
func (r *room) enters(from string) (net.Conn, *visitor) {
	r.t.Helper()
	v := r.visitor(from)
	r.crowd.come <- v
	in, err := r.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	return in, v
}

func (r *room) visitor(from string) *visitor {
	near, far := net.Pipe()
	r.t.Cleanup(func() { _ = far.Close() })
	return &visitor{Conn: near, from: from, closed: make(chan struct{})}
}

// turnsAway has somebody come who is not let in.
func (r *room) turnsAway(from string) {
	r.t.Helper()
	before, v := r.refused, r.visitor(from)
	r.crowd.come <- v
	close(r.crowd.come)
	if _, err := r.Accept(); err == nil || r.refused != before+1 {
		r.t.Errorf("somebody from %s was let in", from)
	}
	select {
	case <-v.closed:
	default:
		r.t.Errorf("who came from %s was left standing", from)
	}
	r.crowd.come = make(chan net.Conn, 1)
}

func TestAnAddressHasItsShareOfConnections(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 4, 2)
	first, _ := r.enters("192.0.2.1:1")
	r.enters("192.0.2.1:2")
	r.turnsAway("192.0.2.1:3")
	r.enters("192.0.2.2:1")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	r.enters("192.0.2.1:4") // there is room again
}

func TestAFullListenerLetsTheConnectionGoThatIsIdleForLongest(t *testing.T) {
	t.Parallel()
	r := newRoom(t, 3, 3)
	longest, gone := r.enters("192.0.2.1:1")
	later, stays := r.enters("192.0.2.1:2")
	busy, _ := r.enters("192.0.2.1:3")
	r.turnsAway("192.0.2.2:1") // all are in use
	for _, idle := range []net.Conn{longest, later, busy} {
		r.changed(idle, http.StateIdle)
	}
	r.changed(busy, http.StateActive)
	r.enters("192.0.2.2:2")
	<-gone.closed
	select {
	case <-stays.closed:
		t.Error("two had to go for one")
	default:
	}
	if _ = longest.Close(); len(r.all) != 3 { // its server closes it, too
		t.Errorf("there are %d connections, want 3", len(r.all))
	}
}
