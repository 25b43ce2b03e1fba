-- +goose Up

-- Events that the handler of a subscription has failed at, and all later ones of their streams: copies, since the subscription reads on. The first of a stream is tried again when it is due; a dead
-- one waits for a person, and its followers with it. How far a subscription has read is in projections, under its name with subscription_ before it.
CREATE TABLE event_handlers_parked (
    subscription   text        NOT NULL,
    stream         text        NOT NULL,
    version        bigint      NOT NULL,
    position       bigint      NOT NULL,
    event_id       uuid        NOT NULL,
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    data           json        NOT NULL,
    metadata       json        NOT NULL,
    recorded_at    timestamptz NOT NULL,
    attempts       integer     NOT NULL DEFAULT 0,
    due_at         timestamptz NOT NULL DEFAULT now(),
    dead           boolean     NOT NULL DEFAULT false,
    error          text        NOT NULL DEFAULT '',
    parked_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subscription, stream, version)
);
CREATE INDEX event_handlers_parked_due ON event_handlers_parked (subscription, due_at) WHERE NOT dead;
CREATE INDEX event_handlers_parked_dead ON event_handlers_parked (subscription) WHERE dead;

-- Events that a person has decided a subscription does without: which, who said so and why.
CREATE TABLE event_handlers_dropped (
    subscription text        NOT NULL,
    event_id     uuid        NOT NULL,
    stream       text        NOT NULL,
    version      bigint      NOT NULL,
    type         text        NOT NULL,
    error        text        NOT NULL,
    reason       text        NOT NULL,
    actor        text        NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subscription, event_id)
);

-- What a subscription has done, it has done: it is not built anew as a read model is.
ALTER TABLE projections ADD CONSTRAINT subscriptions_are_not_rebuilt CHECK (generation = 1 OR NOT starts_with(name, 'subscription_'));
