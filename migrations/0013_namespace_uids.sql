-- +goose Up

-- The uid of the namespace that a saga was in, because a namespace of the same name may be made again for somebody else. It is empty for sagas that an older version of the operator started.
ALTER TABLE saga_history_rows ADD COLUMN namespace_uid text NOT NULL DEFAULT '';

CREATE OR REPLACE VIEW saga_history AS
SELECT h.uid, h.version, h.namespace, h.name, h.at, h.type, h.step, h.direction, h.attempt, h.outcome, h.reason, h.message, h.actor, h.retry_at, h.namespace_uid
FROM saga_history_rows h
WHERE h.generation = (SELECT generation FROM projections WHERE name = 'saga_history' AND status = 'live');
