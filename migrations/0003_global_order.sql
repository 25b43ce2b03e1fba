-- +goose Up

-- The database clusters that the store has lived in, oldest first: transaction ids of different clusters say nothing about one another. A restored dump brings the
-- rows of the clusters before; enter_cluster adds the one it finds itself in.
CREATE TABLE store_clusters (
    epoch             integer     PRIMARY KEY,
    system_identifier bigint      NOT NULL,
    since             timestamptz NOT NULL DEFAULT now()
);
INSERT INTO store_clusters (epoch, system_identifier) SELECT 1, system_identifier FROM pg_control_system();

-- enter_cluster is called on every new connection before anything is appended, and returns the epoch of this cluster.
-- +goose StatementBegin
CREATE FUNCTION enter_cluster() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    here constant bigint := (SELECT system_identifier FROM pg_control_system());
    last store_clusters;
BEGIN
    SELECT * INTO last FROM store_clusters ORDER BY epoch DESC LIMIT 1;
    IF last.system_identifier = here THEN
        RETURN last.epoch;
    END IF;
    LOCK TABLE store_clusters IN SHARE ROW EXCLUSIVE MODE; -- of many connections one adds the row
    SELECT * INTO last FROM store_clusters ORDER BY epoch DESC LIMIT 1;
    IF last.system_identifier IS DISTINCT FROM here THEN
        INSERT INTO store_clusters (epoch, system_identifier) VALUES (coalesce(last.epoch, 0) + 1, here) RETURNING * INTO last;
    END IF;
    RETURN last.epoch;
END;
$$;
-- +goose StatementEnd

-- A reader with a long way to go reads by position; one that is nearly there looks for the few transactions that were running when it last looked.
CREATE INDEX event_store_position ON event_store (position);

-- read_events returns events that a checkpoint has not seen and the calling statement's snapshot sees, from above a position up to another; with a_until, only those that
-- it sees too. They are of three kinds: those of transactions that the checkpoint knows to have been running, which may have any position; those of other transactions that
-- it has not seen with positions up to its floor: they were running too, but a snapshot ends at the last transaction that had ended; and all that came later, above the
-- floor, which are as many as it takes. The first two are few and found by transaction, the last by position: a page of a long backlog costs what it returns. The planner
-- cannot know all that and is not left a choice.
-- +goose StatementBegin
CREATE FUNCTION read_events(
    a_epoch integer, a_running xid8[], a_xmax xid8, a_floor bigint, a_from bigint, a_to bigint, a_limit integer,
    a_categories text[], a_types text[], a_until_epoch integer, a_until pg_snapshot
) RETURNS SETOF event_store LANGUAGE plpgsql STABLE ROWS 1000
    SET enable_seqscan = off SET enable_bitmapscan = off SET max_parallel_workers_per_gather = 0 SET jit = off AS $$
BEGIN
    IF cardinality(a_running) > 0 THEN
        RETURN QUERY SELECT e.* FROM event_store e
            WHERE e.epoch = a_epoch AND e.txid = ANY (a_running) AND e.position + 0 > a_from AND e.position + 0 <= a_to
              AND (a_categories IS NULL OR split_part(e.stream, '-', 1) = ANY (a_categories)) AND (a_types IS NULL OR e.type = ANY (a_types))
              AND (a_until IS NULL OR e.epoch < a_until_epoch OR e.epoch = a_until_epoch AND pg_visible_in_snapshot(e.txid, a_until));
    END IF;
    IF a_from < a_floor THEN
        RETURN QUERY SELECT e.* FROM event_store e
            WHERE (e.epoch, e.txid) >= (a_epoch, a_xmax) AND e.position + 0 > a_from AND e.position + 0 <= least(a_floor, a_to)
              AND (a_categories IS NULL OR split_part(e.stream, '-', 1) = ANY (a_categories)) AND (a_types IS NULL OR e.type = ANY (a_types))
              AND (a_until IS NULL OR e.epoch < a_until_epoch OR e.epoch = a_until_epoch AND pg_visible_in_snapshot(e.txid, a_until));
    END IF;
    RETURN QUERY SELECT e.* FROM event_store e
        WHERE e.position > greatest(a_floor, a_from) AND e.position <= a_to AND (e.epoch, e.txid) >= (a_epoch, a_xmax)
          AND (a_categories IS NULL OR split_part(e.stream, '-', 1) = ANY (a_categories)) AND (a_types IS NULL OR e.type = ANY (a_types))
          AND (a_until IS NULL OR e.epoch < a_until_epoch OR e.epoch = a_until_epoch AND pg_visible_in_snapshot(e.txid, a_until))
        ORDER BY e.position LIMIT a_limit;
END;
$$;
-- +goose StatementEnd

