package quota

import (
	"container/list"
	"sync"
)

// Verdict says whether a saga may start.
type Verdict int

// The verdicts.
const (
	// Admitted: it may start, and counts from now on.
	Admitted Verdict = iota
	// Full: it waits until others of its namespace end.
	Full
	// TooLarge: it alone exceeds the bytes of its namespace. It does not wait for others.
	TooLarge
	// Uncounted: it waits until the unfinished sagas have been counted.
	Uncounted
)

// Sagas counts the unfinished sagas of each namespace, and decides when new ones may start. The new sagas
// of a namespace start in the order of their arrival. It is safe for concurrent use.
type Sagas[K comparable] struct {
	limits func(namespace string) Limits
	wake   func(K)

	mu         sync.Mutex
	counted    bool
	namespaces map[string]*usage[K]
}

// usage is what the sagas of one namespace take.
type usage[K comparable] struct {
	held  map[K]int64 // bytes of the sagas that count
	bytes int64       // of all of them

	waiting list.List // of waiter[K], the first one to start in front
	places  map[K]*list.Element
}

// waiter is a saga that waits.
type waiter[K comparable] struct {
	key   K
	bytes int64
}

// NewSagas returns a Sagas that admits none until Counted is called. It calls wake with each saga that
// has waited and is to ask again: one that may start counts already.
func NewSagas[K comparable](limits func(namespace string) Limits, wake func(K)) *Sagas[K] {
	return &Sagas[K]{limits: limits, wake: wake, namespaces: map[string]*usage[K]{}}
}

// Admit reports whether a saga may start. bytes is the size of its spec. A saga that counts already may
// start. Any other that may not start now waits, unless it is too large.
func (s *Sagas[K]) Admit(namespace string, k K, bytes int64) Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, limits := s.of(namespace), s.limits(namespace)
	if _, counts := u.held[k]; counts {
		return Admitted
	}
	defer s.tidy(namespace, u)
	switch {
	case limits.allowsNever(bytes):
		u.leave(k)
		return TooLarge
	case s.counted && u.waiting.Len() == 0 && u.fits(limits, bytes):
		u.hold(k, bytes)
		return Admitted
	}
	if e := u.places[k]; e != nil {
		e.Value = waiter[K]{k, bytes}
	} else {
		u.places[k] = u.waiting.PushBack(waiter[K]{k, bytes})
	}
	if !s.counted {
		return Uncounted
	}
	return Full
}

// Started counts a saga that has started, whatever the limits are. bytes is the size of its spec.
func (s *Sagas[K]) Started(namespace string, k K, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.of(namespace)
	if _, counts := u.held[k]; !counts {
		u.leave(k)
		u.hold(k, bytes)
	}
}

// Counts reports whether a saga counts.
func (s *Sagas[K]) Counts(namespace string, k K) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.namespaces[namespace]
	if u == nil {
		return false
	}
	_, counts := u.held[k]
	return counts
}

// Ended says that a saga has ended, or that it will not start: it neither counts nor waits any more.
func (s *Sagas[K]) Ended(namespace string, k K) {
	s.mu.Lock()
	u := s.namespaces[namespace]
	if u == nil {
		s.mu.Unlock()
		return
	}
	if bytes, counts := u.held[k]; counts {
		delete(u.held, k)
		u.bytes -= bytes
	}
	u.leave(k)
	s.grantAndUnlock(namespace)
}

// Counted says that every unfinished saga has been counted once. All that wait are woken: one that still
// does not fit has another reason to wait now.
func (s *Sagas[K]) Counted() {
	s.mu.Lock()
	if s.counted {
		s.mu.Unlock()
		return
	}
	s.counted = true
	all, waited := make([]string, 0, len(s.namespaces)), []K(nil)
	for namespace, u := range s.namespaces {
		all = append(all, namespace)
		for e := u.waiting.Front(); e != nil; e = e.Next() {
			waited = append(waited, e.Value.(waiter[K]).key)
		}
	}
	s.grant(all)
	s.mu.Unlock()
	for _, k := range waited {
		s.wake(k)
	}
}

// Reconsider has the sagas that wait in a namespace start if its limits allow them now.
func (s *Sagas[K]) Reconsider(namespace string) {
	s.mu.Lock()
	s.grantAndUnlock(namespace)
}

// Waiting returns how many sagas wait.
func (s *Sagas[K]) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, u := range s.namespaces {
		n += u.waiting.Len()
	}
	return n
}

// grantAndUnlock admits waiting sagas as far as they fit, unlocks s.mu, and wakes them.
func (s *Sagas[K]) grantAndUnlock(namespaces ...string) {
	granted := s.grant(namespaces)
	s.mu.Unlock()
	for _, k := range granted {
		s.wake(k)
	}
}

// grant admits waiting sagas as far as they fit. s.mu is held.
func (s *Sagas[K]) grant(namespaces []string) (granted []K) {
	for _, namespace := range namespaces {
		u := s.namespaces[namespace]
		if u == nil {
			continue
		}
		limits := s.limits(namespace)
		for first := u.waiting.Front(); s.counted && first != nil; first = u.waiting.Front() {
			w := first.Value.(waiter[K])
			tooLarge := limits.allowsNever(w.bytes) // because its limits have changed: Admit will return TooLarge
			if !tooLarge && !u.fits(limits, w.bytes) {
				break
			}
			u.leave(w.key)
			if !tooLarge {
				u.hold(w.key, w.bytes)
			}
			granted = append(granted, w.key)
		}
		s.tidy(namespace, u)
	}
	return granted
}

func (s *Sagas[K]) of(namespace string) *usage[K] {
	u := s.namespaces[namespace]
	if u == nil {
		u = &usage[K]{held: map[K]int64{}, places: map[K]*list.Element{}}
		s.namespaces[namespace] = u
	}
	return u
}

// tidy forgets a namespace that has nothing.
func (s *Sagas[K]) tidy(namespace string, u *usage[K]) {
	if len(u.held) == 0 && u.waiting.Len() == 0 {
		delete(s.namespaces, namespace)
	}
}

func (u *usage[K]) fits(l Limits, bytes int64) bool {
	return (l.UnfinishedSagas < 0 || int64(len(u.held)) < l.UnfinishedSagas) && (l.UnfinishedBytes < 0 || u.bytes+bytes <= l.UnfinishedBytes)
}

// allowsNever reports whether a saga of a size exceeds the limits by itself.
func (l Limits) allowsNever(bytes int64) bool {
	return l.UnfinishedBytes >= 0 && bytes > l.UnfinishedBytes
}

func (u *usage[K]) hold(k K, bytes int64) {
	u.held[k] = bytes
	u.bytes += bytes
}

// leave takes a saga out of the waiting ones.
func (u *usage[K]) leave(k K) {
	if e := u.places[k]; e != nil {
		u.waiting.Remove(e)
		delete(u.places, k)
	}
}
