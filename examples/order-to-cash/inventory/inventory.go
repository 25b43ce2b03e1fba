// Package inventory is the service that keeps the stock: it holds goods back for orders, for a while, and lets them go. inventory.go has its requests, stock.go what they
// do to the stock, expiry.go what becomes of reservations that nobody has committed in time.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/goods"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// That an order has one reservation is the barrier's doing. The tables could hold more, so that the balance would show it.
//
// A reservation is reserved until it is committed, which takes the goods out of the house, released, or expired. A committed one can be returned.
const schema = `
CREATE TABLE IF NOT EXISTS inventory.stock (
    sku       text PRIMARY KEY,
    delivered bigint NOT NULL CHECK (delivered >= 0),
    available bigint NOT NULL CHECK (available BETWEEN 0 AND delivered),
    hold      interval NOT NULL CHECK (hold > interval '0')
);

CREATE TABLE IF NOT EXISTS inventory.reservations (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id    text NOT NULL,
    state       text NOT NULL DEFAULT 'reserved' CHECK (state IN ('reserved', 'committed', 'released', 'expired', 'returned')),
    reserved_at timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS reservations_order_id ON inventory.reservations (order_id);
CREATE INDEX IF NOT EXISTS reservations_expires_at ON inventory.reservations (expires_at) WHERE state = 'reserved';

CREATE TABLE IF NOT EXISTS inventory.lines (
    reservation bigint NOT NULL REFERENCES inventory.reservations,
    sku         text NOT NULL REFERENCES inventory.stock,
    quantity    bigint NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (reservation, sku)
);
`

// DefaultHold is how long an article is held back for an order where nothing else is said.
const DefaultHold = 15 * time.Minute

// Article is what is delivered of one article at the beginning.
type Article struct {
	// Delivered is in pieces.
	Delivered int64
	// Hold is how long a reservation of it holds; zero is DefaultHold. A reservation holds as long as the first of its articles.
	Hold time.Duration
}

// Service is the service, an http.Handler.
type Service struct{ *effect.Service }

// New makes the service and its tables. stock is what is delivered of each article that the database does not know yet.
func New(ctx context.Context, pool *pgxpool.Pool, stock map[string]Article, log *slog.Logger) (*Service, error) {
	s := &Service{effect.New(pool, "inventory", nil, log)}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	for sku, a := range stock {
		if a.Hold == 0 {
			a.Hold = DefaultHold
		}
		if _, err := pool.Exec(ctx, `INSERT INTO inventory.stock VALUES ($1, $2, $2, $3) ON CONFLICT (sku) DO NOTHING`, sku, a.Delivered, a.Hold); err != nil {
			return nil, fmt.Errorf("delivering %d of %s: %w", a.Delivered, sku, err)
		}
	}
	s.Action("POST /reservations", "reserve", s.reserve)
	s.Compensation("DELETE /reservations/{order}", "release", s.release)
	s.Action("POST /reservations/{order}/commit", "commit", s.commit)
	s.Compensation("DELETE /reservations/{order}/commit", "return", s.giveBack)
	s.Look("GET /stock", `SELECT coalesce(json_agg(s ORDER BY sku), '[]')::text FROM (SELECT sku, delivered, available, hold::text FROM inventory.stock) s`)
	s.Look("GET /reservations/{order}", `SELECT row_to_json(r)::text FROM (
		SELECT 'reservation-' || id AS id, order_id AS "order", state, reserved_at, expires_at, changed_at,
		       (SELECT json_agg(json_build_object('sku', sku, 'quantity', quantity) ORDER BY sku) FROM inventory.lines WHERE reservation = id) AS lines
		FROM inventory.reservations WHERE order_id = $1 ORDER BY id DESC LIMIT 1) r`)
	return s, nil
}

// The effects that an order can have here.
const (
	reservation = "reservation "
	commitment  = "commitment "
)

// reserve holds goods back for an order, until somebody commits them or the time is over.
func (s *Service) reserve(r *participant.Request) (in effect.Intent, err error) {
	var want struct {
		Order string       `json:"order"`
		Lines []goods.Line `json:"lines"`
	}
	if err := r.Decode(&want); err != nil {
		return in, err
	}
	in.Order, in.Effect = want.Order, reservation+want.Order
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		if err := take(ctx, tx, want.Lines); err != nil {
			return participant.Answer{}, err
		}
		id, expires, err := note(ctx, tx, want.Order, want.Lines)
		if err != nil {
			return participant.Answer{}, fmt.Errorf("reserving for order %s: %w", want.Order, err)
		}
		return participant.Answer{Status: http.StatusCreated, Body: map[string]string{
			"id": "reservation-" + strconv.FormatInt(id, 10), "expires": expires.UTC().Format(time.RFC3339Nano),
		}}, nil
	}
	return in, errors.Join(effect.CheckOrder(want.Order), goods.Check(want.Lines))
}

// release gives back what is held for an order. What has been committed is not held any more: giveBack undoes that.
func (s *Service) release(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	in.Effect, in.Nothing = reservation+in.Order, &participant.Answer{Body: changed(in.Order, released, false)}
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		done, err := putBack(ctx, tx, in.Order, reserved, released)
		return participant.Answer{Body: changed(in.Order, released, done)}, err
	}
	return in, err
}

// commit lets the goods leave the house. A reservation that has expired cannot be committed, whether or not its goods have been given to somebody else: a definite no.
func (s *Service) commit(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	in.Effect = commitment + in.Order
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		return participant.Answer{Body: changed(in.Order, committed, true)}, letGo(ctx, tx, in.Order)
	}
	return in, err
}

// giveBack undoes a commit: the goods come back into the stock.
func (s *Service) giveBack(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	in.Effect, in.Nothing = commitment+in.Order, &participant.Answer{Body: changed(in.Order, returned, false)}
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		done, err := putBack(ctx, tx, in.Order, committed, returned)
		return participant.Answer{Body: changed(in.Order, returned, done)}, err
	}
	return in, err
}

// changed tells whether a reservation of an order has become something.
func changed(order string, to state, done bool) map[string]any {
	return map[string]any{"order": order, string(to): done}
}
