package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/eventstore"
)

// peer is a store of the shape that message-db 1.3 has, as far as an append goes: one message a call, and a lock for each category that is held until the commit. It
// shows what that lock costs, with the same driver and load.
type peer struct {
	eventstore.Store
	pool *pgxpool.Pool
}

// peerSchema is what message-db makes of a message: its three indexes, and its way to write one.
const peerSchema = `
CREATE SCHEMA peer;
CREATE TABLE peer.messages (
    id uuid NOT NULL, stream_name text NOT NULL, type text NOT NULL, position bigint NOT NULL, global_position bigserial PRIMARY KEY,
    data jsonb, metadata jsonb, time timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'utc')
);
CREATE UNIQUE INDEX ON peer.messages (id);
CREATE UNIQUE INDEX ON peer.messages (stream_name, position);
CREATE INDEX ON peer.messages (split_part(stream_name, '-', 1), global_position, split_part(metadata->>'correlationStreamName', '-', 1));
CREATE FUNCTION peer.write(a_id uuid, a_stream text, a_type text, a_data jsonb, a_metadata jsonb, a_expected bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    at bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(split_part(a_stream, '-', 1), 0));
    SELECT max(position) INTO at FROM peer.messages WHERE stream_name = a_stream;
    at := coalesce(at, -1);
    IF a_expected IS NOT NULL AND a_expected <> at THEN
        RAISE EXCEPTION 'wrong expected version: % (stream %, at %)', a_expected, a_stream, at;
    END IF;
    INSERT INTO peer.messages (id, stream_name, position, type, data, metadata) VALUES (a_id, a_stream, at + 1, a_type, a_data, a_metadata);
    RETURN at + 1;
END;
$$;`

func newPeer(ctx context.Context, pool *pgxpool.Pool) (*peer, error) {
	if _, err := pool.Exec(ctx, peerSchema); err != nil {
		return nil, fmt.Errorf("making the peer's tables: %w", err)
	}
	return &peer{pool: pool}, nil
}

// Append writes the events of an append one by one; the benchmark brings one.
func (p *peer) Append(ctx context.Context, a eventstore.Append) (eventstore.Appended, error) {
	var at int64
	for i, e := range a.Events {
		err := p.pool.QueryRow(ctx, `SELECT peer.write($1, $2, $3, $4, '{}', $5)`, e.ID, a.Stream, e.Type, e.Data, a.Expected-1+int64(i)).Scan(&at)
		if err != nil {
			return eventstore.Appended{}, err
		}
	}
	return eventstore.Appended{Version: at + 1}, nil
}
