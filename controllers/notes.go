package controllers

import (
	"sync"
	"time"

	"github.com/vextrus/saga-operator/internal/engine"
)

// note is what the reconciler remembers of one saga that is not finished. Nothing in it decides anything: losing it costs a few reads.
type note struct {
	// recorded is true once the saga is known to have a stream, so that its definition is not worked out again.
	recorded bool
	// wroteAt is when its status was last written, and wroteOver the resource version that the last write of any kind replaced: as long as the
	// cache shows that one, it has not caught up.
	wroteAt   time.Time
	wroteOver string
	// heldOver is the resource version that putting the finalizer on replaced. The cache may show it still after later writes.
	heldOver string
	// lagging is how often in a row the cache was found behind; while it is not zero, any change of the object is waited for.
	lagging int
	// refused is how often in a row the API server has refused its status.
	refused int
	// failingSince is when the event store began to fail for it; zero while it does not.
	failingSince time.Time
	// gone is true once the API server has said that the object is no more; a uid never comes back.
	gone bool
	// doubted is true when recovery says that the saga is not finished, whatever its status says.
	doubted bool
	// ended is true once its end has been written. The note is kept only until the cache shows that.
	ended bool
}

// notes keeps a note for each saga. The zero value is ready to use.
type notes struct {
	mu sync.Mutex
	m  map[engine.Key]note
}

func (n *notes) get(k engine.Key) note {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.m[k]
}

func (n *notes) change(k engine.Key, f func(*note)) note {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil {
		n.m = map[engine.Key]note{}
	}
	v := n.m[k]
	f(&v)
	n.m[k] = v
	return v
}

func (n *notes) drop(k engine.Key) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.m, k)
}

// shown drops the note of a saga whose end the cache shows, unless that is in doubt, or its object is to go and waits for the event store.
func (n *notes) shown(k engine.Key) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if v := n.m[k]; !v.doubted && v.failingSince.IsZero() {
		delete(n.m, k)
	}
}

// failing returns the sagas that the event store fails for.
func (n *notes) failing() []engine.Key {
	n.mu.Lock()
	defer n.mu.Unlock()
	var keys []engine.Key
	for k, v := range n.m {
		if !v.failingSince.IsZero() {
			keys = append(keys, k)
		}
	}
	return keys
}
