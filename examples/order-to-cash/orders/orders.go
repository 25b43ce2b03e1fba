// Package orders is the service that knows what was ordered, and whether it was delivered.
package orders

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/goods"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/money"
)

const schema = `
CREATE TABLE IF NOT EXISTS orders.orders (
    id         text PRIMARY KEY,
    customer   text NOT NULL,
    status     text NOT NULL CHECK (status IN ('pending', 'confirmed', 'cancelled')),
    amount     numeric NOT NULL CHECK (amount > 0),
    currency   text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS orders.lines (
    order_id text NOT NULL REFERENCES orders.orders,
    sku      text NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (order_id, sku)
);
`

// An order as it is shown.
const shown = `SELECT id AS "order", customer, status, amount::text, currency,
    (SELECT json_agg(json_build_object('sku', sku, 'quantity', quantity) ORDER BY sku) FROM orders.lines WHERE order_id = id) AS lines
FROM orders.orders`

type service struct{ *effect.Service }

// New makes the service and its tables.
func New(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (*effect.Service, error) {
	s := service{effect.New(pool, "orders", log)}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	s.Handle("POST /orders", s.create)
	s.Handle("POST /orders/{order}/confirm", s.confirm)
	s.Handle("POST /orders/{order}/cancel", s.cancel)
	s.Look("GET /orders", `SELECT coalesce(json_agg(o), '[]')::text FROM (`+shown+` ORDER BY created_at DESC, id LIMIT 1000) o`)
	s.Look("GET /orders/{order}", `SELECT row_to_json(o)::text FROM (`+shown+` WHERE id = $1) o`)
	return s.Service, nil
}

func (s service) create(r *effect.Request) (effect.Effect, error) {
	var in struct {
		Order    string       `json:"order"`
		Customer string       `json:"customer"`
		Lines    []goods.Line `json:"lines"`
		Total    money.Money  `json:"total"`
	}
	if err := r.Decode(&in); err != nil {
		return effect.Effect{}, err
	}
	if err := errors.Join(effect.CheckOrder(in.Order), goods.Check(in.Lines), in.Total.Check()); err != nil {
		return effect.Effect{}, err
	}
	if in.Customer == "" || len(in.Customer) > 200 {
		return effect.Effect{}, errors.New("customer: 1 to 200 bytes are needed")
	}
	return effect.Effect{Verb: "create", Order: in.Order, Status: http.StatusCreated, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		if err := s.Act(ctx, tx, in.Order); err != nil {
			return effect.Result{}, err
		}
		batch := &pgx.Batch{}
		batch.Queue(`INSERT INTO orders.orders (id, customer, status, amount, currency) VALUES ($1, $2, 'pending', $3, $4)`,
			in.Order, in.Customer, in.Total.Amount.String(), in.Total.Currency)
		for _, l := range in.Lines {
			batch.Queue(`INSERT INTO orders.lines (order_id, sku, quantity) VALUES ($1, $2, $3)`, in.Order, l.SKU, l.Quantity)
		}
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return effect.Result{}, fmt.Errorf("creating order %s: %w", in.Order, err)
		}
		return changed(in.Order, "pending"), nil
	}}, nil
}

func (s service) confirm(r *effect.Request) (effect.Effect, error) {
	order, err := r.Order()
	return effect.Effect{Verb: "confirm", Order: order, Status: http.StatusOK, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		var status string
		err := tx.QueryRow(ctx, `SELECT status FROM orders.orders WHERE id = $1 FOR UPDATE`, order).Scan(&status)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return effect.Result{}, effect.Refuse(http.StatusNotFound, "there is no order %s", order)
		case err != nil:
			return effect.Result{}, fmt.Errorf("looking up order %s: %w", order, err)
		case status == "cancelled":
			return effect.Result{}, effect.Refuse(http.StatusConflict, "order %s is cancelled", order)
		case status == "confirmed":
			return effect.Result{}, effect.Refuse(http.StatusConflict, "order %s is confirmed already", order)
		}
		if _, err := tx.Exec(ctx, `UPDATE orders.orders SET status = 'confirmed' WHERE id = $1`, order); err != nil {
			return effect.Result{}, fmt.Errorf("confirming order %s: %w", order, err)
		}
		return changed(order, "confirmed"), nil
	}}, err
}

// cancel undoes create, and confirm with it.
func (s service) cancel(r *effect.Request) (effect.Effect, error) {
	order, err := r.Order()
	return effect.Effect{Verb: "cancel", Order: order, Status: http.StatusOK, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		result := changed(order, "cancelled")
		var err error
		if result.Changed, err = s.Undo(ctx, tx, order); err != nil || !result.Changed {
			return result, err
		}
		if _, err := tx.Exec(ctx, `UPDATE orders.orders SET status = 'cancelled' WHERE id = $1`, order); err != nil {
			return effect.Result{}, fmt.Errorf("cancelling order %s: %w", order, err)
		}
		return result, nil
	}}, err
}

func changed(order, status string) effect.Result {
	return effect.Result{Changed: true, Body: map[string]string{"order": order, "status": status}}
}
