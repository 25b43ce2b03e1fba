-- +goose Up

-- Where participants answer attempts later, by the hash of the token that each was given: whoever reads this table cannot answer for anybody.
CREATE TABLE saga_callbacks (
    token_hash bytea       PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    uid        uuid        NOT NULL,
    step       text        NOT NULL,
    direction  text        NOT NULL,
    attempt    integer     NOT NULL,
    issued_at  timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX saga_callbacks_uid ON saga_callbacks (uid);

-- Sagas that whoever moves them is to look at, because something was appended by somebody else.
CREATE TABLE saga_nudges (
    uid uuid PRIMARY KEY
);

-- They go with the saga's state row, as the answers do.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION remove_answers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM saga_answers a USING removed r WHERE a.uid = r.uid;
    DELETE FROM saga_callbacks c USING removed r WHERE c.uid = r.uid;
    DELETE FROM saga_nudges n USING removed r WHERE n.uid = r.uid;
    RETURN NULL;
END;
$$;
-- +goose StatementEnd
