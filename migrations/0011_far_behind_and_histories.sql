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
