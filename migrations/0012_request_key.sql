-- +goose Up

-- The key with which the HTTP API signs the objects that it creates, so that it knows them again. Only the operator knows it. A UUID of version 4 has 122 random bits.
CREATE TABLE api_request_key (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    key bytea   NOT NULL CHECK (octet_length(key) = 32)
);
INSERT INTO api_request_key (key) VALUES (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));
