package postgres

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// Grants returns the SQL that gives a role what the operator needs to run once the schema is there, and no more: it can insert and read events and messages, not
// change or delete them. Whoever owns the schema executes it after each migration.
func Grants(role string) string {
	return strings.ReplaceAll(`
GRANT USAGE ON SCHEMA public TO $ROLE;
GRANT SELECT, INSERT ON event_store, outbox_events TO $ROLE;
GRANT SELECT, INSERT, UPDATE ON streams, saga_state TO $ROLE;
GRANT SELECT ON `+versionTable+` TO $ROLE;
`, "$ROLE", pgx.Identifier{role}.Sanitize())
}
