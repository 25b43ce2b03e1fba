package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// envelope is what a row of the outbox says of a message besides its data.
type envelope struct {
	eventstore.Metadata
	Source    string            `json:"source,omitempty"`
	Subject   string            `json:"subject,omitempty"`
	Namespace string            `json:"namespace,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Sequence  int64             `json:"sequence,omitempty"`
}

// EncodeEnvelope returns what is stored of a message besides its columns.
func EncodeEnvelope(m *eventstore.Message) (json.RawMessage, error) {
	data, err := json.Marshal(envelope{m.Metadata, m.Source, m.Subject, m.Namespace, m.Labels, m.Sequence})
	if err != nil {
		return nil, fmt.Errorf("encoding the metadata of a message: %w", err)
	}
	return data, nil
}

// DecodeEnvelope reads what EncodeEnvelope wrote into a message.
func DecodeEnvelope(data []byte, m *eventstore.Message) error {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("decoding the metadata of message %s: %w", m.ID, err)
	}
	m.Metadata, m.Source, m.Subject, m.Namespace, m.Labels, m.Sequence = e.Metadata, e.Source, e.Subject, e.Namespace, e.Labels, e.Sequence
	return nil
}

// MessagePage is a part of the outbox.
type MessagePage struct {
	Messages []eventstore.RecordedMessage
	// Next is the checkpoint of a reader that has had the page. After returns the one in the middle of it.
	Next eventstore.Checkpoint
	// More says that there is more to read right now.
	More bool

	window eventstore.Checkpoint
}

// After returns the checkpoint of a reader that has had the first n messages of the page.
func (p *MessagePage) After(n int) eventstore.Checkpoint {
	if n >= len(p.Messages) {
		return p.Next
	}
	c := p.window
	if n > 0 {
		c.Position = p.Messages[n-1].Position
	}
	return c
}

// outboxSQL reads as readSQL does. The newest position is the sequence's: it costs no look at the partitions.
const outboxSQL = `SELECT now.view, now.epoch, now.top, coalesce(w.position, -1), coalesce(w.message_id, '00000000-0000-0000-0000-000000000000'), coalesce(w.type, ''), coalesce(w.key, ''), coalesce(w.destination, ''),
	coalesce(w.data, 'null'), coalesce(w.metadata, 'null'), coalesce(w.recorded_at, now())
FROM (SELECT pg_current_snapshot()::text AS view, (SELECT max(epoch) FROM store_clusters) AS epoch, (SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM outbox_position) AS top) now
LEFT JOIN (SELECT ` + messageColumns + ` FROM read_outbox($1, $2::text[]::xid8[], $3::text::xid8, $4, $5, $6, $7, $8, $9, $10, $11::text::pg_snapshot)
	ORDER BY position LIMIT $7) w ON true ORDER BY w.position`

const messageColumns = `position, message_id, type, key, destination, data, metadata, recorded_at`

// ReadOutbox returns the next page of the outbox that a reader with checkpoint from has not had yet, as ReadAll does of the events: the messages of a key come in the
// order in which they were committed. Shards read side by side, each with a checkpoint of its own; a key is always in the same one. A page ends with limit messages, or with the one
// that makes it as many bytes, whichever comes first.
func ReadOutbox(ctx context.Context, q Querier, from eventstore.Checkpoint, shard, shards, limit, bytes int) (MessagePage, error) {
	w := newWindow(from, max(limit, 1))
	untilEpoch, until := w.until()
	rows, err := q.Query(ctx, outboxSQL, from.Done.Epoch, running(from.Done), strconv.FormatUint(max(from.Done.Max, 1), 10), from.Floor, from.Position, w.bound, w.limit,
		shard, shards, untilEpoch, until)
	if err != nil {
		return MessagePage{}, Classified(fmt.Errorf("reading the outbox: %w", err))
	}
	defer rows.Close()
	size := 0
	for size < bytes && rows.Next() {
		if err := w.scanMessage(rows); err != nil {
			return MessagePage{}, Classified(fmt.Errorf("reading the outbox: %w", err))
		}
		if n := len(w.messages); n > 0 {
			size += len(w.messages[n-1].Data) + len(w.scratch)
		}
	}
	rows.Close() // the rest is read over
	if err := rows.Err(); err != nil {
		return MessagePage{}, Classified(fmt.Errorf("reading the outbox: %w", err))
	}
	if size >= bytes {
		w.limit = len(w.messages) // as if no more had been asked for
	}
	c, next, more, _, err := w.settle(len(w.messages), func(i int) int64 { return w.messages[i].Position })
	if err != nil {
		return MessagePage{}, err
	}
	return MessagePage{Messages: w.messages, Next: next, More: more, window: c}, nil
}

// scanMessage reads a row. One without a message only brings the view; it has a position below all others.
func (w *window) scanMessage(rows pgx.Rows) error {
	m := eventstore.RecordedMessage{}
	if err := rows.Scan(&w.seen, &w.epoch, &w.top, &m.Position, &m.ID, &m.Type, &m.Key, &m.Destination, (*[]byte)(&m.Data), &w.scratch, &m.RecordedAt); err != nil {
		return err
	}
	if w.view == "" {
		w.view = string(w.seen)
	}
	if m.Position < 0 {
		return nil
	}
	m.RecordedAt = m.RecordedAt.UTC()
	w.messages = append(w.messages, m)
	return DecodeEnvelope(w.scratch, &w.messages[len(w.messages)-1].Message)
}

// reused is a column that is read into the same memory for each row.
type reused []byte

// ScanBytes implements pgtype.BytesScanner.
func (r *reused) ScanBytes(src []byte) error {
	*r = append((*r)[:0], src...)
	return nil
}
