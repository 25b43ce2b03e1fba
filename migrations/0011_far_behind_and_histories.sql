-- +goose Up

-- The first page of a reader that is far behind looks, among all that came since, for the few transactions that were running when it last looked. The functions compare position + 0, so that they
-- never search by position for it; indexed as such, it is compared in the index, and no row of the backlog is fetched in vain.
DROP INDEX event_store_order;
CREATE INDEX event_store_order ON event_store (epoch, txid, (position + 0));
DROP INDEX outbox_events_order;
CREATE INDEX outbox_events_order ON outbox_events (epoch, txid, (position + 0));

-- The history that people read goes with the saga's state row, as its events do: in every generation, those that are being removed included.
-- +goose StatementBegin
CREATE FUNCTION remove_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM saga_history_rows h USING removed r, projections p WHERE p.name = 'saga_history' AND h.generation = p.generation AND h.uid = r.uid;
    RETURN NULL;
END;
$$;
-- +goose StatementEnd
CREATE TRIGGER remove_history AFTER DELETE ON saga_state REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION remove_history();

-- As before, but it adds nothing to an empty table: that has rows from its first moment on, and is empty only while a dump is being restored, which brings them.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION enter_cluster() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    here constant bigint := (SELECT system_identifier FROM pg_control_system());
    last store_clusters;
BEGIN
    SELECT * INTO last FROM store_clusters ORDER BY epoch DESC LIMIT 1;
    IF last.epoch IS NULL OR last.system_identifier = here THEN
        RETURN last.epoch;
    END IF;
    LOCK TABLE store_clusters IN SHARE ROW EXCLUSIVE MODE; -- of many connections one adds the row
    SELECT * INTO last FROM store_clusters ORDER BY epoch DESC LIMIT 1;
    IF last.system_identifier <> here THEN
        INSERT INTO store_clusters (epoch, system_identifier) VALUES (last.epoch + 1, here) RETURNING * INTO last;
    END IF;
    RETURN last.epoch;
END;
$$;
-- +goose StatementEnd
