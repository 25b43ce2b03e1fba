// Package shipping is the service that prints labels for parcels. It can be told to be unavailable for a while.
package shipping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
)

// That an order has one label is the barrier's doing. The table could hold more, so that a ledger would show it.
const schema = `
CREATE TABLE IF NOT EXISTS shipping.labels (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id   text NOT NULL,
    charge     text NOT NULL,
    printed_at timestamptz NOT NULL DEFAULT now(),
    voided_at  timestamptz
);
CREATE INDEX IF NOT EXISTS labels_order_id ON shipping.labels (order_id);
`

// Service is the service, an http.Handler.
type Service struct {
	*effect.Service
	outages outages
}

// New makes the service and its tables.
func New(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (*Service, error) {
	s := &Service{Service: effect.New(pool, "shipping", log)}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	s.Gate(func(e effect.Effect) time.Duration { return s.outages.pause(e.Order, time.Now()) })
	s.Handle("POST /labels", s.print)
	s.Handle("DELETE /labels/{order}", s.void)
	s.Admin("POST /admin/outage", s.postOutage)
	s.Look("GET /labels/{order}", `SELECT row_to_json(l)::text FROM (
		SELECT 'label-' || id AS id, `+tracking+` AS tracking, order_id AS "order", charge, printed_at, voided_at
		FROM shipping.labels WHERE order_id = $1 ORDER BY id DESC LIMIT 1) l`)
	return s, nil
}

const tracking = `'TRK' || lpad(id::text, 9, '0')`

func (s *Service) print(r *effect.Request) (effect.Effect, error) {
	var in struct {
		Order  string `json:"order"`
		Charge string `json:"charge"`
	}
	if err := r.Decode(&in); err != nil {
		return effect.Effect{}, err
	}
	if err := effect.CheckOrder(in.Order); err != nil {
		return effect.Effect{}, err
	}
	if in.Charge == "" || len(in.Charge) > 200 {
		return effect.Effect{}, errors.New("charge: 1 to 200 bytes are needed: nothing is shipped that is not paid for")
	}
	return effect.Effect{Verb: "ship", Order: in.Order, Status: http.StatusCreated, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		if err := s.Act(ctx, tx, in.Order); err != nil {
			return effect.Result{}, err
		}
		var id, track string
		err := tx.QueryRow(ctx, `INSERT INTO shipping.labels (order_id, charge) VALUES ($1, $2) RETURNING 'label-' || id, `+tracking,
			in.Order, in.Charge).Scan(&id, &track)
		if err != nil {
			return effect.Result{}, fmt.Errorf("printing a label for order %s: %w", in.Order, err)
		}
		return effect.Result{Changed: true, Body: map[string]string{"id": id, "tracking": track}}, nil
	}}, nil
}

func (s *Service) void(r *effect.Request) (effect.Effect, error) {
	order, err := r.Order()
	return effect.Effect{Verb: "void", Order: order, Status: http.StatusOK, Do: func(ctx context.Context, tx pgx.Tx) (effect.Result, error) {
		done, err := s.Undo(ctx, tx, order)
		if err == nil && done {
			_, err = tx.Exec(ctx, `UPDATE shipping.labels SET voided_at = now() WHERE order_id = $1 AND voided_at IS NULL`, order)
		}
		if err != nil {
			return effect.Result{}, fmt.Errorf("voiding the label of order %s: %w", order, err)
		}
		return effect.Result{Changed: done, Body: map[string]any{"order": order, "voided": done}}, nil
	}}, err
}
