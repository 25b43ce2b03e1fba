package server

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// connections is a listener that bounds how many connections there are, in all and of each address. Where there are as many as there may
// be, the one that has been idle for longest makes room for a new one; where all are in use, the new one is closed at once.
type connections struct {
	net.Listener
	total, each int
	refused     func()

	mu   sync.Mutex
	by   map[string]int
	all  map[net.Conn]*connection
	idle list.List // of *connection, the longest idle first
}

func limitConnections(l net.Listener, total, each int, refused func()) *connections {
	return &connections{Listener: l, total: total, each: each, refused: refused, by: map[string]int{}, all: map[net.Conn]*connection{}}
}

// connection is one that counts until it is closed.
type connection struct {
	net.Conn
	of      *connections
	address string
	idle    *list.Element // guarded by of.mu; nil while it is in use
}

// Accept implements net.Listener.
func (c *connections) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		admitted, evicted := c.admit(conn)
		if evicted != nil {
			_ = evicted.Close()
		}
		if admitted != nil {
			return admitted, nil
		}
		c.refused()
		_ = conn.Close()
	}
}

// admit counts a connection, and says which has to go for it. It returns none where there is no room.
func (c *connections) admit(conn net.Conn) (admitted, evicted net.Conn) {
	address := network(conn.RemoteAddr().String())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by[address] >= c.each {
		return nil, nil
	}
	if len(c.all) >= c.total {
		longest := c.idle.Front()
		if longest == nil {
			return nil, nil
		}
		old := longest.Value.(*connection)
		c.forget(old)
		evicted = old.Conn
	}
	one := &connection{Conn: conn, of: c, address: address}
	c.all[one] = one
	c.by[address]++
	return one, evicted
}

// forget is called with the lock held.
func (c *connections) forget(one *connection) {
	if c.all[one] == nil {
		return
	}
	delete(c.all, one)
	if c.by[one.address]--; c.by[one.address] == 0 {
		delete(c.by, one.address)
	}
	one.use()
}

// use takes it from the idle ones; the lock is held.
func (one *connection) use() {
	if one.idle != nil {
		one.of.idle.Remove(one.idle)
		one.idle = nil
	}
}

// Close implements net.Conn.
func (one *connection) Close() error {
	one.of.mu.Lock()
	one.of.forget(one)
	one.of.mu.Unlock()
	return one.Conn.Close()
}

// changed notes what a connection does; it is the ConnState of the server.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.all[conn]
	switch {
	case one == nil:
	case state == http.StateIdle && one.idle == nil:
		one.idle = c.idle.PushBack(one)
	case state == http.StateActive:
		one.use()
	}
}
