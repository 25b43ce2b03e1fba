package outbox

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
	storepg "github.com/vextrus/saga-operator/internal/eventstore/postgres"
)

const (
	// maxWaitingKeys and maxDeadKeys bound the keys of a shard that are parked. Beyond them the sink refuses so much that the fault is hardly the messages': the shard reads no
	// further until some go through or are dropped, and the log keeps the rest.
	maxWaitingKeys = 1_000
	maxDeadKeys    = 10_000
	// maxErrorBytes bounds what is kept of an error.
	maxErrorBytes = 1 << 10
)

// head is the oldest parked message of a key.
type head struct {
	sequence int64
	attempts int
	dead     bool
	due      time.Time
}

// parkedKey is a key with parked messages.
type parkedKey struct {
	head head
	// known is false where the oldest message has to be looked up.
	known bool
	// pages counts the pages under way that will park messages of the key. Meanwhile it stays parked, even if there is nothing left to publish.
	pages int
	// busy is true while its oldest message is being published.
	busy bool
	// looking is true while its oldest message is being looked up, and false again as soon as a page has parked another: what was found may be out of date then.
	looking bool
}

// parking is the parked keys of a shard. All later messages of a parked key are parked too.
type parking struct {
	mu   sync.Mutex
	keys map[string]*parkedKey
}

// holds reports whether a key is parked, for a page that parks its message then: it has to be told by settled when that is committed.
func (p *parking) holds(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.keys[key]
	if k != nil {
		k.pages++
	}
	return k != nil
}

// park says that a page under way will park messages of a key that was not parked before.
func (p *parking) park(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.keys[key]
	if k == nil {
		k = &parkedKey{}
		p.keys[key] = k
	}
	k.pages++
}

// settled says, for each call of holds and park, that the page's messages of the keys are parked.
func (p *parking) settled(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		if k := p.keys[key]; k != nil {
			k.pages--
			k.looking = false
		}
	}
}

// look says that the oldest messages of some keys are about to be looked up; found tells what they are.
func (p *parking) look(keys []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		k := p.keys[key]
		if k == nil {
			k = &parkedKey{}
			p.keys[key] = k
		}
		k.looking = true
	}
}

// full reports whether so many keys are parked that no more should be read. Where the sink is only probed those that wait for it do not matter: no more of them are parked.
func (p *parking) full(probing bool) bool {
	waiting, dead := p.count()
	return dead >= maxDeadKeys || waiting >= maxWaitingKeys && !probing
}

// count returns how many keys are parked: those that wait for their sink, and those that wait for a person.
func (p *parking) count() (waiting, dead int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.keys {
		if k.known && k.head.dead {
			dead++
		}
	}
	return len(p.keys) - dead, dead
}

// due returns up to limit keys whose oldest message is to be tried, marked busy, those whose oldest has to be looked up, and when the next one is due.
func (p *parking) due(now time.Time, limit int) (ready, lookUp []string, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, k := range p.keys {
		switch {
		case k.busy:
		case !k.known:
			if k.pages == 0 {
				lookUp = append(lookUp, key)
			}
		case k.head.dead:
		case !k.head.due.After(now):
			if len(ready) < limit {
				k.busy = true
				ready = append(ready, key)
			} else {
				next = now
			}
		case next.IsZero() || k.head.due.Before(next):
			next = k.head.due
		}
	}
	return ready, lookUp, next
}

// found tells what the oldest messages of some keys are. A key without any is free again, unless a page has parked more, or is about to.
func (p *parking) found(keys []string, heads map[string]head) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		k := p.keys[key]
		if k == nil {
			continue
		}
		k.busy = false
		k.head, k.known = heads[key]
		if !k.known && k.pages == 0 && k.looking {
			delete(p.keys, key)
		}
		k.looking = false
	}
}

// later puts off keys that were busy, without a word in the database: the sink takes nothing at the moment.
func (p *parking) later(keys []string, due time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range keys {
		if k := p.keys[key]; k != nil {
			k.busy, k.head.due = false, due
		}
	}
}

// idle returns the parked keys that nothing is being done with.
func (p *parking) idle() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var keys []string
	for key, k := range p.keys {
		if !k.busy {
			keys = append(keys, key)
		}
	}
	return keys
}

// parkedMessage is a message about to be parked.
type parkedMessage struct {
	message *Message
	// failure is why; nil for one that only follows another of its key.
	failure *Error
	dead    bool
	pause   time.Duration
}

