-- +goose Up

-- An answer counts for one round of attempts: a person who has a compensation tried again asks anew. round is how many attempts had been made before.
ALTER TABLE saga_answers ADD COLUMN round integer NOT NULL DEFAULT 0;
ALTER TABLE saga_answers DROP CONSTRAINT saga_answers_pkey;
ALTER TABLE saga_answers ADD PRIMARY KEY (uid, step, direction, round);

-- Callbacks that expired long ago are removed.
CREATE INDEX saga_callbacks_expiry ON saga_callbacks (expires_at);
