package postgres

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// Grants returns the SQL that gives a role what the operator needs to run once the schema is there, and no more: it can insert and read events and messages, not
// change or delete them; only the function that removes whole finished sagas can. Whoever owns the schema executes it after each migration.
func Grants(role string) string {
	return strings.ReplaceAll(`
GRANT USAGE ON SCHEMA public TO $ROLE;
GRANT SELECT, INSERT ON event_store, outbox_events TO $ROLE;
GRANT SELECT, INSERT, UPDATE ON streams, saga_state, snapshots, saga_answers TO $ROLE;
GRANT SELECT, INSERT, UPDATE, DELETE ON projections, projection_skips, saga_history_rows, saga_summary_rows, saga_summary_open TO $ROLE;
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys, saga_nudges, saga_callbacks, outbox_readers, outbox_relays, outbox_parked, event_handlers_parked TO $ROLE;
GRANT SELECT, INSERT ON outbox_dropped, event_handlers_dropped TO $ROLE;
GRANT USAGE, SELECT ON SEQUENCE outbox_position, idempotency_fences TO $ROLE;
GRANT SELECT ON store_clusters, api_request_key, saga_history, saga_summary, `+versionTable+` TO $ROLE;
GRANT EXECUTE ON FUNCTION remove_finished_sagas(timestamptz, integer), maintain_outbox(bigint, integer) TO $ROLE;
`, "$ROLE", pgx.Identifier{role}.Sanitize())
}
