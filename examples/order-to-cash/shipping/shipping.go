// Package shipping is the service that prints labels for parcels and has the carrier pick them up. It can be told to be unavailable for a while.
package shipping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// That an order has one label is the barrier's doing. The table could hold more, so that the balance would show it.
const schema = `
CREATE TABLE IF NOT EXISTS shipping.labels (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id     text NOT NULL,
    country      text NOT NULL,
    pieces       bigint NOT NULL CHECK (pieces > 0),
    printed_at   timestamptz NOT NULL DEFAULT now(),
    picked_up_at timestamptz,
    voided_at    timestamptz
);
CREATE INDEX IF NOT EXISTS labels_order_id ON shipping.labels (order_id);
`

// MaxPieces is what the carrier takes in one parcel. It looks at parcels, not at labels.
const MaxPieces = 40

// unserved are the countries that no carrier goes to.
var unserved = []string{"AQ", "BV", "HM"}

// Service is the service, an http.Handler.
type Service struct {
	*effect.Service
	outages outages
}

// New makes the service and its tables.
func New(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (*Service, error) {
	s := &Service{Service: effect.New(pool, "shipping", nil, log)}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	s.Gate(func(order string) time.Duration { return s.outages.pause(order, time.Now()) })
	s.Action("POST /labels", "print", s.print)
	s.Compensation("DELETE /labels/{order}", "void", s.void)
	s.Action("POST /labels/{order}/pick-up", "pick-up", s.pickUp)
	s.Page("POST /admin/outage", s.postOutage)
	s.Look("GET /labels/{order}", `SELECT row_to_json(l)::text FROM (
		SELECT 'label-' || id AS id, `+tracking+` AS tracking, order_id AS "order", country, pieces, printed_at, picked_up_at, voided_at
		FROM shipping.labels WHERE order_id = $1 ORDER BY id DESC LIMIT 1) l`)
	return s, nil
}

const tracking = `'TRK' || lpad(id::text, 9, '0')`

// label is the effect that an order can have here; a pick-up changes it, and cannot be undone.
const label = "label "

var country = regexp.MustCompile(`^[A-Z]{2}$`)

func (s *Service) print(r *participant.Request) (in effect.Intent, err error) {
	var want struct {
		Order   string `json:"order"`
		Country string `json:"country"`
		Pieces  int64  `json:"pieces"`
	}
	if err := r.Decode(&want); err != nil {
		return in, err
	}
	switch {
	case !country.MatchString(want.Country):
		return in, errors.New("country: two capital letters are needed, such as DE")
	case want.Pieces < 1:
		return in, errors.New("pieces: at least 1 is needed")
	}
	in.Order, in.Effect = want.Order, label+want.Order
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		if slices.Contains(unserved, want.Country) {
			return participant.Answer{}, participant.Refuse(http.StatusUnprocessableEntity, "no carrier goes to %s", want.Country)
		}
		var id, track string
		err := tx.QueryRow(ctx, `INSERT INTO shipping.labels (order_id, country, pieces) VALUES ($1, $2, $3) RETURNING 'label-' || id, `+tracking,
			want.Order, want.Country, want.Pieces).Scan(&id, &track)
		if err != nil {
			return participant.Answer{}, fmt.Errorf("printing a label for order %s: %w", want.Order, err)
		}
		return participant.Answer{Status: http.StatusCreated, Body: map[string]string{"id": id, "tracking": track}}, nil
	}
	return in, effect.CheckOrder(want.Order)
}

// found is the label of an order, locked.
type found struct {
	id               int64
	pieces           int64
	pickedUp, voided bool
}

func find(ctx context.Context, tx pgx.Tx, order string) (l found, err error) {
	err = tx.QueryRow(ctx, `SELECT id, pieces, picked_up_at IS NOT NULL, voided_at IS NOT NULL FROM shipping.labels WHERE order_id = $1 ORDER BY id DESC LIMIT 1 FOR UPDATE`, order).
		Scan(&l.id, &l.pieces, &l.pickedUp, &l.voided)
	if errors.Is(err, pgx.ErrNoRows) {
		return l, participant.Refuse(http.StatusConflict, "there is no label for order %s", order)
	}
	if err != nil {
		return l, fmt.Errorf("looking for the label of order %s: %w", order, err)
	}
	return l, nil
}

// pickUp hands the parcel to the carrier. From then on it is out of our hands: the label cannot be voided any more.
func (s *Service) pickUp(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	in.Effect = "pick-up " + in.Order // nothing undoes it; the barrier keeps the answer for a saga that asks late
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		l, err := find(ctx, tx, in.Order)
		switch {
		case err != nil:
			return participant.Answer{}, err
		case l.voided:
			return participant.Answer{}, participant.Refuse(http.StatusConflict, "the label of order %s has been voided", in.Order)
		case l.pickedUp:
			return participant.Answer{}, participant.Refuse(http.StatusConflict, "the parcel of order %s has been picked up before", in.Order)
		case l.pieces > MaxPieces:
			return participant.Answer{}, participant.Refuse(http.StatusUnprocessableEntity, "the carrier takes no parcel of %d pieces, at most %d", l.pieces, MaxPieces)
		}
		var track string
		if err := tx.QueryRow(ctx, `UPDATE shipping.labels SET picked_up_at = now() WHERE id = $1 RETURNING `+tracking, l.id).Scan(&track); err != nil {
			return participant.Answer{}, fmt.Errorf("having the parcel of order %s picked up: %w", in.Order, err)
		}
		return participant.Answer{Body: map[string]string{"order": in.Order, "tracking": track}}, nil
	}
	return in, err
}

// void takes a label back. That of a parcel which is on its way cannot be: a definite no, on which a saga is parked, because somebody has to run after the parcel.
func (s *Service) void(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	in.Effect, in.Nothing = label+in.Order, &participant.Answer{Body: map[string]any{"order": in.Order, "voided": false}}
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		l, err := find(ctx, tx, in.Order)
		if err != nil {
			return participant.Answer{}, err
		}
		if l.pickedUp {
			return participant.Answer{}, participant.Refuse(http.StatusConflict, "the parcel of order %s is on its way, and cannot be called back", in.Order)
		}
		if _, err := tx.Exec(ctx, `UPDATE shipping.labels SET voided_at = now() WHERE id = $1`, l.id); err != nil {
			return participant.Answer{}, fmt.Errorf("voiding the label of order %s: %w", in.Order, err)
		}
		return participant.Answer{Body: map[string]any{"order": in.Order, "voided": true}}, nil
	}
	return in, err
}