ALTER TABLE streams ADD COLUMN archived boolean NOT NULL DEFAULT false;

-- Set once, when the saga finishes, so that moving a saga still updates its row in place.
ALTER TABLE saga_state ADD COLUMN finished_at timestamptz;
UPDATE saga_state SET finished_at = updated_at WHERE finished;
CREATE INDEX saga_state_finished ON saga_state (finished_at) WHERE finished;

CREATE TABLE snapshots (
    stream         text        PRIMARY KEY,
    version        bigint      NOT NULL,
    schema_version integer     NOT NULL,
    checksum       bytea       NOT NULL,
    data           json        NOT NULL,
    taken_at       timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);

-- One row per generation of a projection: a rebuild makes a new one beside the one that is live. The checkpoint is the views that eventstore.Checkpoint describes.
CREATE TABLE projections (
    name        text        NOT NULL,
    generation  integer     NOT NULL CHECK (generation > 0),
    version     integer     NOT NULL CHECK (version > 0),
    status      text        NOT NULL CHECK (status IN ('building', 'live', 'retired')),
    inline      boolean     NOT NULL DEFAULT false, -- moves with the appends themselves, without a checkpoint
    epoch       integer     NOT NULL DEFAULT 0,
    done        pg_snapshot NOT NULL DEFAULT '1:1:',
    floor       bigint      NOT NULL DEFAULT 0,
    until_epoch integer,
    until       pg_snapshot,
    until_floor bigint      NOT NULL DEFAULT 0,
    position    bigint      NOT NULL DEFAULT 0,
    handled     bigint      NOT NULL DEFAULT 0,
    behind      bigint      NOT NULL DEFAULT 0,
    read_until  timestamptz,
    owner       text        NOT NULL DEFAULT '',
    lease_epoch bigint      NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    failure     json,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, generation)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX projections_live ON projections (name) WHERE status = 'live';
CREATE UNIQUE INDEX projections_building ON projections (name) WHERE status = 'building';

-- Events that a person has decided a projection does without; a rebuild does without them too.
CREATE TABLE projection_skips (
    name     text        NOT NULL,
    event_id uuid        NOT NULL,
    reason   text        NOT NULL,
    actor    text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, event_id)
);

-- Events are facts: nobody changes them, whatever their rights, and only retention removes them.
-- +goose StatementBegin
CREATE FUNCTION events_are_facts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('saga.retention', true) = pg_current_xact_id()::text THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION '% of % is refused: events are never changed, and only remove_finished_sagas removes them', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END;
$$;
-- +goose StatementEnd
CREATE TRIGGER events_are_facts BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store FOR EACH STATEMENT EXECUTE FUNCTION events_are_facts();

