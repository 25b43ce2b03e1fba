// Package payments is the service that charges cards, and gives the money back.
package payments

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
	"github.com/vextrus/saga-operator/internal/kernel"
)

// That an order is charged once is the barrier's doing. The tables could hold more, so that a ledger would show it.
const schema = `
CREATE TABLE IF NOT EXISTS payments.charges (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id text NOT NULL,
    amount   numeric NOT NULL CHECK (amount > 0),
    currency text NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS charges_order_id ON payments.charges (order_id);

CREATE TABLE IF NOT EXISTS payments.refunds (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    charge bigint NOT NULL REFERENCES payments.charges,
    amount numeric NOT NULL CHECK (amount > 0),
    at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS refunds_charge ON payments.refunds (charge);
`

type service struct {
	*effect.Service
	limit string
}

// New makes the service and its tables. A card is declined when it is charged more than limit, a decimal such as 1000.00, in whatever
// currency.
func New(ctx context.Context, pool *pgxpool.Pool, limit string, log *slog.Logger) (*effect.Service, error) {
	if _, err := kernel.NewMoney(limit, "EUR"); err != nil {
		return nil, fmt.Errorf("the limit of payments: %w", err)
	}
	s := service{effect.New(pool, "payments", log), limit}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	s.Handle("POST /charges", s.charge)
	s.Handle("POST /refunds", s.refund)
	s.Look("GET /charges/{order}", `SELECT row_to_json(c)::text FROM (
		SELECT 'charge-' || id AS id, order_id AS "order", amount::text, currency,
		       coalesce((SELECT sum(amount) FROM payments.refunds WHERE charge = c.id), 0)::text AS refunded
		FROM payments.charges c WHERE order_id = $1 ORDER BY id DESC LIMIT 1) c`)
	return s.Service, nil
}

func (s service) charge(r *effect.Request) (effect.Effect, error) {
	var in struct {
		Order  string       `json:"order"`
		Amount kernel.Money `json:"amount"`
	}
	if err := r.Decode(&in); err != nil {
		return effect.Effect{}, err
	}
	if err := effect.CheckOrder(in.Order); err != nil {
		return effect.Effect{}, err
	}
	if in.Amount.Sign() <= 0 {
		return effect.Effect{}, errors.New("amount: more than nothing is needed")
	}
	limit, err := kernel.NewMoney(s.limit, in.Amount.Currency())
	if err != nil {
		return effect.Effect{}, fmt.Errorf("the limit of payments: %w", err)
	}
	return effect.Effect{Verb: "charge", Order: in.Order, Status: http.StatusCreated, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		if err := s.Act(ctx, tx, in.Order); err != nil {
			return effect.Result{}, err
		}
		if in.Amount.Minor() > limit.Minor() {
			return effect.Result{}, effect.Refuse(http.StatusPaymentRequired, "card declined")
		}
		var id int64
		err := tx.QueryRow(ctx, `INSERT INTO payments.charges (order_id, amount, currency) VALUES ($1, $2, $3) RETURNING id`,
			in.Order, in.Amount.Amount(), in.Amount.Currency()).Scan(&id)
		if err != nil {
			return effect.Result{}, fmt.Errorf("charging for order %s: %w", in.Order, err)
		}
		return effect.Result{Changed: true, Body: map[string]string{"id": "charge-" + strconv.FormatInt(id, 10)}}, nil
	}}, nil
}

// refund gives everything back that was charged for the order.
func (s service) refund(r *effect.Request) (effect.Effect, error) {
	var in struct {
		Order string `json:"order"`
	}
	if err := r.Decode(&in); err != nil {
		return effect.Effect{}, err
	}
	return effect.Effect{Verb: "refund", Order: in.Order, Status: http.StatusOK, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		done, err := s.Undo(ctx, tx, in.Order)
		if err == nil && done {
			_, err = tx.Exec(ctx, `INSERT INTO payments.refunds (charge, amount) SELECT id, amount FROM payments.charges WHERE order_id = $1`, in.Order)
		}
		if err != nil {
			return effect.Result{}, fmt.Errorf("refunding order %s: %w", in.Order, err)
		}
		return effect.Result{Changed: done, Body: map[string]any{"order": in.Order, "refunded": done}}, nil
	}}, effect.CheckOrder(in.Order)
}
