package effect

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// statements are the queries of the log of calls, for one schema.
type statements struct{ setup, log, shown string }

func statementsFor(schema string) statements {
	in := func(query string) string {
		return strings.ReplaceAll(query, "$schema", pgx.Identifier{schema}.Sanitize())
	}
	return statements{
		setup: in(setup),
		log:   in(`INSERT INTO $schema.calls (key, effect, what) VALUES ($1, $2, $3)`),
		shown: in(`SELECT coalesce(json_agg(c), '[]')::text FROM (SELECT * FROM $schema.calls_by_key ORDER BY first DESC LIMIT 1000) c`),
	}
}

// The log of calls is appended to and never updated: counters in a row of their own would make duplicates wait for one another.
const setup = `
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

// What is noted of a call.
const (
	delivered = "delivered"
	acted     = "acted"
	nothing   = "nothing"
	refused   = "refused"
)

// Acted notes, in the transaction of an effect that was put off, that it has happened, or that it was refused.
func (s *Service) Acted(ctx context.Context, tx pgx.Tx, key, effect string, happened bool) error {
	what := acted
	if !happened {
		what = refused
	}
	_, err := tx.Exec(ctx, s.sql.log, key, effect, what)
	return err
}
