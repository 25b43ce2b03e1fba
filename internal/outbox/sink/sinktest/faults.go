package sinktest

import (
	"context"
	"errors"
	"net"
	"strings"

	"github.com/vextrus/saga-operator/internal/egress"
	"github.com/vextrus/saga-operator/internal/outbox"
)

var faults = []behaviour{
	{"an unknown host is a connection that failed", (*fixture).unknownHost},
	{"a port where nobody listens is a connection that failed", (*fixture).nobodyListens},
	{"an address that the egress policy forbids is not connected to", (*fixture).egressDenied},
	{"every connection is made by the dialer that was given", (*fixture).dialer},
	{"wrong credentials are unauthorized", (*fixture).unauthorized},
	{"a topic, stream or path that does not exist is not found", (*fixture).missing},
	{"a server that never answers holds nobody up for longer than the timeout", (*fixture).silent},
	{"a server that goes away makes the sink wait, and the same publisher goes on when it is back", (*fixture).goesAway},
	{"a connection that broke is made anew", (*fixture).broken},
	{"an error says where it was to go", (*fixture).says},
}

// connected skips a behaviour that needs a connection.
func (f *fixture) connected() {
	f.Helper()
	f.need(!f.h.Local, "connection that could fail")
}

// refused checks that a publisher is not connected for a reason, by both of its ways, and knows it without waiting for its timeout.
func (f *fixture) refused(p outbox.Publisher, reason string) {
	f.Helper()
	f.wantError("Check", f.check(f.Context(), p), outbox.Unavailable, reason)
	for _, err := range f.publish(f.Context(), p, message("order-1", "1"), message("order-2", "2")) {
		f.wantError("Publish", err, outbox.Unavailable, reason)
	}
}

func (f *fixture) unknownHost() {
	f.connected()
	const host = "nobody.invalid"
	// What a resolver says that knows all names. The real one would have to be asked, and could be out of reach.
	f.refused(f.publisher(With{Address: host + ":4567", Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
	}}), outbox.ReasonConnectionFailed)
}

func (f *fixture) nobodyListens() {
	f.connected()
	f.refused(f.publisher(With{Address: nobody}), outbox.ReasonConnectionFailed)
}

func (f *fixture) listen() net.Listener {
	f.Helper()
	l, err := (&net.ListenConfig{}).Listen(f.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	return l
}

func (f *fixture) egressDenied() {
	f.connected()
	policy := &egress.Policy{} // denies the loopback, on which the destination is
	f.refused(f.publisher(With{Dial: policy.Dialer(never).DialContext}), outbox.ReasonEgressDenied)
	m := message("order-1", "1")
	f.mustPublish(f.publisher(With{}), m)
	f.each([]outbox.Message{m}) // and none of those before
}

func (f *fixture) dialer() {
	f.connected()
	p := f.publisher(With{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("there is no way out")
	}})
	f.refused(p, outbox.ReasonConnectionFailed)
	if f.dials.Load() == 0 {
		f.Error("the dialer was not asked")
	}
}

func (f *fixture) unauthorized() {
	f.need(f.h.Credentials, "credentials")
	f.refused(f.publisher(With{WrongCredentials: true}), outbox.ReasonUnauthorized)
	// Wrong ones of one publisher are not held against another.
	f.mustPublish(f.publisher(With{}), message("order-1", "1"))
	f.received(1)
}

func (f *fixture) missing() {
	f.need(f.h.Missing, "topic, stream or path that could be missing")
	f.refused(f.publisher(With{Missing: true}), outbox.ReasonNotFound)
}

// silent: a listener whose backlog takes connections that nobody ever reads from.
func (f *fixture) silent() {
	f.connected()
	l := f.listen()
	f.Cleanup(func() { _ = l.Close() })
	p := f.publisher(With{Address: l.Addr().String(), Timeout: timeout})
	f.unavailable("Check", f.check(f.Context(), p))
	for _, err := range f.publish(f.Context(), p, message("order-1", "1")) {
		f.mayRepeat(err)
	}
}

// mayRepeat checks that a message that was not settled is not given up.
func (f *fixture) mayRepeat(err error) {
	f.Helper()
	var e *outbox.Error
	if !errors.As(err, &e) || e.Kind == outbox.Rejected {
		f.Errorf("a message that could still be published gave %v", err)
	}
}

func (f *fixture) unavailable(what string, err error) {
	f.Helper()
	if !isUnavailable(err) {
		f.Errorf("%s gave %v, not an error of kind Unavailable", what, err)
	}
}

func isUnavailable(err error) bool {
	var e *outbox.Error
	return errors.As(err, &e) && e.Kind == outbox.Unavailable
}

func (f *fixture) goesAway() {
	f.need(f.h.Stop != nil && f.h.Start != nil, "server that can be stopped and started")
	p := f.publisher(With{})
	before := message("order-1", "1")
	f.mustPublish(p, before)
	f.h.Stop(f.T)
	lost := message("order-1", "2")
	within := first
	f.await("publishing to a server that is gone has not given Unavailable", func() bool {
		ctx, cancel := context.WithTimeout(f.Context(), within)
		defer cancel()
		within *= 2
		err := f.publish(ctx, p, lost)[0]
		if err == nil {
			f.Fatal("a message was published to a server that is gone")
		}
		f.mayRepeat(err)
		return isUnavailable(err)
	})
	ctx, cancel := context.WithTimeout(f.Context(), first)
	defer cancel()
	f.unavailable("Check", f.check(ctx, p))
	f.h.Start(f.T)
	var last error
	f.await("publishing has not begun again", func() bool {
		last = f.publish(f.Context(), p, lost)[0]
		if last != nil {
			f.mayRepeat(last)
		}
		return last == nil
	})
	if err := f.check(f.Context(), p); err != nil {
		f.Errorf("the check failed: %v", err)
	}
}

func (f *fixture) broken() {
	f.connected()
	w := &wires{}
	p := f.publisher(With{Dial: w.dial})
	f.mustPublish(p, message("order-1", "1"))
	w.cut()
	again := message("order-1", "2")
	f.await("publishing has not begun again", func() bool {
		err := f.publish(f.Context(), p, again)[0]
		if err != nil {
			f.mayRepeat(err)
		}
		return err == nil
	})
	last := false
	for _, got := range f.h.Received(f.T) {
		last = got.ID == again.ID.String()
	}
	if !last {
		f.Error("what was published last is not what the destination has last")
	}
}

func (f *fixture) says() {
	f.connected()
	err := f.check(f.Context(), f.publisher(With{Address: nobody}))
	if err == nil || !strings.Contains(err.Error(), nobody) {
		f.Errorf("an error does not name %s: %v", nobody, err)
	}
}
