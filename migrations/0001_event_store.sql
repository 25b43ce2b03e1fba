-- +goose Up

-- One row per stream: the row that an append compares and locks first. Its lock keeps a stream's events in order.
CREATE TABLE streams (
    stream  text   PRIMARY KEY,
    version bigint NOT NULL CHECK (version > 0)
) WITH (fillfactor = 70);

-- One row per event. data and metadata are json, not jsonb: kept byte for byte, and a NUL escape in what a participant answered is no error.
-- txid is there for readers of the order of all events: a position is drawn before its transaction commits, so positions alone do not tell
-- what a reader has missed.
CREATE TABLE event_store (
    stream         text        NOT NULL,
    version        bigint      NOT NULL,
    position       bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1),
    txid           xid8        NOT NULL DEFAULT pg_current_xact_id(),
    event_id       uuid        NOT NULL,
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    data           json        NOT NULL,
    metadata       json        NOT NULL,
    recorded_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, version),
    CONSTRAINT event_store_event_id UNIQUE (event_id)
);
CREATE INDEX event_store_order ON event_store (txid, position);

-- One row per saga: the fold of its stream. It is updated all the time, so nothing that changes with each move is indexed (HOT updates).
CREATE TABLE saga_state (
    uid        uuid        PRIMARY KEY,
    namespace  text        NOT NULL,
    name       text        NOT NULL,
    phase      text        NOT NULL,
    finished   boolean     NOT NULL,
    version    bigint      NOT NULL,
    wake_at    timestamptz,
    state      json        NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE INDEX saga_state_unfinished ON saga_state (uid) WHERE NOT finished;

-- Messages committed with the change they report. Append-only: readers keep a checkpoint of their own.
CREATE TABLE outbox_events (
    position    bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    txid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    message_id  uuid        NOT NULL,
    type        text        NOT NULL,
    key         text        NOT NULL,
    destination text        NOT NULL,
    data        json        NOT NULL,
    metadata    json        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_events_order ON outbox_events (txid, position);

-- append_events is one append: the compare-and-set first, so that a loser draws no position, then everything else. It returns whether it was done and the
-- version that the stream has. It runs with the rights of its caller.
-- +goose StatementBegin
CREATE FUNCTION append_events(
    a_stream text, a_expected bigint,
    e_ids uuid[], e_types text[], e_schemas integer[], e_data json[], e_metadata json[],
    s_uid uuid, s_namespace text, s_name text, s_phase text, s_finished boolean, s_wake_at timestamptz, s_state json,
    m_ids uuid[], m_types text[], m_keys text[], m_destinations text[], m_data json[], m_metadata json[],
    OUT done boolean, OUT at_version bigint
) LANGUAGE plpgsql SECURITY INVOKER AS $$
DECLARE
    n constant bigint := cardinality(e_ids);
BEGIN
    IF a_expected = 0 THEN
        INSERT INTO streams (stream, version) VALUES (a_stream, n) ON CONFLICT (stream) DO NOTHING;
    ELSE
        UPDATE streams SET version = version + n WHERE stream = a_stream AND version = a_expected;
    END IF;
    done := FOUND;
    IF NOT done THEN
        SELECT version INTO at_version FROM streams WHERE stream = a_stream;
        at_version := coalesce(at_version, 0);
        RETURN;
    END IF;
    at_version := a_expected + n;

    INSERT INTO event_store (stream, version, event_id, type, schema_version, data, metadata)
    SELECT a_stream, a_expected + e.nth, e.id, e.type, e.schema_version, e.data, e.metadata
    FROM unnest(e_ids, e_types, e_schemas, e_data, e_metadata) WITH ORDINALITY AS e (id, type, schema_version, data, metadata, nth)
    ORDER BY e.nth;

    IF s_uid IS NOT NULL THEN
        INSERT INTO saga_state AS s (uid, namespace, name, phase, finished, version, wake_at, state)
        VALUES (s_uid, s_namespace, s_name, s_phase, s_finished, at_version, s_wake_at, s_state)
        ON CONFLICT (uid) DO UPDATE SET phase = excluded.phase, finished = excluded.finished, version = excluded.version,
            wake_at = excluded.wake_at, state = excluded.state, updated_at = now();
    END IF;

    IF cardinality(m_ids) > 0 THEN
        INSERT INTO outbox_events (message_id, type, key, destination, data, metadata)
        SELECT m.id, m.type, m.key, m.destination, m.data, m.metadata
        FROM unnest(m_ids, m_types, m_keys, m_destinations, m_data, m_metadata) WITH ORDINALITY AS m (id, type, key, destination, data, metadata, nth)
        ORDER BY m.nth;
    END IF;
END;
$$;
-- +goose StatementEnd
