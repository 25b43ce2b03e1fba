package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// Class is what an error means for whoever meets it.
type Class int

const (
	// Permanent errors stay until the data, the schema, the configuration or
	// the code is changed. Whatever is not recognized counts as one.
	Permanent Class = iota
	// Conflict says that somebody else was faster, or that the database
	// resolved a conflict at this transaction's cost. Nothing was written: load
	// again and decide anew.
	Conflict
	// Unavailable says that the database could not be reached or could not do
	// its work for now. If the error came from a write, it may have been
	// committed all the same: try again with something that tells.
	Unavailable
	// Canceled says that the caller itself gave up.
	Canceled
)

// String is the class as a metric label or log value has it.
func (c Class) String() string {
	switch c {
	case Conflict:
		return "conflict"
	case Unavailable:
		return "unavailable"
	case Canceled:
		return "canceled"
	default:
		return "permanent"
	}
}

// Classify says what an error of the driver or the server means. It must not be
// called with nil. ErrSchemaOlder and ErrSchemaNewer are Permanent, as is
// pgx.ErrNoRows.
func Classify(err error) Class {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return classifyState(pg.Code)
	}
	var (
		connect *pgconn.ConnectError
		network net.Error
	)
	switch {
	// The pool closes when the process shuts down.
	case errors.Is(err, context.Canceled), errors.Is(err, puddle.ErrClosedPool):
		return Canceled
	case errors.As(err, &connect), errors.As(err, &network),
		errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, pgconn.ErrConnClosed),
		pgconn.Timeout(err), pgconn.SafeToRetry(err):
		return Unavailable
	default:
		return Permanent
	}
}

// states are the SQLSTATEs that matter one by one.
var states = map[string]Class{
	"23505": Conflict,    // unique_violation
	"23P01": Conflict,    // exclusion_violation
	"40001": Conflict,    // serialization_failure
	"40P01": Conflict,    // deadlock_detected
	"40003": Unavailable, // statement_completion_unknown
	"25006": Unavailable, // read_only_sql_transaction: a standby, or a primary that has been demoted
	"25P03": Unavailable, // idle_in_transaction_session_timeout
	"25P04": Unavailable, // transaction_timeout
	"55006": Unavailable, // object_in_use
	"55P03": Unavailable, // lock_not_available
	"57014": Unavailable, // query_canceled: a timeout of the server's; the caller's own arrives as its context's error
	"57P04": Permanent,   // database_dropped
}

// classes are the first two characters of the others.
var classes = map[string]Class{
	"08": Unavailable, // connection exception
	"40": Conflict,    // transaction rollback
	"53": Unavailable, // insufficient resources: memory, disk, connections
	"57": Unavailable, // operator intervention: shutting down, starting up, crashed
	"58": Unavailable, // system error: I/O
}

func classifyState(state string) Class {
	if class, ok := states[state]; ok {
		return class
	}
	if len(state) == 5 {
		if class, ok := classes[state[:2]]; ok {
			return class
		}
	}
	return Permanent
}

// Constraint is the name of the constraint that err says is violated, or "".
func Constraint(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && strings.HasPrefix(pg.Code, "23") {
		return pg.ConstraintName
	}
	return ""
}