// insertParked parks messages, in order.
func insertParked(ctx context.Context, db database, r *reader, all []parkedMessage) error {
	if len(all) == 0 {
		return nil
	}
	rows := make([][]any, len(all))
	for i, p := range all {
		m := p.message
		metadata, err := storepg.EncodeEnvelope(&m.Message)
		if err != nil {
			return err
		}
		attempts, reason, text := 0, "", ""
		if p.failure != nil {
			reason, text = p.failure.Reason, clip(p.failure.Error())
			if p.failure.Kind != Unavailable {
				attempts = 1
			}
		}
		rows[i] = []any{r.sink, r.shard, m.Key, m.Position, m.ID, m.Type, m.Destination, m.Data, metadata, m.RecordedAt, attempts, p.pause, p.dead, reason, text}
	}
	batch := &pgx.Batch{}
	for _, row := range rows {
		batch.Queue(`INSERT INTO outbox_parked (sink, shard, key, position, message_id, type, destination, data, metadata, recorded_at, attempts, due_at, dead, reason, error)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, now() + $12::interval, $13, $14, $15)`, row...)
	}
	sender, ok := db.(interface {
		SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	})
	if !ok {
		return fmt.Errorf("parking messages: %T sends no batches", db)
	}
	if err := sender.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("parking messages: %w", err)
	}
	return nil
}

// loadParked returns the parked keys of a shard.
func loadParked(ctx context.Context, db database, r *reader) ([]string, error) {
	rows, err := db.Query(ctx, `SELECT DISTINCT key FROM outbox_parked WHERE sink = $1 AND shard = $2`, r.sink, r.shard)
	if err != nil {
		return nil, fmt.Errorf("looking for parked messages: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// findHeads returns the oldest parked messages of some keys. Times are taken to this process' clock.
func findHeads(ctx context.Context, db database, r *reader, keys []string) (map[string]head, error) {
	rows, err := db.Query(ctx, `SELECT k.key, h.sequence, h.attempts, h.dead, extract(epoch FROM h.due_at - now())::float8
		FROM unnest($3::text[]) k (key) CROSS JOIN LATERAL (SELECT * FROM outbox_parked p WHERE p.sink = $1 AND p.shard = $2 AND p.key = k.key ORDER BY p.sequence LIMIT 1) h`,
		r.sink, r.shard, keys)
	if err != nil {
		return nil, fmt.Errorf("looking for parked messages: %w", err)
	}
	heads := make(map[string]head, len(keys))
	now := time.Now()
	var key string
	var h head
	var in float64
	_, err = pgx.ForEachRow(rows, []any{&key, &h.sequence, &h.attempts, &h.dead, &in}, func() error {
		h.due = now.Add(time.Duration(in * float64(time.Second)))
		heads[key] = h
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for parked messages: %w", err)
	}
	return heads, nil
}

// loadHeads returns the oldest parked messages of some keys, whole.
func loadHeads(ctx context.Context, db database, r *reader, keys []string) ([]Message, []head, error) {
	rows, err := db.Query(ctx, `SELECT h.sequence, h.attempts, h.position, h.message_id, h.type, h.key, h.destination, h.data, h.metadata, h.recorded_at
		FROM unnest($3::text[]) k (key) CROSS JOIN LATERAL (SELECT * FROM outbox_parked p WHERE p.sink = $1 AND p.shard = $2 AND p.key = k.key ORDER BY p.sequence LIMIT 1) h
		WHERE NOT h.dead`, r.sink, r.shard, keys)
	if err != nil {
		return nil, nil, fmt.Errorf("reading parked messages: %w", err)
	}
	defer rows.Close()
	var all []Message
	var heads []head
	for rows.Next() {
		var m eventstore.RecordedMessage
		var h head
		var metadata, data []byte
		if err := rows.Scan(&h.sequence, &h.attempts, &m.Position, &m.ID, &m.Type, &m.Key, &m.Destination, &data, &metadata, &m.RecordedAt); err != nil {
			return nil, nil, fmt.Errorf("reading parked messages: %w", err)
		}
		m.Data = data
		if err := storepg.DecodeEnvelope(metadata, &m.Message); err != nil {
			return nil, nil, err
		}
		all, heads = append(all, Message{RecordedMessage: m}), append(heads, h)
	}
	return all, heads, rows.Err()
}

// clip makes a text of an error that can be kept.
func clip(s string) string {
	if len(s) > maxErrorBytes {
		s = s[:maxErrorBytes] + "…"
	}
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
}
