package sinktest

import (
	"context"
	"net"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/vextrus/saga-operator/internal/outbox"
)

var endings = []behaviour{
	{"a context that is already over publishes nothing", (*fixture).overBefore},
	{"a context that ends while connecting ends the call", (*fixture).overConnecting},
	{"a context that ends, or Close, while a server does not greet ends the call", (*fixture).overGreeting},
	{"a context that ends while an answer is awaited ends the call", (*fixture).overWaiting},
	{"Close while an answer is awaited ends the call", (*fixture).closedWaiting},
	{"Close can be called twice, and what is published afterwards fails", (*fixture).closed},
	{"a publisher that was never used can be closed", (*fixture).unused},
	{"nothing is left running after Close", (*fixture).leaks},
}

func (f *fixture) overBefore() {
	f.connected()
	p := f.publisher(With{})
	f.mustPublish(p, message("order-1", "1"))
	ctx, cancel := context.WithCancel(f.Context())
	cancel()
	for _, err := range f.publish(ctx, p, message("order-1", "2"), message("order-2", "2")) {
		f.mayRepeat(err)
	}
	f.mustPublish(p, message("order-1", "3"))
}

func (f *fixture) overConnecting() {
	f.connected()
	ctx, cancel := context.WithCancel(f.Context())
	defer cancel()
	p := f.publisher(With{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	for _, err := range f.publish(ctx, p, message("order-1", "1")) {
		f.mayRepeat(err)
	}
	if f.check(ctx, p) == nil {
		f.Error("a destination that was not reached passed the check")
	}
}

func (f *fixture) overGreeting() {
	f.connected()
	l := f.listen()
	f.Cleanup(func() { _ = l.Close() })
	for _, byClose := range []bool{false, true} {
		ctx, cancel := context.WithCancel(f.Context())
		reached := make(chan struct{}, 1)
		p := f.publisher(With{Address: l.Addr().String(), Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			defer func() {
				select {
				case reached <- struct{}{}:
				default:
				}
			}()
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}})
		go func() {
			<-reached
			if byClose {
				_ = p.Close()
			} else {
				cancel()
			}
		}()
		for _, err := range f.publish(ctx, p, message("order-1", "1")) { // until the context ends, or Close
			f.mayRepeat(err)
		}
		cancel()
	}
}

// deaf makes a publisher that was connected, and hears nothing any more. sent gets a value when it next writes.
func (f *fixture) deaf() (p outbox.Publisher, sent <-chan struct{}) {
	w := &wires{wrote: make(chan struct{}, 1)}
	p = f.publisher(With{Dial: w.dial})
	f.mustPublish(p, message("order-1", "1"))
	w.deaf.Store(true)
	select {
	case <-w.wrote: // what was written before
	default:
	}
	return p, w.wrote
}

func (f *fixture) overWaiting() {
	f.connected()
	p, sent := f.deaf()
	ctx, cancel := context.WithCancel(f.Context())
	defer cancel()
	go func() { <-sent; cancel() }()
	for _, err := range f.publish(ctx, p, message("order-1", "2"), message("order-2", "2")) {
		f.mayRepeat(err)
	}
}

func (f *fixture) closedWaiting() {
	f.connected()
	p, sent := f.deaf()
	go func() { <-sent; _ = p.Close() }()
	for _, err := range f.publish(f.Context(), p, message("order-1", "2")) {
		f.mayRepeat(err)
	}
}

func (f *fixture) closed() {
	p := f.publisher(With{})
	f.mustPublish(p, message("order-1", "1"))
	for range 2 {
		f.within("Close", func() {
			if err := p.Close(); err != nil {
				f.Errorf("closing: %v", err)
			}
		})
	}
	for _, err := range f.publish(f.Context(), p, message("order-1", "2")) {
		f.mayRepeat(err)
	}
	f.unavailable("Check", f.check(f.Context(), p))
	f.received(1)
}

func (f *fixture) unused() {
	if err := f.publisher(With{}).Close(); err != nil {
		f.Errorf("closing: %v", err)
	}
}

func (f *fixture) leaks() {
	f.connected()
	// What a goroutine starts has its labels. So those of this publisher are told from those of the server, and from those of tests that run at the same time.
	mark := uuid.NewString()
	ctx := pprof.WithLabels(f.Context(), pprof.Labels("leaks", mark))
	pprof.SetGoroutineLabels(ctx)
	defer pprof.SetGoroutineLabels(f.Context())

	used, lost := f.publisher(With{}), f.publisher(With{Address: nobody})
	if err := f.check(ctx, used); err != nil {
		f.Error(err)
	}
	f.mustPublish(used, message("order-1", "1"))
	f.publish(ctx, lost, message("order-1", "2"))
	for _, p := range []outbox.Publisher{used, lost} {
		f.within("Close", func() {
			if err := p.Close(); err != nil {
				f.Errorf("closing: %v", err)
			}
		})
	}
	pprof.SetGoroutineLabels(f.Context())
	f.await("something is left running", func() bool {
		var running strings.Builder
		if err := pprof.Lookup("goroutine").WriteTo(&running, 1); err != nil {
			f.Fatal(err)
		}
		return !strings.Contains(running.String(), mark)
	})
}

// wires are connections that can be cut, or go deaf.
type wires struct {
	deaf atomic.Bool
	// wrote gets a value when something is written; nil where nobody wants to know.
	wrote chan struct{}

	mu  sync.Mutex
	all []net.Conn
}

func (w *wires) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, c)
	return &wire{Conn: c, wires: w}, nil
}

// cut ends all connections that were made so far.
func (w *wires) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.all {
		_ = c.Close()
	}
	w.all = nil
}

type wire struct {
	net.Conn
	wires *wires
}

// Read drops what comes once the wires are deaf. Deadlines and Close still end it.
func (w *wire) Read(b []byte) (int, error) {
	for {
		n, err := w.Conn.Read(b)
		if err != nil || !w.wires.deaf.Load() {
			return n, err
		}
	}
}

// Write says that something is on its way.
func (w *wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	select {
	case w.wires.wrote <- struct{}{}:
	default: // nobody wants to know, or it is known
	}
	return n, err
}
