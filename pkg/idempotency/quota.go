package idempotency

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// rowBytes is the size of a key without the body of its response, in bytes, as quotas count it.
const rowBytes = 256

// recountInterval is the age at which the size of a realm is counted again.
const recountInterval = time.Minute

// maxQuotas is the maximum number of realms whose size a store remembers.
const maxQuotas = 10_000

// quotas caches the sizes of realms, so that not every request counts them. Stores that share a
// table see each other's responses when they count again.
type quotas struct {
	mu     sync.Mutex
	realms map[string]quota
}

// quota is the size of a realm in bytes, and the time at which it was counted.
type quota struct {
	bytes     int64
	countedAt time.Time
}

// get returns the size of a realm, and whether it was counted within recountInterval.
func (q *quotas) get(realm string, now time.Time) (int64, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	known, ok := q.realms[realm]
	return known.bytes, ok && now.Sub(known.countedAt) < recountInterval
}

// set stores the size of a realm. It forgets all other sizes if there are maxQuotas of them.
func (q *quotas) set(realm string, bytes int64, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.realms == nil || len(q.realms) >= maxQuotas {
		q.realms = map[string]quota{}
	}
	q.realms[realm] = quota{bytes, now}
}

// add adds a stored response to the size of its realm, if the size is known.
func (q *quotas) add(realm string, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if known, ok := q.realms[realm]; ok {
		known.bytes += bytes
		q.realms[realm] = known
	}
}

// checkQuota fails with [ErrQuota] if the realm has reached its quota and does not have the key
// yet. An expired key counts as unknown.
func (p *Postgres) checkQuota(ctx context.Context, db DB, key Key) error {
	if p.RealmBytes <= 0 {
		return nil
	}
	now := time.Now()
	if p.Clock != nil {
		now = p.Clock()
	}
	bytes, ok := p.quotas.get(key.Realm, now)
	if !ok {
		err := db.QueryRow(ctx, `SELECT coalesce(sum($2 + coalesce(octet_length(body), 0)), 0) FROM idempotency_keys WHERE realm = $1`, key.Realm, rowBytes).Scan(&bytes)
		if err != nil {
			return fmt.Errorf("counting the stored responses of realm %.64q: %w", key.Realm, explain(err))
		}
		p.quotas.set(key.Realm, bytes, now)
	}
	if bytes < p.RealmBytes {
		return nil
	}
	var exists bool // a request that has claimed a key may finish
	err := db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM idempotency_keys WHERE realm = $2 AND key = $3 AND expires_at > `+nowSQL+`)`, p.now(), key.Realm, key.Key).Scan(&exists)
	switch {
	case err != nil:
		return fmt.Errorf("looking up key %s: %w", key, explain(err))
	case exists:
		return nil
	}
	return ErrQuota
}

// checkQuota fails with [ErrQuota] if the realm has reached its quota and does not have the key
// yet. An expired key counts as unknown. m.mu is held.
func (m *Memory) checkQuota(key Key, now time.Time) error {
	if k := m.keys[key]; m.RealmBytes <= 0 || k != nil && now.Before(k.expiresAt) {
		return nil
	}
	var bytes int64
	for other, k := range m.keys {
		if other.Realm != key.Realm {
			continue
		}
		bytes += rowBytes
		if k.response != nil {
			bytes += int64(len(k.response.Body))
		}
	}
	if bytes >= m.RealmBytes {
		return ErrQuota
	}
	return nil
}
