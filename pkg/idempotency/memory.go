package idempotency

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"
)

// Memory is a store in this process' memory: for tests, and for a service of one process whose restart may forget.
type Memory struct {
	Options
	mu     sync.Mutex
	keys   map[Key]*remembered
	fences int64
}

// remembered is what is known of a key.
type remembered struct {
	of         Fingerprint
	fence      int64
	leaseUntil time.Time
	expiresAt  time.Time
	response   *Response // nil while it is being carried out
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory(o Options) *Memory {
	o = o.withDefaults()
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return &Memory{Options: o, keys: map[Key]*remembered{}}
}

// Begin implements Store.
func (m *Memory) Begin(ctx context.Context, key Key, of Fingerprint) (Begun, error) {
	if err := key.Check(); err != nil {
		return Begun{}, fmt.Errorf("claiming key %s: %w", key, err)
	}
	if err := ctx.Err(); err != nil {
		return Begun{}, fmt.Errorf("claiming key %s: %w", key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.Clock()
	if k := m.keys[key]; k != nil && now.Before(k.expiresAt) {
		switch {
		case k.of != of:
			return Begun{}, fmt.Errorf("claiming key %s: %w", key, ErrMismatch)
		case k.response != nil:
			return Begun{Response: k.response.clone()}, nil
		case now.Before(k.leaseUntil):
			return Begun{}, fmt.Errorf("claiming key %s: %w", key, &InProgressError{RetryAfter: k.leaseUntil.Sub(now)})
		}
	}
	if err := m.checkQuota(key, now); err != nil {
		return Begun{}, fmt.Errorf("claiming key %s: %w", key, err)
	}
	m.fences++
	first := m.keys[key] == nil
	k := &remembered{of: of, fence: m.fences, leaseUntil: now.Add(m.Lease), expiresAt: now.Add(m.TTL)}
	m.keys[key] = k
	return Begun{Claim: &Claim{Key: key, Fence: k.fence, LeaseUntil: k.leaseUntil, First: first}}, nil
}

// Complete implements Store.
func (m *Memory) Complete(ctx context.Context, c Claim, r Response) error { return m.end(ctx, c, r) }

// Fail implements Store.
func (m *Memory) Fail(ctx context.Context, c Claim, r Response) error { return m.end(ctx, c, r) }

func (m *Memory) end(ctx context.Context, c Claim, r Response) error {
	err := checkResponse(r)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("keeping the answer of key %s: %w", c.Key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k, err := m.held(c)
	if err != nil {
		return fmt.Errorf("keeping the answer of key %s: %w", c.Key, err)
	}
	k.response, k.expiresAt = r.clone(), m.Clock().Add(m.TTL)
	return nil
}

// Release implements Store.
func (m *Memory) Release(ctx context.Context, c Claim) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("giving key %s back: %w", c.Key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.held(c); err != nil {
		return fmt.Errorf("giving key %s back: %w", c.Key, err)
	}
	delete(m.keys, c.Key)
	return nil
}

// Abandon implements Store.
func (m *Memory) Abandon(ctx context.Context, c Claim) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("abandoning key %s: %w", c.Key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k, err := m.held(c)
	if err != nil {
		return fmt.Errorf("abandoning key %s: %w", c.Key, err)
	}
	k.leaseUntil = m.Clock()
	return nil
}

// held returns what is known of a key that a claim still holds; m.mu is held.
func (m *Memory) held(c Claim) (*remembered, error) {
	k := m.keys[c.Key]
	if k == nil || k.fence != c.Fence || k.response != nil {
		return nil, ErrFenced
	}
	return k, nil
}

// Sweep implements Store.
func (m *Memory) Sweep(ctx context.Context, limit int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("sweeping keys: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now, n := m.Clock(), 0
	for key, k := range m.keys {
		if n >= limit {
			break
		}
		if !now.Before(k.expiresAt) {
			delete(m.keys, key)
			n++
		}
	}
	return n, nil
}

func (r Response) clone() *Response {
	r.Header, r.Body = r.Header.Clone(), bytes.Clone(r.Body)
	return &r
}
