// Package inbox has a consumer do its work once for each message, however often the message comes. Brokers and outboxes deliver at least once; what a consumer writes to PostgreSQL
// stands there exactly once when it is written together with a row that says which message it was for:
//
//	done, err := inbox.Do(ctx, pool, inbox.Key{Consumer: "billing", Source: e.Source(), ID: e.ID()}, func(ctx context.Context, tx pgx.Tx) error {
//		_, err := tx.Exec(ctx, `INSERT INTO invoices (customer, cents) VALUES ($1, $2)`, customer, cents)
//		return err
//	})
//
// The message is acknowledged when err is nil, whether it was done now or before. After an error it has to come again; nothing of it was kept.
//
// Only what goes through tx is done once. A mail that is sent, or another service that is called, is repeated with the message: write down in tx that it is to be done, or have the
// other side recognize the message.
//
// The package keeps no order: a message that overtakes another is handled first. Nor does it remember for good, but until Sweep.
package inbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Schema makes the table of the inbox and its index in the first schema of the search path, and does nothing where they are. It may be run at every start, by several processes at once,
// as one call of Exec without arguments, or be copied into a migration.
const Schema = `SELECT pg_advisory_xact_lock(hashtextextended('inbox_messages', 0));
CREATE TABLE IF NOT EXISTS inbox_messages (
    consumer   text        NOT NULL,
    source     text        NOT NULL,
    message_id text        NOT NULL,
    handled_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, message_id)
);
CREATE INDEX IF NOT EXISTS inbox_messages_handled_at ON inbox_messages (handled_at);
`

// The longest parts of a key, in bytes. Together they fit into one entry of PostgreSQL's index.
const (
	MaxConsumer = 128
	MaxSource   = 1024
	MaxID       = 1024
)

// undoTimeout bounds how long a transaction is undone whose context may be over already.
const undoTimeout = 5 * time.Second

// ErrInvalidKey says that a message cannot be told from others by its key. It would be no better if the message came again: it belongs among the dead letters.
var ErrInvalidKey = errors.New("invalid key")

// Key says which message is handled by whom. All three are required.
type Key struct {
	// Consumer names the one that handles the message, for example a service, or one of several tasks that a service does with the same message: each does its own once.
	// It must stay the same for as long as messages come again; up to MaxConsumer bytes.
	Consumer string
	// Source and ID are those of the CloudEvent, which together are unique: an ID alone may come from two sources. Up to MaxSource and MaxID bytes. For messages that are no
	// CloudEvents, any pair that stays the same when the message comes again, and that no other message has; the offset at a broker is not one when senders repeat.
	Source, ID string
}

// String implements fmt.Stringer.
func (k Key) String() string {
	return fmt.Sprintf("%q of %q for consumer %q", clip(k.ID), clip(k.Source), clip(k.Consumer))
}

// clip keeps an error about a text that is too long short.
func clip(s string) string {
	const enough = 200
	if len(s) > enough {
		return s[:enough] + "…"
	}
	return s
}

// check says what is wrong with a key: an error that wraps ErrInvalidKey.
func (k Key) check() error {
	for _, part := range []struct {
		name, value string
		longest     int
	}{{"Consumer", k.Consumer, MaxConsumer}, {"Source", k.Source, MaxSource}, {"ID", k.ID, MaxID}} {
		switch {
		case part.value == "":
			return fmt.Errorf("%w: %s is empty", ErrInvalidKey, part.name)
		case len(part.value) > part.longest:
			return fmt.Errorf("%w: %s has %d bytes, and %d are allowed", ErrInvalidKey, part.name, len(part.value), part.longest)
		case !utf8.ValidString(part.value) || strings.ContainsRune(part.value, 0):
			return fmt.Errorf("%w: %s is not UTF-8 without zero bytes, which is all that PostgreSQL keeps", ErrInvalidKey, part.name)
		}
	}
	return nil
}

// Beginner begins transactions: *pgxpool.Pool, *pgx.Conn, or pgx.Tx, in which what it begins is a savepoint.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Do calls handle with a transaction, unless the message was handled before: then it returns false and no error. What handle writes through tx, and that the message is handled, is
// committed together; after an error or a panic neither is, and the message may come again. handle must not end tx itself.
//
// While one call handles a message, another with the same key waits, for as long as ctx allows. It does nothing when the first has committed, and does the work when that has failed.
// handle should therefore be short.
//
// An error of the commit may mean that it was done nevertheless, when the connection broke in between. That needs no care: the message comes again and turns out to be handled.
//
// Given a pgx.Tx, Do works within it: true means that the message is handled when that transaction commits. An error of handle undoes what this message did and leaves the transaction
// usable; after any other error it may not be. Whoever handles several messages in one transaction does so in the order of their keys, lest two of them wait for each other.
//
// Any isolation level is safe. READ COMMITTED, PostgreSQL's default, is best: above it, a call that has waited for another fails with SQLSTATE 40001, and
// succeeds, in a new transaction, when the message comes again.
func Do(ctx context.Context, db Beginner, key Key, handle func(ctx context.Context, tx pgx.Tx) error) (done bool, err error) {
	if err := key.check(); err != nil {
		return false, fmt.Errorf("handling message %s: %w", key, err)
	}
	tx, err := db.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("handling message %s: beginning a transaction: %w", key, err)
	}
	defer undo(ctx, tx) // nothing is left to undo after the commit
	first, err := First(ctx, tx, key)
	if err != nil || !first {
		return false, err
	}
	if err := handle(ctx, tx); err != nil {
		return false, fmt.Errorf("handling message %s: %w", key, err)
	}
	if err := ctx.Err(); err != nil { // else a savepoint could be neither kept nor undone
		return false, fmt.Errorf("handling message %s: %w", key, err)
	}
	if err := tx.Commit(ctx); err != nil {
		return false, fmt.Errorf("handling message %s: committing: %w", key, err)
	}
	return true, nil
}

// First notes in a transaction of the caller's that a message is handled by it, and reports whether it was not before. Where it was, the caller does nothing more for the message. It is
// Do without a savepoint: after an error, its own or the caller's, the whole transaction has to be rolled back, or the message is taken for handled. It waits as Do does.
func First(ctx context.Context, tx pgx.Tx, key Key) (bool, error) {
	if err := key.check(); err != nil {
		return false, fmt.Errorf("noting message %s: %w", key, err)
	}
	// The conflict's columns are named so that it fails, and does not do everything again and again, where the table has lost its primary key.
	tag, err := tx.Exec(ctx, `INSERT INTO inbox_messages (consumer, source, message_id) VALUES ($1, $2, $3) ON CONFLICT (consumer, source, message_id) DO NOTHING`,
		key.Consumer, key.Source, key.ID)
	if err != nil {
		return false, fmt.Errorf("noting message %s: %w", key, explain(err))
	}
	return tag.RowsAffected() == 1, nil
}

// undo rolls back what is not committed. ctx may be over: a savepoint has to be undone even so, or the caller would commit half of a message's work with the rest of its transaction.
// Where that is impossible, the connection is closed, which undoes everything.
func undo(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := tx.Rollback(ctx)
	if err == nil || errors.Is(err, pgx.ErrTxClosed) {
		return
	}
	if conn := tx.Conn(); conn != nil && !conn.IsClosed() {
		_ = conn.Close(ctx) // it is closed either way
	}
}

// explain says what to do about an error of the database that is likely the caller's.
func explain(err error) error {
	const undefinedTable = "42P01"
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == undefinedTable {
		return fmt.Errorf("%w; run inbox.Schema first, with the same search path", err)
	}
	return err
}
