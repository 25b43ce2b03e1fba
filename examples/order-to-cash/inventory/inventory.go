// Package inventory is the service that keeps the stock, and reserves it for orders.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/goods"
)

// That an order has one reservation is the barrier's doing. The tables could hold more, so that a ledger would show it.
const schema = `
CREATE TABLE IF NOT EXISTS inventory.stock (
    sku       text PRIMARY KEY,
    delivered bigint NOT NULL CHECK (delivered >= 0),
    available bigint NOT NULL CHECK (available BETWEEN 0 AND delivered)
);

CREATE TABLE IF NOT EXISTS inventory.reservations (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    text NOT NULL,
    reserved_at timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz
);
CREATE INDEX IF NOT EXISTS reservations_order_id ON inventory.reservations (order_id);

CREATE TABLE IF NOT EXISTS inventory.lines (
    reservation bigint NOT NULL REFERENCES inventory.reservations,
    sku         text NOT NULL REFERENCES inventory.stock,
    quantity    bigint NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (reservation, sku)
);
`

type service struct{ *effect.Service }

// New makes the service and its tables. stock is what is delivered of each article that the database does not know yet.
func New(ctx context.Context, pool *pgxpool.Pool, stock map[string]int64, log *slog.Logger) (*effect.Service, error) {
	s := service{effect.New(pool, "inventory", log)}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	for sku, n := range stock {
		if _, err := pool.Exec(ctx, `INSERT INTO inventory.stock VALUES ($1, $2, $2) ON CONFLICT (sku) DO NOTHING`, sku, n); err != nil {
			return nil, fmt.Errorf("delivering %d of %s: %w", n, sku, err)
		}
	}
	s.Handle("POST /reservations", s.reserve)
	s.Handle("DELETE /reservations/{order}", s.release)
	s.Look("GET /stock", `SELECT coalesce(json_agg(s ORDER BY sku), '[]')::text FROM inventory.stock s`)
	s.Look("GET /reservations/{order}", `SELECT row_to_json(r)::text FROM (
		SELECT 'reservation-' || id AS id, order_id AS "order", reserved_at, released_at,
		       (SELECT json_agg(json_build_object('sku', sku, 'quantity', quantity) ORDER BY sku) FROM inventory.lines WHERE reservation = id) AS lines
		FROM inventory.reservations WHERE order_id = $1 ORDER BY id DESC LIMIT 1) r`)
	return s.Service, nil
}

func (s service) reserve(r *effect.Request) (effect.Effect, error) {
	var in struct {
		Order string       `json:"order"`
		Lines []goods.Line `json:"lines"`
	}
	if err := r.Decode(&in); err != nil {
		return effect.Effect{}, err
	}
	if err := errors.Join(effect.CheckOrder(in.Order), goods.Check(in.Lines)); err != nil {
		return effect.Effect{}, err
	}
	return effect.Effect{Verb: "reserve", Order: in.Order, Status: http.StatusCreated, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		if err := s.Act(ctx, tx, in.Order); err != nil {
			return effect.Result{}, err
		}
		if err := take(ctx, tx, in.Lines); err != nil {
			return effect.Result{}, err
		}
		id, err := note(ctx, tx, in.Order, in.Lines)
		if err != nil {
			return effect.Result{}, fmt.Errorf("reserving for order %s: %w", in.Order, err)
		}
		return effect.Result{Changed: true, Body: map[string]string{"id": "reservation-" + strconv.FormatInt(id, 10)}}, nil
	}}, nil
}

// take takes the lines from the stock, or refuses.
func take(ctx context.Context, tx pgx.Tx, lines []goods.Line) error {
	skus, quantities := make([]string, len(lines)), make([]int64, len(lines))
	for i, l := range lines {
		skus[i], quantities[i] = l.SKU, l.Quantity
	}
	available := map[string]int64{}
	// Everybody locks in the same order, so that nobody waits in a circle.
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
			return effect.Refuse(http.StatusConflict, "out of stock: %d of %s wanted, %d there", l.Quantity, l.SKU, available[l.SKU])
		}
	}
	_, err = tx.Exec(ctx, `UPDATE inventory.stock s SET available = available - l.quantity
		FROM unnest($1::text[], $2::bigint[]) AS l (sku, quantity) WHERE s.sku = l.sku`, skus, quantities)
	if err != nil {
		return fmt.Errorf("taking from the stock: %w", err)
	}
	return nil
}

// note writes down for whom it was taken.
func note(ctx context.Context, tx pgx.Tx, order string, lines []goods.Line) (id int64, err error) {
	if err := tx.QueryRow(ctx, `INSERT INTO inventory.reservations (order_id) VALUES ($1) RETURNING id`, order).Scan(&id); err != nil {
		return 0, err
	}
	batch := &pgx.Batch{}
	for _, l := range lines {
		batch.Queue(`INSERT INTO inventory.lines VALUES ($1, $2, $3)`, id, l.SKU, l.Quantity)
	}
	return id, tx.SendBatch(ctx, batch).Close()
}

func (s service) release(r *effect.Request) (effect.Effect, error) {
	order, err := r.Order()
	return effect.Effect{Verb: "release", Order: order, Status: http.StatusOK, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		done, err := s.Undo(ctx, tx, order)
		if err == nil && done {
			err = putBack(ctx, tx, order)
		}
		if err != nil {
			return effect.Result{}, fmt.Errorf("releasing the stock of order %s: %w", order, err)
		}
		return effect.Result{Changed: done, Body: map[string]any{"order": order, "released": done}}, nil
	}}, err
}

func putBack(ctx context.Context, tx pgx.Tx, order string) error {
	batch := &pgx.Batch{}
	batch.Queue(`SELECT FROM inventory.stock WHERE sku IN (
		SELECT sku FROM inventory.lines JOIN inventory.reservations ON id = reservation WHERE order_id = $1 AND released_at IS NULL
	) ORDER BY sku FOR UPDATE`, order)
	batch.Queue(`UPDATE inventory.stock s SET available = available + l.quantity
		FROM inventory.lines l JOIN inventory.reservations r ON r.id = l.reservation
		WHERE s.sku = l.sku AND r.order_id = $1 AND r.released_at IS NULL`, order)
	batch.Queue(`UPDATE inventory.reservations SET released_at = now() WHERE order_id = $1 AND released_at IS NULL`, order)
	return tx.SendBatch(ctx, batch).Close()
}
