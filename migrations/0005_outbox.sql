-- +goose Up

-- The outbox is a log: appends add to it, sinks read it by their own checkpoints, and partitions that every sink has read are dropped whole. Nothing updates a row, so
-- there are no dead ones. slot spreads the keys over the shards in which a sink reads.
ALTER TABLE outbox_events RENAME TO outbox_events_before;
DROP INDEX outbox_events_order;
ALTER TABLE outbox_events_before DROP CONSTRAINT outbox_events_pkey;
CREATE SEQUENCE outbox_position CACHE 1;
CREATE TABLE outbox_events (
    position    bigint      NOT NULL DEFAULT nextval('outbox_position'),
    epoch       integer     NOT NULL DEFAULT 1,
    txid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    slot        smallint    NOT NULL GENERATED ALWAYS AS (hashtext(key) & 63) STORED,
    message_id  uuid        NOT NULL,
    type        text        NOT NULL,
    key         text        NOT NULL,
    destination text        NOT NULL,
    data        json        NOT NULL,
    metadata    json        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (position)
) PARTITION BY RANGE (position);
ALTER SEQUENCE outbox_position OWNED BY outbox_events.position;
CREATE INDEX outbox_events_order ON outbox_events (epoch, txid);

-- What finds no partition of its own, because nobody has made any for long, goes here: an append never fails for it.
CREATE TABLE outbox_events_rest PARTITION OF outbox_events DEFAULT;

-- The partitions, [from_position, to_position) each.
CREATE TABLE outbox_partitions (
    name          text   PRIMARY KEY,
    from_position bigint NOT NULL,
    to_position   bigint NOT NULL
);

-- How far each sink has read, in shards by key. The checkpoint is the views that eventstore.Checkpoint describes.
CREATE TABLE outbox_readers (
    sink        text        NOT NULL,
    shard       integer     NOT NULL CHECK (shard >= 0 AND shard < shards),
    shards      integer     NOT NULL,
    name        text        NOT NULL,
    epoch       integer     NOT NULL,
    done        pg_snapshot NOT NULL,
    floor       bigint      NOT NULL,
    until_epoch integer,
    until       pg_snapshot,
    until_floor bigint      NOT NULL DEFAULT 0,
    position    bigint      NOT NULL DEFAULT 0,
    published   bigint      NOT NULL DEFAULT 0,
    owner       text        NOT NULL DEFAULT '',
    lease_epoch bigint      NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    commands    bigint      NOT NULL DEFAULT 0, -- counts what people have done to the parked messages, so that the owner looks again
    error       json,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, shard)
) WITH (fillfactor = 50);

-- The processes that relay, so that they can share the shards evenly.
CREATE TABLE outbox_relays (
    owner   text        PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now()
);

-- Messages that a sink did not take, and all later ones of their keys: copies, since the log goes on. The oldest of a key is tried again when it is due; a dead one waits
-- for a person, and its followers with it.
CREATE TABLE outbox_parked (
    sequence    bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1),
    sink        text        NOT NULL,
    shard       integer     NOT NULL,
    key         text        NOT NULL,
    position    bigint      NOT NULL,
    message_id  uuid        NOT NULL,
    type        text        NOT NULL,
    destination text        NOT NULL,
    data        json        NOT NULL,
    metadata    json        NOT NULL,
    recorded_at timestamptz NOT NULL,
    attempts    integer     NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL DEFAULT now(),
    dead        boolean     NOT NULL DEFAULT false,
    reason      text        NOT NULL DEFAULT '',
    error       text        NOT NULL DEFAULT '',
    parked_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, shard, key, sequence)
);
CREATE INDEX outbox_parked_message ON outbox_parked (message_id);
CREATE INDEX outbox_parked_dead ON outbox_parked (sink) WHERE dead;

-- Messages that a person has decided are not published: what, to whom it was to go, who said so and why.
CREATE TABLE outbox_dropped (
    message_id uuid        NOT NULL,
    sink       text        NOT NULL,
    key        text        NOT NULL,
    type       text        NOT NULL,
    error      text        NOT NULL,
    reason     text        NOT NULL,
    actor      text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, message_id)
);

-- Answers of participants that had accepted an attempt. The first answer to an effect counts; told is for whoever moves sagas, to find new ones.
CREATE TABLE saga_answers (
    uid         uuid        NOT NULL,
    step        text        NOT NULL,
    direction   text        NOT NULL,
    rejected    boolean     NOT NULL,
    reason      text        NOT NULL,
    message     text        NOT NULL,
    response    json        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    told        boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (uid, step, direction)
);
CREATE INDEX saga_answers_untold ON saga_answers (received_at) WHERE NOT told;

-- They go with the saga's state row.
-- +goose StatementBegin
CREATE FUNCTION remove_answers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM saga_answers a USING removed r WHERE a.uid = r.uid;
    RETURN NULL;
END;
$$;
-- +goose StatementEnd
CREATE TRIGGER remove_answers AFTER DELETE ON saga_state REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION remove_answers();

