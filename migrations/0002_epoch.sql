-- +goose Up

-- epoch says in which database cluster a row's txid was drawn: where a dump is restored, transaction ids may begin again, lower. Whoever owns the tables
-- raises the default then, so that an append reads nothing for it. A constant default rewrites no rows.
ALTER TABLE event_store ADD COLUMN epoch integer NOT NULL DEFAULT 1;
ALTER TABLE outbox_events ADD COLUMN epoch integer NOT NULL DEFAULT 1;

DROP INDEX event_store_order;
DROP INDEX outbox_events_order;
CREATE INDEX event_store_order ON event_store (epoch, txid, position);
CREATE INDEX outbox_events_order ON outbox_events (epoch, txid, position);
