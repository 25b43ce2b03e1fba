package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/goods"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// state is what has become of a reservation.
type state string

const (
	reserved  state = "reserved"
	committed state = "committed"
	released  state = "released"
	expired   state = "expired"
	returned  state = "returned"
)

// take takes the lines from the stock, or refuses.
func take(ctx context.Context, tx pgx.Tx, lines []goods.Line) error {
	skus, quantities := make([]string, len(lines)), make([]int64, len(lines))
	for i, l := range lines {
		skus[i], quantities[i] = l.SKU, l.Quantity
	}
	available := map[string]int64{}
	// Everybody locks in the same order, reservations before articles and these by their names, so that nobody waits in a circle.
	rows, err := tx.Query(ctx, `SELECT sku, available FROM inventory.stock WHERE sku = ANY($1) ORDER BY sku FOR UPDATE`, skus)
	if err != nil {
		return fmt.Errorf("looking at the stock: %w", err)
	}
	var sku string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&sku, &n}, func() error { available[sku] = n; return nil }); err != nil {
		return fmt.Errorf("looking at the stock: %w", err)
	}
	for _, l := range lines {
		if available[l.SKU] < l.Quantity {
			return participant.Refuse(http.StatusConflict, "out of stock: %d of %s wanted, %d there", l.Quantity, l.SKU, available[l.SKU])
		}
	}
	_, err = tx.Exec(ctx, `UPDATE inventory.stock s SET available = available - l.quantity
		FROM unnest($1::text[], $2::bigint[]) AS l (sku, quantity) WHERE s.sku = l.sku`, skus, quantities)
	if err != nil {
		return fmt.Errorf("taking from the stock: %w", err)
	}
	return nil
}

// note writes down for whom it was taken, and until when.
func note(ctx context.Context, tx pgx.Tx, order string, lines []goods.Line) (id int64, expires time.Time, err error) {
	skus := make([]string, len(lines))
	for i, l := range lines {
		skus[i] = l.SKU
	}
	err = tx.QueryRow(ctx, `INSERT INTO inventory.reservations (order_id, expires_at)
		SELECT $1, now() + min(hold) FROM inventory.stock WHERE sku = ANY($2) RETURNING id, expires_at`, order, skus).Scan(&id, &expires)
	if err != nil {
		return 0, time.Time{}, err
	}
	batch := &pgx.Batch{}
	for _, l := range lines {
		batch.Queue(`INSERT INTO inventory.lines VALUES ($1, $2, $3)`, id, l.SKU, l.Quantity)
	}
	return id, expires, tx.SendBatch(ctx, batch).Close()
}

// letGo has the goods that are held for an order leave the stock, or refuses. They have been taken from what is available already.
func letGo(ctx context.Context, tx pgx.Tx, order string) error {
	tag, err := tx.Exec(ctx, `UPDATE inventory.reservations SET state = 'committed', changed_at = now()
		WHERE order_id = $1 AND state = 'reserved' AND expires_at > now()`, order)
	if err != nil {
		return fmt.Errorf("committing the stock of order %s: %w", order, err)
	}
	if tag.RowsAffected() > 0 {
		return nil
	}
	var is state
	err = tx.QueryRow(ctx, `SELECT state FROM inventory.reservations WHERE order_id = $1 ORDER BY id DESC LIMIT 1`, order).Scan(&is)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return participant.Refuse(http.StatusConflict, "nothing is reserved for order %s", order)
	case err != nil:
		return fmt.Errorf("looking at the reservation of order %s: %w", order, err)
	case is == reserved || is == expired: // whether or not the sweeper has come by
		return participant.Refuse(http.StatusConflict, "the reservation of order %s has expired", order)
	default:
		return participant.Refuse(http.StatusConflict, "the reservation of order %s is %s", order, is)
	}
}

// putBack makes the goods of an order's reservations available again that are in one state, which becomes the other. It reports whether there were any.
func putBack(ctx context.Context, tx pgx.Tx, order string, from, to state) (bool, error) {
	rows, err := tx.Query(ctx, `UPDATE inventory.reservations SET state = $3, changed_at = now() WHERE order_id = $1 AND state = $2 RETURNING id`, order, from, to)
	if err != nil {
		return false, fmt.Errorf("putting back the goods of order %s: %w", order, err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err == nil && len(ids) > 0 {
		err = restock(ctx, tx, ids)
	}
	if err != nil {
		return false, fmt.Errorf("putting back the goods of order %s: %w", order, err)
	}
	return len(ids) > 0, nil
}

// restock makes what some reservations hold available again. They are locked already.
func restock(ctx context.Context, tx pgx.Tx, reservations []int64) error {
	batch := &pgx.Batch{}
	batch.Queue(`SELECT FROM inventory.stock WHERE sku IN (SELECT sku FROM inventory.lines WHERE reservation = ANY($1)) ORDER BY sku FOR UPDATE`, reservations)
	batch.Queue(`UPDATE inventory.stock s SET available = available + l.quantity
		FROM (SELECT sku, sum(quantity)::bigint AS quantity FROM inventory.lines WHERE reservation = ANY($1) GROUP BY sku) l
		WHERE s.sku = l.sku`, reservations)
	return tx.SendBatch(ctx, batch).Close()
}
