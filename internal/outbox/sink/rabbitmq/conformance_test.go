package rabbitmq_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/vextrus/saga-operator/internal/outbox"
	"github.com/vextrus/saga-operator/internal/outbox/sink/rabbitmq"
	"github.com/vextrus/saga-operator/internal/outbox/sink/rabbitmq/rabbittest"
	"github.com/vextrus/saga-operator/internal/outbox/sink/sinktest"
	"github.com/vextrus/saga-operator/internal/ports"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	sinktest.Run(t, func(t *testing.T) *sinktest.Harness {
		r := rig(t)
		// Others use the server at the same time, so what is stopped is the way to it. TestAfterARestartOfTheBrokerItGoesOn stops a server.
		f := &front{behind: r.server.Address()}
		f.start(t)
		r.config.URL = "amqp://" + f.address
		var all []sinktest.Got
		return &sinktest.Harness{
			New: func(t *testing.T, w sinktest.With) outbox.Publisher { return r.with(t, w) },
			Received: func(t *testing.T) []sinktest.Got {
				for {
					d, ok, err := r.channel.Get(r.name, true)
					if err != nil {
						t.Fatal(err)
					}
					if !ok {
						return all
					}
					all = append(all, got(&d))
				}
			},
			Stop: func(*testing.T) { f.stop() }, Start: f.start,
			TooLarge: rabbittest.MaxMessageBytes + 1, Unordered: true, Credentials: true, Missing: true,
		}
	})
}

func (r *testRig) with(t *testing.T, w sinktest.With) outbox.Publisher {
	t.Helper()
	c := r.config
	c.RoutingKey = "shop.{type}"
	if w.Mode != "" {
		c.Mode = w.Mode
	}
	if w.Dial != nil {
		c.Dial = w.Dial
	}
	if w.Address != "" {
		c.URL = "amqp://" + w.Address
	}
	if w.WrongCredentials {
		c.Credentials.Username = "nobody"
	}
	if w.Missing {
		c.Exchange += "-missing"
	}
	if w.Timeout > 0 {
		c.Timeout = w.Timeout
	}
	p, err := rabbitmq.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func got(d *amqp.Delivery) sinktest.Got {
	in := outbox.Incoming{Headers: map[string]string{"content-type": d.ContentType}, Body: d.Body}
	for name, value := range d.Headers {
		in.Headers[strings.ToLower(name)], _ = value.(string)
	}
	return sinktest.Got{ID: d.MessageId, Incoming: in}
}

// front is a way to a server that can be cut.
type front struct {
	behind, address string

	mu       sync.Mutex
	listener net.Listener // nil while the way is cut
	conns    []net.Conn
}

// start opens the way, always at the same address.
func (f *front) start(t *testing.T) {
	t.Helper()
	address := f.address
	if address == "" {
		address = ports.ForTest(t)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.listener, f.address = l, l.Addr().String()
	f.mu.Unlock()
	t.Cleanup(f.stop)
	go forward(l, f.behind, f.keep)
}

func (f *front) keep(conn net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listener == nil { // it was cut while the connection was being made
		conn.Close()
	}
	f.conns = append(f.conns, conn)
}

func (f *front) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listener != nil {
		f.listener.Close()
		f.listener = nil
	}
	for _, conn := range f.conns {
		conn.Close()
	}
	f.conns = nil
}

// forward brings what a listener accepts to an address. It tells keep of every connection.
func forward(l net.Listener, behind string, keep func(net.Conn)) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", behind)
		if err != nil {
			in.Close()
			continue
		}
		keep(in)
		keep(out)
		pipe := func(to, from net.Conn) {
			_, _ = io.Copy(to, from)
			to.Close()
			from.Close()
		}
		go pipe(in, out)
		go pipe(out, in)
	}
}
