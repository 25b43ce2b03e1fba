package simulation

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// class is what a call is made to.
type class string

// The classes of calls that an operator makes, and of those that come to it from outside.
const (
	storeWrite   class = "store write"
	storeRead    class = "store read"
	apiWrite     class = "API write"
	apiRead      class = "API read"
	request      class = "HTTP request"
	publish      class = "publish"
	callbackIn   class = "callback" // a participant's callback to the operator
	brokerIn     class = "broker reply"
	decisionCall class = "decision"
	timeOut      class = "time-out" // the end of a call that hung
)

// fate is what becomes of a call.
type fate string

// The fates.
const (
	done         fate = "done"
	failedBefore fate = "failed before"
	failedAfter  fate = "failed after it was done"
	hungBefore   fate = "hung, not done"
	hungAfter    fate = "hung, done"
	repeated     fate = "repeated"
	late         fate = "delivered late"
	slow         fate = "worked on for long"
	gateway      fate = "answered by a gateway before"
	gatewayDone  fate = "answered by a gateway after it was done"
	died         fate = "its node died"
)

// fates lists what may become of a call of each class, beside being done.
var fates = map[class][]fate{
	storeWrite:   {failedBefore, failedAfter, hungBefore, hungAfter},
	storeRead:    {failedBefore, hungBefore},
	apiWrite:     {failedBefore, failedAfter},
	apiRead:      {failedBefore},
	request:      {failedBefore, failedAfter, hungBefore, hungAfter, repeated, late, slow, gateway, gatewayDone},
	publish:      {failedBefore, failedAfter, hungBefore, hungAfter, repeated, late},
	callbackIn:   {failedBefore, failedAfter, repeated, late},
	brokerIn:     {failedBefore, failedAfter, repeated, late},
	decisionCall: {failedBefore, failedAfter, repeated, late},
}

// call is one that is parked.
type call struct {
	node    *node
	class   class
	name    string
	at      time.Time // when it may go on at the earliest
	urgent  bool      // its caller has given up
	release chan fate
}

// bus parks calls until the driver releases them.
type bus struct {
	w *World

	mu      sync.Mutex
	parked  map[string]*call // by name
	counts  map[string]int   // how often a name was used
	hanging int              // calls that wait for their caller to give up
	news    chan struct{}    // something has been parked, or has ended
}

func newBus(w *World) *bus {
	return &bus{w: w, parked: map[string]*call{}, counts: map[string]int{}, news: make(chan struct{}, 1)}
}

// tell wakes the driver if it lets time pass.
func (b *bus) tell() {
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// count numbers the uses of a name.
func (b *bus) count(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[name]++
	return b.counts[name]
}

// await parks a call until the driver lets it go on, and returns its fate. When the caller gives up before, the call still waits, so that no two
// goroutines ever go on by themselves at the same instant. On a node that has died it does not return.
func (b *bus) await(ctx context.Context, n *node, class class, name string) (f fate, gaveUp bool) {
	c := &call{node: n, class: class, name: name, release: make(chan fate, 1)}
	c.at = time.Now().Add(b.w.delay(c))
	b.mu.Lock()
	if n.dead {
		b.mu.Unlock()
		runtime.Goexit()
	}
	if b.parked[name] != nil {
		panic("two calls have the name " + name)
	}
	b.parked[name] = c
	b.mu.Unlock()
	b.tell()
	var over <-chan struct{}
	if ctx != nil {
		over = ctx.Done()
	}
	for {
		select {
		case f := <-c.release:
			if f == died {
				runtime.Goexit()
			}
			return f, gaveUp
		case <-over:
			over, gaveUp = nil, true
			b.mu.Lock()
			c.urgent = true
			b.mu.Unlock()
			b.tell()
		}
	}
}

// hang keeps a call from an answer until its caller gives up.
func (b *bus) hang(ctx context.Context, n *node, name string) {
	b.mu.Lock()
	b.hanging++
	b.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-n.gone:
	}
	b.mu.Lock()
	b.hanging--
	b.mu.Unlock()
	b.await(ctx, n, timeOut, name+" gave up") // no two go on by themselves at one instant
}

// take removes a call from the bus, and lets it go on.
func (b *bus) take(c *call, f fate) {
	b.mu.Lock()
	delete(b.parked, c.name)
	b.mu.Unlock()
	c.release <- f
}

// kill ends the calls of a node that has died.
func (b *bus) kill(n *node) {
	b.mu.Lock()
	n.dead = true
	var all []*call
	for _, c := range b.parked {
		if c.node == n {
			all = append(all, c)
		}
	}
	b.mu.Unlock()
	for _, c := range all {
		b.take(c, died)
	}
}
