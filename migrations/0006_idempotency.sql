-- +goose Up

-- Keys of requests to the HTTP API. The statements are idempotency.Schema: the package makes the table for services that have no migrations.
SELECT pg_advisory_xact_lock(hashtextextended('idempotency_keys', 0));
-- Fencing numbers come from one sequence, so that a key that was given back, or has expired, goes on with greater ones.
CREATE SEQUENCE IF NOT EXISTS idempotency_fences;
CREATE TABLE IF NOT EXISTS idempotency_keys (
    realm       text        NOT NULL,
    key         text        NOT NULL,
    fingerprint bytea       NOT NULL,
    state       text        NOT NULL CHECK (state IN ('started', 'completed', 'failed')),
    fence       bigint      NOT NULL DEFAULT nextval('idempotency_fences'),
    lease_until timestamptz,
    status      integer,
    header      json,
    body        bytea,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (realm, key)
);
CREATE INDEX IF NOT EXISTS idempotency_keys_expires_at ON idempotency_keys (expires_at);
