package idempotency_test

import (
	"testing"
	"time"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

func TestStoreBeginRefusesNewKeysOverQuota(t *testing.T) {
	t.Parallel()
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			f := &fixture{open(t, idempotency.Options{Clock: c.Now, RealmBytes: 2000, TTL: time.Hour, Lease: time.Minute}), t, c}
			large := idempotency.Response{Status: 200, Body: make([]byte, 1500)}
			first, second := f.claims(keyOf("1"), "a"), f.claims(keyOf("2"), "a")
			f.ok(f.Complete(t.Context(), first, large))
			f.ok(f.Complete(t.Context(), second, large))
			f.fails(keyOf("3"), "a", idempotency.ErrQuota)
			f.replays(keyOf("1"), "a", large)
			f.fails(keyOf("1"), "b", idempotency.ErrMismatch)
			f.claims(idempotency.Key{Realm: "another", Key: "3"}, "a")
			c.forward(2 * time.Hour)
			if _, err := f.Sweep(t.Context(), 10); err != nil {
				t.Fatal(err)
			}
			f.claims(keyOf("3"), "a")
		})
	}
}

// TestStoreBeginTakesOverKeyOverQuota retries the request of a process that died after it had
// claimed the key. The key is taken over, although the realm has reached its quota in the meantime.
func TestStoreBeginTakesOverKeyOverQuota(t *testing.T) {
	t.Parallel()
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			f := &fixture{open(t, idempotency.Options{Clock: c.Now, RealmBytes: 1000, Lease: time.Second}), t, c}
			f.claims(keyOf("1"), "a")
			f.ok(f.Complete(t.Context(), f.claims(keyOf("2"), "a"), idempotency.Response{Status: 200, Body: make([]byte, 1000)}))
			c.forward(2 * time.Second)
			f.fails(keyOf("3"), "a", idempotency.ErrQuota)
			f.claims(keyOf("1"), "a")
		})
	}
}

// TestStoreBeginRefusesExpiredKeyOverQuota claims a key that has expired and was not swept yet. It
// is a new key for the quota too: its next response may be larger than the one before.
func TestStoreBeginRefusesExpiredKeyOverQuota(t *testing.T) {
	t.Parallel()
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			f := &fixture{open(t, idempotency.Options{Clock: c.Now, RealmBytes: 1500, TTL: time.Hour}), t, c}
			f.ok(f.Complete(t.Context(), f.claims(keyOf("1"), "a"), idempotency.Response{Status: 200}))
			c.forward(30 * time.Minute)
			f.ok(f.Complete(t.Context(), f.claims(keyOf("2"), "a"), idempotency.Response{Status: 200, Body: make([]byte, 1200)}))
			c.forward(45 * time.Minute)
			f.fails(keyOf("1"), "a", idempotency.ErrQuota)
			if _, err := f.Sweep(t.Context(), 10); err != nil {
				t.Fatal(err)
			}
			c.forward(2 * time.Minute)
			f.claims(keyOf("1"), "a")
		})
	}
}
