package engine

import (
	"container/list"
	"sync"
	"time"

	"github.com/vextrus/saga-operator/internal/panics"
)

// throttle limits the rate at which the sagas of a namespace start attempts. Each namespace has a token
// bucket that holds the attempts of one second; its sagas wait for tokens in the order in which they came,
// and get one at a time.
type throttle struct {
	rate   func(namespace string) int64 // attempts per second; negative for no limit
	clock  func() time.Time
	notify func(Key)

	mu      sync.Mutex
	buckets map[string]*bucket
}

// bucket has the tokens of one namespace.
type bucket struct {
	tokens  float64
	at      time.Time // when tokens was right
	waiting list.List // of Key
	places  map[string]*list.Element
	granted map[string]bool // by uid: sagas that have waited and may start one attempt
	timer   *time.Timer     // until the next token, while one waits
}

func newThrottle(rate func(namespace string) int64, clock func() time.Time, notify func(Key)) *throttle {
	if rate == nil {
		rate = func(string) int64 { return -1 }
	}
	return &throttle{rate: rate, clock: clock, notify: notify, buckets: map[string]*bucket{}}
}

// take returns how many of n attempts a saga may start now. If these are fewer, notify is called with its
// key when it may start another.
func (t *throttle) take(key Key, n int) int {
	rate := t.rate(key.Namespace)
	t.mu.Lock()
	defer t.mu.Unlock()
	if rate < 0 {
		return n
	}
	b := t.buckets[key.Namespace]
	if b == nil {
		b = &bucket{tokens: float64(rate), at: t.clock(), places: map[string]*list.Element{}, granted: map[string]bool{}}
		t.buckets[key.Namespace] = b
	}
	b.fill(t.clock(), rate)
	got := 0
	if b.granted[key.UID] {
		delete(b.granted, key.UID)
		got = 1
	}
	if b.waiting.Len() == 0 {
		more := min(n-got, int(b.tokens))
		b.tokens -= float64(more)
		got += more
	}
	if got < n {
		if b.places[key.UID] == nil {
			b.places[key.UID] = b.waiting.PushBack(key)
		}
		t.await(key.Namespace, b, rate)
	}
	return got
}

// await has the sagas of a namespace woken when there is a token. t.mu is held.
func (t *throttle) await(namespace string, b *bucket, rate int64) {
	if b.timer != nil {
		return
	}
	missing := max(0, 1-b.tokens)
	b.timer = time.AfterFunc(time.Duration(missing/float64(max(1, rate))*float64(time.Second)), func() {
		defer panics.Recover(nil, "giving sagas their turn to be sent")
		t.grant(namespace)
	})
}

// grant gives the tokens that there are to the sagas that wait.
func (t *throttle) grant(namespace string) {
	for _, key := range t.wake(namespace) {
		t.notify(key)
	}
}

// wake returns the sagas that get the tokens that there are.
func (t *throttle) wake(namespace string) (woken []Key) {
	rate := t.rate(namespace)
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buckets[namespace]
	b.timer = nil
	b.fill(t.clock(), rate)
	for first := b.waiting.Front(); first != nil && (b.tokens >= 1 || rate < 0); first = b.waiting.Front() {
		key := b.waiting.Remove(first).(Key)
		delete(b.places, key.UID)
		b.granted[key.UID] = true
		if rate >= 0 { // without a limit none is spent: a later limit must not begin with a debt
			b.tokens--
		}
		woken = append(woken, key)
	}
	if b.waiting.Len() > 0 {
		t.await(namespace, b, rate)
	}
	return woken
}

// forget drops what is held of a saga.
func (t *throttle) forget(key Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buckets[key.Namespace]
	if b == nil {
		return
	}
	if b.granted[key.UID] {
		delete(b.granted, key.UID)
		b.tokens++
	}
	if e := b.places[key.UID]; e != nil {
		b.waiting.Remove(e)
		delete(b.places, key.UID)
	}
}

// fill adds the tokens of the time since the last call. A bucket holds the tokens of one second at most.
func (b *bucket) fill(now time.Time, rate int64) {
	if passed := now.Sub(b.at); passed > 0 && rate > 0 {
		b.tokens += passed.Seconds() * float64(rate)
	}
	b.at, b.tokens = now, min(b.tokens, float64(max(1, rate)))
}
