-- +goose Up

-- What happened in each saga, one row per event: what people read. Outputs and inputs stay in the events.
CREATE TABLE saga_history_rows (
    generation integer     NOT NULL,
    uid        uuid        NOT NULL,
    version    bigint      NOT NULL,
    namespace  text        NOT NULL,
    name       text        NOT NULL,
    at         timestamptz NOT NULL,
    type       text        NOT NULL,
    step       text        NOT NULL DEFAULT '',
    direction  text        NOT NULL DEFAULT '',
    attempt    integer     NOT NULL DEFAULT 0,
    outcome    text        NOT NULL DEFAULT '',
    reason     text        NOT NULL DEFAULT '',
    message    text        NOT NULL DEFAULT '',
    actor      text        NOT NULL DEFAULT '',
    retry_at   timestamptz,
    PRIMARY KEY (generation, uid, version)
);
CREATE INDEX saga_history_rows_names ON saga_history_rows (generation, namespace, name) WHERE version = 1;

-- How many sagas there are by day of their start, namespace, definition and phase, and how long those that ended took.
CREATE TABLE saga_summary_rows (
    generation integer NOT NULL,
    day        date    NOT NULL,
    namespace  text    NOT NULL,
    definition text    NOT NULL, -- empty for sagas that bring their own steps
    phase      text    NOT NULL,
    sagas      bigint  NOT NULL,
    seconds    double precision NOT NULL DEFAULT 0, -- of all that ended, together
    slowest    double precision NOT NULL DEFAULT 0, -- of one
    PRIMARY KEY (generation, day, namespace, definition, phase)
) WITH (fillfactor = 50);

-- The sagas that have not ended, as the summary counts them.
CREATE TABLE saga_summary_open (
    generation integer     NOT NULL,
    uid        uuid        NOT NULL,
    namespace  text        NOT NULL,
    definition text        NOT NULL,
    phase      text        NOT NULL,
    started_at timestamptz NOT NULL,
    PRIMARY KEY (generation, uid)
);

CREATE VIEW saga_history AS
SELECT h.uid, h.version, h.namespace, h.name, h.at, h.type, h.step, h.direction, h.attempt, h.outcome, h.reason, h.message, h.actor, h.retry_at
FROM saga_history_rows h
WHERE h.generation = (SELECT generation FROM projections WHERE name = 'saga_history' AND status = 'live');

CREATE VIEW saga_summary AS
SELECT s.day, s.namespace, s.definition, s.phase, s.sagas, s.seconds, s.slowest
FROM saga_summary_rows s
WHERE s.sagas > 0 AND s.generation = (SELECT generation FROM projections WHERE name = 'saga_summary' AND status = 'live');
