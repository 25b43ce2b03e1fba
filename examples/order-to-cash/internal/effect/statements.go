package effect

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// statements are the queries of this package, for one schema.
type statements struct {
	setup, claim, stored, store, log, calls, act, state, tombstone, undo string
}

func statementsFor(schema string) statements {
	in := func(query string) string {
		return strings.ReplaceAll(query, "$schema", pgx.Identifier{schema}.Sanitize())
	}
	return statements{
		setup: in(setup),

		// A duplicate waits here until the transaction of the first has ended: then it either finds the stored answer, or is the first.
		claim:  in(`INSERT INTO $schema.effects (key, fingerprint) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING`),
		stored: in(`SELECT fingerprint, status, answer FROM $schema.effects WHERE key = $1`),
		store:  in(`UPDATE $schema.effects SET status = $2, answer = $3 WHERE key = $1`),
		log:    in(`INSERT INTO $schema.calls (key, effect, what) VALUES ($1, $2, $3)`),
		calls:  in(`SELECT coalesce(json_agg(c), '[]')::text FROM (SELECT * FROM $schema.calls_by_key ORDER BY first DESC LIMIT 1000) c`),

		act:       in(`INSERT INTO $schema.barrier (order_id, state) VALUES ($1, 'done') ON CONFLICT (order_id) DO NOTHING`),
		state:     in(`SELECT state FROM $schema.barrier WHERE order_id = $1`),
		tombstone: in(`INSERT INTO $schema.barrier (order_id, state) VALUES ($1, 'undone') ON CONFLICT (order_id) DO NOTHING`),
		undo:      in(`UPDATE $schema.barrier SET state = 'undone' WHERE order_id = $1 AND state = 'done'`),
	}
}

// The log of calls is appended to and never updated: counters in a row of their own would make duplicates wait for one another.
const setup = `
CREATE SCHEMA IF NOT EXISTS $schema;

CREATE TABLE IF NOT EXISTS $schema.effects (
    key         text PRIMARY KEY,
    fingerprint bytea NOT NULL,
    status      int,
    answer      bytea,
    at          timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS $schema.barrier (
    order_id text PRIMARY KEY,
    state    text NOT NULL CHECK (state IN ('done', 'undone'))
);

CREATE TABLE IF NOT EXISTS $schema.calls (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key    text NOT NULL,
    effect text NOT NULL,
    what   text NOT NULL CHECK (what IN ('delivered', 'acted', 'nothing', 'refused')),
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE OR REPLACE VIEW $schema.calls_by_key AS
SELECT key, effect,
       count(*) FILTER (WHERE what = 'delivered') AS deliveries,
       count(*) FILTER (WHERE what = 'acted')     AS effects,
       count(*) FILTER (WHERE what = 'nothing')   AS nothing,
       count(*) FILTER (WHERE what = 'refused')   AS refused,
       min(id)                                    AS first
FROM $schema.calls
GROUP BY key, effect;
`
