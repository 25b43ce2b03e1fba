// Package payments is the service that moves money: it authorizes a card, captures what was authorized, gives it back, or lets the authorization go. payments.go has
// its requests, money.go what they do, and later.go the captures that take their time.
package payments

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// That an order is authorized and captured once is the barrier's doing. The tables could hold more, so that the balance would show it.
const schema = `
CREATE TABLE IF NOT EXISTS payments.authorizations (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id  text NOT NULL,
    card      text NOT NULL,
    amount    numeric NOT NULL CHECK (amount > 0),
    currency  text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    voided_at timestamptz
);
CREATE INDEX IF NOT EXISTS authorizations_order_id ON payments.authorizations (order_id);

CREATE TABLE IF NOT EXISTS payments.captures (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    authorization_id bigint NOT NULL REFERENCES payments.authorizations,
    amount           numeric NOT NULL CHECK (amount > 0),
    at               timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS captures_authorization_id ON payments.captures (authorization_id);

CREATE TABLE IF NOT EXISTS payments.refunds (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    capture bigint NOT NULL REFERENCES payments.captures,
    amount  numeric NOT NULL CHECK (amount > 0),
    at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS refunds_capture ON payments.refunds (capture);
`

// Cards with a meaning, as test cards of payment providers have one. Any other works.
const (
	// CardDeclined is declined at once.
	CardDeclined = "card-declined"
	// CardFailsLater can be authorized, and is declined when money is to be captured.
	CardFailsLater = "card-fails-later"
)

// The effects that an order can have here.
const (
	authorization = "authorization "
	capture       = "capture "
)

// Options are what the service works with.
type Options struct {
	// Limit is the most that a card can be charged, a decimal such as 1000.00, in whatever currency.
	Limit string
	// CallbackPrefix begins every URL that the service calls back, such as https://saga-operator-api.saga-system.svc:8443/; empty is any, and then whoever can ask for a capture decides what the
	// service calls. Client calls them; nil is participant's own.
	CallbackPrefix string
	Client         *http.Client
}

// Service is the service, an http.Handler.
type Service struct {
	*effect.Service
	options Options
}

// New makes the service and its tables.
func New(ctx context.Context, pool *pgxpool.Pool, o Options, log *slog.Logger) (*Service, error) {
	if _, err := kernel.NewMoney(o.Limit, "EUR"); err != nil {
		return nil, fmt.Errorf("the limit of payments: %w", err)
	}
	s := &Service{Service: effect.New(pool, "payments", o.Client, log), options: o}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	s.Action("POST /authorizations", "authorize", s.authorize)
	s.Compensation("DELETE /authorizations/{order}", "void", s.void)
	s.Action("POST /captures", "capture", s.capture)
	s.Compensation("DELETE /captures/{order}", "refund", s.refund)
	s.Look("GET /payments/{order}", `SELECT row_to_json(p)::text FROM (
		SELECT 'authorization-' || a.id AS id, order_id AS "order", card, a.amount::text AS authorized, currency, voided_at,
		       coalesce((SELECT sum(c.amount) FROM payments.captures c WHERE c.authorization_id = a.id), 0)::text AS captured,
		       coalesce((SELECT sum(r.amount) FROM payments.refunds r JOIN payments.captures c ON c.id = r.capture WHERE c.authorization_id = a.id), 0)::text AS refunded
		FROM payments.authorizations a WHERE order_id = $1 ORDER BY id DESC LIMIT 1) p`)
	return s, nil
}

var card = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// authorize has the bank promise the money.
func (s *Service) authorize(r *participant.Request) (in effect.Intent, err error) {
	var want struct {
		Order  string       `json:"order"`
		Card   string       `json:"card"`
		Amount kernel.Money `json:"amount"`
	}
	if err := r.Decode(&want); err != nil {
		return in, err
	}
	switch {
	case !card.MatchString(want.Card):
		return in, errors.New("card: 1 to 64 lower-case letters, digits and hyphens are needed")
	case want.Amount.Sign() <= 0:
		return in, errors.New("amount: more than nothing is needed")
	}
	limit, err := kernel.NewMoney(s.options.Limit, want.Amount.Currency())
	if err != nil {
		return in, fmt.Errorf("the limit of payments: %w", err)
	}
	in.Order, in.Effect = want.Order, authorization+want.Order
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		if want.Card == CardDeclined || want.Amount.Minor() > limit.Minor() {
			return participant.Answer{}, participant.Refuse(http.StatusPaymentRequired, "card declined")
		}
		id, err := promise(ctx, tx, want.Order, want.Card, want.Amount)
		return participant.Answer{Status: http.StatusCreated, Body: map[string]string{"id": id}}, err
	}
	return in, effect.CheckOrder(want.Order)
}

// void lets an authorization go.
func (s *Service) void(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	answer := func(done bool) participant.Answer {
		return participant.Answer{Body: map[string]any{"order": in.Order, "voided": done}}
	}
	nothing := answer(false)
	in.Effect, in.Nothing = authorization+in.Order, &nothing
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		done, err := letGo(ctx, tx, in.Order)
		return answer(done), err
	}
	return in, err
}

// capture takes the money that was authorized. A caller that can be called back is not kept waiting for it.
func (s *Service) capture(r *participant.Request) (in effect.Intent, err error) {
	var want struct {
		Order string `json:"order"`
	}
	if err := r.Decode(&want); err != nil {
		return in, err
	}
	in.Order, in.Effect = want.Order, capture+want.Order
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		id, err := collect(ctx, tx, want.Order)
		return participant.Answer{Status: http.StatusCreated, Body: map[string]string{"id": id}}, err
	}
	if r.Callback != "" {
		if !strings.HasPrefix(r.Callback, s.options.CallbackPrefix) {
			return in, errors.New("the header Saga-Callback is no address that this service calls")
		}
		in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
			return participant.Later(ctx, tx, task{Order: want.Order, Key: r.Key})
		}
	}
	return in, effect.CheckOrder(want.Order)
}

// refund gives everything back that was captured for the order.
func (s *Service) refund(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	in.Effect, in.Nothing = capture+in.Order, &participant.Answer{Body: map[string]any{"order": in.Order, "refunded": false}}
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		return participant.Answer{Body: map[string]any{"order": in.Order, "refunded": true}}, giveBack(ctx, tx, in.Order)
	}
	return in, err
}
