package server

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// connectionLimiter is a listener that limits the number of open connections, in total and for each
// address. If the total is reached, a new connection replaces the one that has been idle longest.
// If no connection is idle, or the address has reached its limit, the new connection is closed.
type connectionLimiter struct {
	net.Listener
	total, perAddress int
	refused           func() // called for each connection that is not admitted

	mu        sync.Mutex
	byAddress map[string]int
	open      map[net.Conn]*connection
	idle      list.List // of *connection; the one that has been idle longest is at the front
}

func limitConnections(l net.Listener, total, perAddress int, refused func()) *connectionLimiter {
	return &connectionLimiter{
		Listener: l, total: total, perAddress: perAddress, refused: refused, byAddress: map[string]int{}, open: map[net.Conn]*connection{},
	}
}

// connection is an open connection. It counts until it is closed.
type connection struct {
	net.Conn
	limiter *connectionLimiter
	address string
	idle    *list.Element // guarded by limiter.mu; nil while the connection is in use
}

// Accept implements net.Listener.
func (l *connectionLimiter) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		admitted, evicted := l.admit(conn)
		if evicted != nil {
			_ = evicted.Close()
		}
		if admitted != nil {
			return admitted, nil
		}
		l.refused()
		_ = conn.Close()
	}
}

// admit counts a new connection. It returns the connection to serve, which is nil if a limit is
// reached, and the idle connection to close for it, if any.
func (l *connectionLimiter) admit(conn net.Conn) (admitted, evicted net.Conn) {
	address := network(conn.RemoteAddr().String())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byAddress[address] >= l.perAddress {
		return nil, nil
	}
	if len(l.open) >= l.total {
		longest := l.idle.Front()
		if longest == nil {
			return nil, nil
		}
		old := longest.Value.(*connection)
		l.remove(old)
		evicted = old.Conn
	}
	c := &connection{Conn: conn, limiter: l, address: address}
	l.open[c] = c
	l.byAddress[address]++
	return c, evicted
}

// remove stops counting a connection. l.mu is held.
func (l *connectionLimiter) remove(c *connection) {
	if l.open[c] == nil {
		return
	}
	delete(l.open, c)
	if l.byAddress[c.address]--; l.byAddress[c.address] == 0 {
		delete(l.byAddress, c.address)
	}
	c.markActive()
}

// markActive removes the connection from the idle ones. limiter.mu is held.
func (c *connection) markActive() {
	if c.idle != nil {
		c.limiter.idle.Remove(c.idle)
		c.idle = nil
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.limiter.mu.Lock()
	c.limiter.remove(c)
	c.limiter.mu.Unlock()
	return c.Conn.Close()
}

// connState records whether a connection is idle. It is the ConnState hook of the server.
func (l *connectionLimiter) connState(conn net.Conn, state http.ConnState) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.open[conn]
	switch {
	case c == nil:
	case state == http.StateIdle && c.idle == nil:
		c.idle = l.idle.PushBack(c)
	case state == http.StateActive:
		c.markActive()
	}
}