-- maintain_outbox makes partitions ahead of what is appended and drops those that every reader has read to the end. Two calls at once do no harm: one does nothing. It asks
-- for the locks that it needs for a moment only; what it does not get it leaves for the next call. It returns how many partitions it made and dropped.
-- +goose StatementBegin
CREATE FUNCTION maintain_outbox(a_size bigint, a_ahead integer, OUT made integer, OUT dropped integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    top   bigint;
    upper bigint;
    name  text;
    old   outbox_partitions;
    last  record;
    seen  boolean;
BEGIN
    made := 0;
    dropped := 0;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('maintain_outbox', 0)) THEN
        RETURN;
    END IF;
    SELECT last_value INTO top FROM outbox_position;
    SELECT max(to_position) INTO upper FROM outbox_partitions;
    IF upper IS NULL OR upper <= top THEN -- appends go to the rest by now; the next partition begins where none has been yet
        upper := top + least(a_size, 10000);
    END IF;
    BEGIN
        WHILE upper < top + a_ahead * a_size LOOP
            name := 'outbox_events_' || upper;
            EXECUTE format('CREATE TABLE %I (LIKE outbox_events INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)', name);
            EXECUTE format('ALTER TABLE outbox_events ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', name, upper, upper + a_size);
            INSERT INTO outbox_partitions VALUES (name, upper, upper + a_size);
            upper := upper + a_size;
            made := made + 1;
        END LOOP;
    EXCEPTION WHEN lock_not_available OR check_violation THEN
        made := 0;
    END;

    FOR old IN SELECT * FROM outbox_partitions p WHERE p.to_position <= top ORDER BY p.from_position LOOP
        BEGIN
            FOR attempt IN 1..2 LOOP -- once to see whether it is worth a lock, and once more with it: then nobody is appending
                EXECUTE format('SELECT epoch, txid FROM %I ORDER BY epoch DESC, txid DESC LIMIT 1', old.name) INTO last;
                seen := last.txid IS NULL OR NOT EXISTS (SELECT FROM outbox_readers r
                    WHERE NOT (last.epoch < r.epoch OR last.epoch = r.epoch AND last.txid < pg_snapshot_xmin(r.done)));
                EXIT WHEN NOT seen;
                IF attempt = 1 THEN
                    LOCK TABLE outbox_events IN ACCESS EXCLUSIVE MODE;
                END IF;
            END LOOP;
            EXIT WHEN NOT seen;
            EXECUTE format('DROP TABLE %I', old.name);
            DELETE FROM outbox_partitions p WHERE p.name = old.name;
            dropped := dropped + 1;
        EXCEPTION WHEN lock_not_available THEN
            EXIT;
        END;
    END LOOP;

    DELETE FROM outbox_events_rest o WHERE o.position IN (SELECT r.position FROM outbox_events_rest r ORDER BY r.position LIMIT 10000)
        AND NOT EXISTS (SELECT FROM outbox_readers r WHERE NOT (o.epoch < r.epoch OR o.epoch = r.epoch AND o.txid < pg_snapshot_xmin(r.done)));
END;
$$;
-- +goose StatementEnd
REVOKE EXECUTE ON FUNCTION maintain_outbox(bigint, integer) FROM PUBLIC;

INSERT INTO outbox_events (epoch, txid, message_id, type, key, destination, data, metadata, recorded_at)
SELECT epoch, txid, message_id, type, key, destination, data, metadata, recorded_at FROM outbox_events_before ORDER BY position;
DROP TABLE outbox_events_before;
SELECT maintain_outbox(500000, 3);

-- read_outbox is to messages what read_events is to events, for the keys of one shard.
-- +goose StatementBegin
CREATE FUNCTION read_outbox(
    a_epoch integer, a_running xid8[], a_xmax xid8, a_floor bigint, a_from bigint, a_to bigint, a_limit integer,
    a_shard integer, a_shards integer, a_until_epoch integer, a_until pg_snapshot
) RETURNS SETOF outbox_events LANGUAGE plpgsql STABLE ROWS 1000
    SET enable_seqscan = off SET enable_bitmapscan = off SET max_parallel_workers_per_gather = 0 SET jit = off AS $$
BEGIN
    IF cardinality(a_running) > 0 THEN
        RETURN QUERY SELECT o.* FROM outbox_events o
            WHERE o.epoch = a_epoch AND o.txid = ANY (a_running) AND o.position + 0 > a_from AND o.position + 0 <= a_to AND o.slot % a_shards = a_shard
              AND (a_until IS NULL OR o.epoch < a_until_epoch OR o.epoch = a_until_epoch AND pg_visible_in_snapshot(o.txid, a_until));
    END IF;
    IF a_from < a_floor THEN
        RETURN QUERY SELECT o.* FROM outbox_events o
            WHERE (o.epoch, o.txid) >= (a_epoch, a_xmax) AND o.position + 0 > a_from AND o.position + 0 <= least(a_floor, a_to) AND o.slot % a_shards = a_shard
              AND (a_until IS NULL OR o.epoch < a_until_epoch OR o.epoch = a_until_epoch AND pg_visible_in_snapshot(o.txid, a_until));
    END IF;
    RETURN QUERY SELECT o.* FROM outbox_events o
        WHERE o.position > greatest(a_floor, a_from) AND o.position <= a_to AND (o.epoch, o.txid) >= (a_epoch, a_xmax) AND o.slot % a_shards = a_shard
          AND (a_until IS NULL OR o.epoch < a_until_epoch OR o.epoch = a_until_epoch AND pg_visible_in_snapshot(o.txid, a_until))
        ORDER BY o.position LIMIT a_limit;
END;
$$;
-- +goose StatementEnd
