-- +goose Up

-- outbox_is_held reports whether a transaction that is not over within a moment uses some tables: a dump, say. Whoever asked for an exclusive lock would wait for it, and everybody else
-- would wait behind that. It takes the moment itself.
-- +goose StatementBegin
CREATE FUNCTION outbox_is_held(a_tables oid[]) RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    before text[];
BEGIN
    before := outbox_holders(a_tables);
    IF cardinality(before) = 0 THEN
        RETURN false;
    END IF;
    PERFORM pg_sleep(0.2);
    RETURN before && outbox_holders(a_tables);
END;
$$;
-- +goose StatementEnd

-- outbox_holders returns the transactions of others that have locks on some tables.
-- +goose StatementBegin
CREATE FUNCTION outbox_holders(a_tables oid[]) RETURNS text[] LANGUAGE sql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{}') FROM pg_locks l
    WHERE l.granted AND l.locktype = 'relation' AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.relation = ANY (a_tables);
$$;
-- +goose StatementEnd
REVOKE EXECUTE ON FUNCTION outbox_is_held(oid[]), outbox_holders(oid[]) FROM PUBLIC;

-- maintain_outbox makes partitions ahead of what is appended and drops those that every reader has read to the end. Two calls at once do no harm: one does nothing. It asks
-- for the locks that it needs for a moment only, and not at all behind somebody who has the log for longer; what it does not get it leaves for the next call. It returns how many
-- partitions it made and dropped.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION maintain_outbox(a_size bigint, a_ahead integer, OUT made integer, OUT dropped integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    top   bigint;
    upper bigint;
    name  text;
    old   outbox_partitions;
    last  record;
    seen  boolean;
    held  boolean; -- null before it is asked for
BEGIN
    made := 0;
    dropped := 0;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('maintain_outbox', 0)) THEN
        RETURN;
    END IF;
    SELECT last_value INTO top FROM outbox_position;
    SELECT max(to_position) INTO upper FROM outbox_partitions;
    IF upper IS NULL OR upper < top + a_ahead * a_size THEN
        held := outbox_is_held(ARRAY['outbox_events_rest'::regclass::oid]); -- the one that is locked
        SELECT last_value INTO top FROM outbox_position; -- that took a moment, and no partition may be made of what is being appended
    END IF;
    IF upper IS NULL OR upper <= top THEN -- appends go to the rest by now; the next partition begins where none has been yet
        upper := top + least(a_size, 10000);
    END IF;
    BEGIN
        WHILE NOT coalesce(held, false) AND upper < top + a_ahead * a_size LOOP
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

    held := NULL;
    FOR old IN SELECT * FROM outbox_partitions p WHERE p.to_position <= top ORDER BY p.from_position LOOP
        BEGIN
            FOR attempt IN 1..2 LOOP -- once to see whether it is worth a lock, and once more with it: then nobody is appending
                EXECUTE format('SELECT epoch, txid FROM %I ORDER BY epoch DESC, txid DESC LIMIT 1', old.name) INTO last;
                seen := last.txid IS NULL OR NOT EXISTS (SELECT FROM outbox_readers r
                    WHERE NOT (last.epoch < r.epoch OR last.epoch = r.epoch AND last.txid < pg_snapshot_xmin(r.done)));
                EXIT WHEN NOT seen;
                IF attempt = 1 THEN
                    held := coalesce(held, outbox_is_held((SELECT array_agg(inhrelid) || 'outbox_events'::regclass::oid FROM pg_inherits WHERE inhparent = 'outbox_events'::regclass)));
                    EXIT WHEN held;
                    LOCK TABLE outbox_events IN ACCESS EXCLUSIVE MODE;
                END IF;
            END LOOP;
            EXIT WHEN held OR NOT seen;
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
