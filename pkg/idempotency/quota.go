package idempotency

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// rowBytes is what a key takes besides the body of its answer, as quotas count.
const rowBytes = 256

// quotaLook is how often a store counts anew what the answers of a realm take.
const quotaLook = time.Minute

// maxQuotas bounds how many realms a store remembers a count of.
const maxQuotas = 10_000

// quotas remembers what the answers of realms take, so that not every request has them counted. Several stores on one table see each
// other's answers when they count anew.
type quotas struct {
	mu     sync.Mutex
	realms map[string]quota
}

// quota is what the answers of a realm take, and when they were counted.
type quota struct {
	bytes int64
	at    time.Time
}

// get returns what a realm takes, if it was counted a short time ago.
func (q *quotas) get(realm string, now time.Time) (int64, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	known, ok := q.realms[realm]
	return known.bytes, ok && now.Sub(known.at) < quotaLook
}

func (q *quotas) set(realm string, bytes int64, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.realms == nil || len(q.realms) >= maxQuotas {
		q.realms = map[string]quota{}
	}
	q.realms[realm] = quota{bytes, now}
}

func (q *quotas) add(realm string, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if known, ok := q.realms[realm]; ok {
		known.bytes += bytes
		q.realms[realm] = known
	}
}

// full fails with ErrQuota if a realm has no room for the answer to a request with a new key.
func (p *Postgres) full(ctx context.Context, key Key) error {
	if p.RealmBytes <= 0 {
		return nil
	}
	now := time.Now()
	if p.Clock != nil {
		now = p.Clock()
	}
	bytes, ok := p.quotas.get(key.Realm, now)
	if !ok {
		err := p.db.QueryRow(ctx, `SELECT coalesce(sum($2 + coalesce(octet_length(body), 0)), 0) FROM idempotency_keys WHERE realm = $1`, key.Realm, rowBytes).Scan(&bytes)
		if err != nil {
			return fmt.Errorf("counting the answers of realm %.64q: %w", key.Realm, explain(err))
		}
		p.quotas.set(key.Realm, bytes, now)
	}
	if bytes < p.RealmBytes {
		return nil
	}
	var there bool // whoever has begun under a key may end
	err := p.db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM idempotency_keys WHERE realm = $1 AND key = $2)`, key.Realm, key.Key).Scan(&there)
	switch {
	case err != nil:
		return fmt.Errorf("looking key %s up: %w", key, explain(err))
	case there:
		return nil
	}
	return ErrQuota
}

// full is as that of Postgres; m.mu is held.
func (m *Memory) full(key Key) error {
	if m.RealmBytes <= 0 || m.keys[key] != nil {
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