-- remove_finished_sagas removes up to a_limit sagas that finished before a_before, whole: events, snapshot, state row. What stays is the stream's row, archived, so
-- that the uid cannot begin again. A saga stays while a projection has not read all of it.
-- +goose StatementBegin
CREATE FUNCTION remove_finished_sagas(a_before timestamptz, a_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    uids  uuid[];
    names text[];
BEGIN
    SELECT array_agg(s.uid), array_agg(s.stream) INTO uids, names FROM (
        SELECT st.uid, 'saga-' || st.uid AS stream FROM saga_state st
        WHERE st.finished AND st.finished_at < a_before
          AND NOT EXISTS (
            SELECT FROM projections p CROSS JOIN LATERAL (
                SELECT e.epoch, e.txid FROM event_store e WHERE e.stream = 'saga-' || st.uid ORDER BY e.version DESC LIMIT 1) last
            WHERE p.status <> 'retired' AND (NOT p.inline OR p.status = 'building') AND NOT (last.epoch < p.epoch OR last.epoch = p.epoch AND pg_visible_in_snapshot(last.txid, p.done)))
        ORDER BY st.finished_at LIMIT a_limit FOR UPDATE OF st SKIP LOCKED) s;
    IF uids IS NULL THEN
        RETURN 0;
    END IF;
    UPDATE streams SET archived = true WHERE stream = ANY (names);
    PERFORM set_config('saga.retention', pg_current_xact_id()::text, true);
    DELETE FROM event_store WHERE stream = ANY (names);
    PERFORM set_config('saga.retention', '', true);
    DELETE FROM snapshots WHERE stream = ANY (names);
    DELETE FROM saga_state WHERE uid = ANY (uids);
    RETURN cardinality(uids);
END;
$$;
-- +goose StatementEnd
REVOKE EXECUTE ON FUNCTION remove_finished_sagas(timestamptz, integer) FROM PUBLIC;

-- last_repeated returns the version of the last of some events, where a stream has all of them, in this order and one after the other; else NULL.
-- +goose StatementBegin
CREATE FUNCTION last_repeated(a_stream text, a_ids uuid[]) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- By the ids, always: the stream's own index would read all of a long stream.
    RETURN (SELECT max(version) FROM event_store WHERE event_id = ANY (a_ids) AND stream || '' = a_stream
        HAVING array_agg(event_id ORDER BY version) = a_ids AND max(version) - min(version) + 1 = cardinality(a_ids));
END;
$$;
-- +goose StatementEnd

-- append_streams commits many appends in one call. a_* has one element for each append, sorted by stream, each stream once; e_*, s_* and m_* are their events, state
-- rows and messages, each naming its append by its place in a_*. The compare-and-set comes first, so that a loser draws no position, and rows are locked in the order
-- of the streams' names everywhere, so that two calls never wait for each other in a circle. The outcome of an append is 1: appended, and the version is that of the
-- stream before; 2: the stream has these events already, up to the version; 0: wrong version; 3: archived. With a_all, one that does not succeed fails the call.
-- It runs with the rights of its caller.
-- +goose StatementBegin
CREATE FUNCTION append_streams(
    a_all boolean, a_streams text[], a_expected bigint[], a_counts integer[],
    e_of integer[], e_nth integer[], e_ids uuid[], e_types text[], e_schemas integer[], e_data json[], e_metadata json[],
    s_of integer[] DEFAULT '{}', s_uids uuid[] DEFAULT '{}', s_namespaces text[] DEFAULT '{}', s_names text[] DEFAULT '{}', s_phases text[] DEFAULT '{}',
    s_finished boolean[] DEFAULT '{}', s_wake_at timestamptz[] DEFAULT '{}', s_states json[] DEFAULT '{}',
    m_of integer[] DEFAULT '{}', m_ids uuid[] DEFAULT '{}', m_types text[] DEFAULT '{}', m_keys text[] DEFAULT '{}', m_destinations text[] DEFAULT '{}',
    m_data json[] DEFAULT '{}', m_metadata json[] DEFAULT '{}',
    OUT outcomes integer[], OUT versions bigint[], OUT at_epoch integer, OUT at_txid xid8
) LANGUAGE plpgsql SECURITY INVOKER AS $$
DECLARE
    n      constant integer := cardinality(a_streams);
    made   text[] := '{}';
    failed integer;
BEGIN
    at_txid := pg_current_xact_id();
    SELECT max(epoch) INTO at_epoch FROM store_clusters;
    IF n = 1 AND a_expected[1] > 0 THEN
        UPDATE streams SET version = version + a_counts[1] WHERE stream = a_streams[1] AND version = a_expected[1] AND NOT archived;
        IF FOUND THEN
            outcomes := ARRAY[1];
            versions := a_expected;
        END IF;
    ELSIF 0 >= ANY (a_expected) THEN
        WITH new AS (
            INSERT INTO streams (stream, version)
            SELECT a.stream, a.n FROM unnest(a_streams, a_expected, a_counts) AS a (stream, expected, n) WHERE a.expected <= 0
            ON CONFLICT (stream) DO NOTHING RETURNING stream)
        SELECT coalesce(array_agg(stream), '{}') INTO made FROM new;
        IF cardinality(made) = n THEN
            outcomes := array_fill(1, ARRAY[n]);
            versions := array_fill(0::bigint, ARRAY[n]);
        END IF;
    END IF;

    IF outcomes IS NULL THEN -- there is one among them that is not new, or has lost
        PERFORM FROM streams WHERE stream = ANY (a_streams) ORDER BY stream COLLATE "C" FOR NO KEY UPDATE;
        SELECT array_agg(coalesce(o.outcome, CASE WHEN o.repeated IS NOT NULL THEN 2 WHEN o.archived THEN 3 WHEN o.expected = -1 THEN 1 ELSE 0 END) ORDER BY o.nth),
            array_agg(coalesce(CASE WHEN o.outcome IS NULL THEN o.repeated END, o.version) ORDER BY o.nth)
        INTO outcomes, versions
        FROM (
            SELECT d.*, CASE WHEN d.outcome IS NULL THEN last_repeated(d.stream,
                    (SELECT array_agg(i.id ORDER BY i.nth) FROM unnest(e_of, e_nth, e_ids) AS i (of, nth, id) WHERE i.of = d.nth)) END AS repeated
            FROM (
                SELECT a.stream, a.nth, a.expected, s.archived,
                    CASE WHEN a.stream = ANY (made) THEN 0 ELSE coalesce(s.version, 0) END AS version,
                    CASE WHEN a.stream = ANY (made) OR s.version = a.expected AND NOT s.archived THEN 1 WHEN s.stream IS NULL THEN 0 END AS outcome
                FROM unnest(a_streams, a_expected) WITH ORDINALITY AS a (stream, expected, nth) LEFT JOIN streams s USING (stream)
                OFFSET 0
            ) d
        ) o;
        IF a_all THEN
            failed := least(array_position(outcomes, 0), array_position(outcomes, 3));
            IF failed IS NOT NULL THEN
                RAISE EXCEPTION 'stream % does not take the append', a_streams[failed]
                    USING ERRCODE = 'SG001', DETAIL = format('%s %s %s', failed, outcomes[failed], versions[failed]);
            END IF;
        END IF;
        UPDATE streams s SET version = s.version + a.n FROM unnest(a_streams, a_counts, outcomes) AS a (stream, n, outcome)
        WHERE s.stream = a.stream AND a.outcome = 1 AND a.stream <> ALL (made);
    END IF;

    INSERT INTO event_store (epoch, stream, version, event_id, type, schema_version, data, metadata)
    SELECT at_epoch, a_streams[e.of], versions[e.of] + e.nth, e.id, e.type, e.schema_version, e.data, e.metadata
    FROM unnest(e_of, e_nth, e_ids, e_types, e_schemas, e_data, e_metadata) WITH ORDINALITY AS e (of, nth, id, type, schema_version, data, metadata, place)
    WHERE outcomes[e.of] = 1 ORDER BY e.place;

    IF cardinality(s_of) > 0 THEN
        INSERT INTO saga_state AS s (uid, namespace, name, phase, finished, finished_at, version, wake_at, state)
        SELECT n.uid, n.namespace, n.name, n.phase, n.finished, CASE WHEN n.finished THEN now() END, versions[n.of] + a_counts[n.of], n.wake_at, n.state
        FROM unnest(s_of, s_uids, s_namespaces, s_names, s_phases, s_finished, s_wake_at, s_states) AS n (of, uid, namespace, name, phase, finished, wake_at, state)
        WHERE outcomes[n.of] = 1
        ON CONFLICT (uid) DO UPDATE SET phase = excluded.phase, finished = excluded.finished,
            finished_at = CASE WHEN excluded.finished THEN coalesce(s.finished_at, excluded.finished_at) END,
            version = excluded.version, wake_at = excluded.wake_at, state = excluded.state, updated_at = now();
    END IF;

    IF cardinality(m_of) > 0 THEN
        INSERT INTO outbox_events (epoch, message_id, type, key, destination, data, metadata)
        SELECT at_epoch, m.id, m.type, m.key, m.destination, m.data, m.metadata
        FROM unnest(m_of, m_ids, m_types, m_keys, m_destinations, m_data, m_metadata) WITH ORDINALITY AS m (of, id, type, key, destination, data, metadata, place)
        WHERE outcomes[m.of] = 1 ORDER BY m.place;
    END IF;
END;
$$;
-- +goose StatementEnd
DROP FUNCTION append_events;

-- append_one is the short way for the usual append that stands alone: events only, to a stream that is new or at its expected version. Everything else goes the long way.
-- +goose StatementBegin
CREATE FUNCTION append_one(
    a_stream text, a_expected bigint, e_ids uuid[], e_types text[], e_schemas integer[], e_data json[], e_metadata json[],
    OUT outcome integer, OUT version bigint, OUT at_epoch integer, OUT at_txid xid8
) LANGUAGE plpgsql SECURITY INVOKER AS $$
DECLARE
    n constant integer := cardinality(e_ids);
BEGIN
    IF a_expected = 0 THEN
        INSERT INTO streams AS s (stream, version) VALUES (a_stream, n) ON CONFLICT (stream) DO NOTHING;
    ELSE
        UPDATE streams s SET version = s.version + n WHERE s.stream = a_stream AND s.version = a_expected AND NOT s.archived;
    END IF;
    IF NOT FOUND THEN
        SELECT f.outcomes[1], f.versions[1], f.at_epoch, f.at_txid INTO outcome, version, at_epoch, at_txid
        FROM append_streams(false, ARRAY[a_stream], ARRAY[a_expected], ARRAY[n], array_fill(1, ARRAY[n]), ARRAY(SELECT generate_series(1, n)),
            e_ids, e_types, e_schemas, e_data, e_metadata) f;
        RETURN;
    END IF;
    outcome := 1;
    version := a_expected;
    at_txid := pg_current_xact_id();
    at_epoch := (SELECT max(epoch) FROM store_clusters);
    INSERT INTO event_store (epoch, stream, version, event_id, type, schema_version, data, metadata)
    SELECT at_epoch, a_stream, a_expected + e.nth, e.id, e.type, e.schema_version, e.data, e.metadata
    FROM unnest(e_ids, e_types, e_schemas, e_data, e_metadata) WITH ORDINALITY AS e (id, type, schema_version, data, metadata, nth)
    ORDER BY e.nth;
END;
$$;
-- +goose StatementEnd
