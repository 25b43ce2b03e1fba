package server

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// connectionLimiter is a listener that limits the number of open connections. An address has at
// most half of the connections that the other addresses leave. A new address therefore gets one,
// unless many addresses have taken their share.
//
// A connection is waiting until it has sent the complete header of a request, and again after each
// response. An address that has its share gets a new connection by closing a waiting one: its own,
// or one of an address that has more. It never gets more than half of the total.
type connectionLimiter struct {
	net.Listener
	total   int
	refused func() // called for each connection that is not admitted

	mu        sync.Mutex
	sequence  uint64 // counts how often a connection began to wait
	byAddress map[string]*peer
	open      map[net.Conn]*connection
}

func limitConnections(l net.Listener, total int, refused func()) *connectionLimiter {
	return &connectionLimiter{
		Listener: l, total: total, refused: refused, byAddress: map[string]*peer{}, open: map[net.Conn]*connection{},
	}
}

// peer is the connections of one address. It is guarded by connectionLimiter.mu.
type peer struct {
	open    int
	waiting list.List // of *connection; the one that has waited longest is at the front
}

// oldest returns the connection that has waited longest; at least one must be waiting.
func (p *peer) oldest() *connection { return p.waiting.Front().Value.(*connection) }

// connection is an open connection. It counts until it is closed.
type connection struct {
	net.Conn
	limiter *connectionLimiter
	address string
	// The fields below are guarded by limiter.mu.
	waiting *list.Element // nil while a request is served
	since   uint64        // limiter.sequence when it began to wait
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
// reached, and the waiting connection to close for it, if any.
func (l *connectionLimiter) admit(conn net.Conn) (admitted, evicted net.Conn) {
	address := network(conn.RemoteAddr().String())
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.byAddress[address]
	if own == nil {
		own = &peer{}
	}
	if left := l.total - (len(l.open) - own.open); own.open+1 > half(left) || left == 0 {
		old := l.victim(own)
		if old == nil {
			return nil, nil
		}
		l.remove(old)
		evicted = old.Conn
	}
	c := &connection{Conn: conn, limiter: l, address: address}
	l.open[c] = c
	l.byAddress[address] = own // remove may have deleted it
	own.open++
	l.markWaiting(c)
	return c, evicted
}

// victim returns the connection that is closed for a new one of an address that has its share, or
// nil: the oldest waiting connection of the address that has most of them. A slow client thus
// outlasts an attacker who holds many connections. No address exceeds half of the total by it, because
// the other address has more and has at most that. l.mu is held, as in all methods below.
func (l *connectionLimiter) victim(own *peer) *connection {
	var most *peer
	for _, p := range l.byAddress {
		if p != own && p.open <= own.open || p.waiting.Len() == 0 {
			continue
		}
		if most == nil || p.waiting.Len() > most.waiting.Len() ||
			p.waiting.Len() == most.waiting.Len() && p.oldest().since < most.oldest().since {
			most = p
		}
	}
	if most == nil {
		return nil
	}
	return most.oldest()
}

// remove stops counting a connection.
func (l *connectionLimiter) remove(c *connection) {
	if l.open[c] == nil {
		return
	}
	delete(l.open, c)
	l.markActive(c)
	p := l.byAddress[c.address]
	if p.open--; p.open == 0 {
		delete(l.byAddress, c.address)
	}
}

// markWaiting makes a connection the newest of the waiting ones of its address.
func (l *connectionLimiter) markWaiting(c *connection) {
	if c.waiting == nil {
		l.sequence++
		c.since, c.waiting = l.sequence, l.byAddress[c.address].waiting.PushBack(c)
	}
}

// markActive removes a connection from the waiting ones.
func (l *connectionLimiter) markActive(c *connection) {
	if c.waiting != nil {
		l.byAddress[c.address].waiting.Remove(c.waiting)
		c.waiting = nil
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.limiter.mu.Lock()
	c.limiter.remove(c)
	c.limiter.mu.Unlock()
	return c.Conn.Close()
}

// connState records whether a connection is waiting. It is the ConnState hook of the server, which
// reports StateActive when the header of a request is complete.
func (l *connectionLimiter) connState(conn net.Conn, state http.ConnState) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.open[conn]
	switch {
	case c == nil:
	case state == http.StateIdle:
		l.markWaiting(c)
	case state == http.StateActive:
		l.markActive(c)
	}
}
