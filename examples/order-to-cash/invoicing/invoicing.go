// Package invoicing is the service that writes invoices, and credit notes for those that come to nothing. Their numbers have no gaps, as the tax office wants it.
package invoicing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// A sequence of PostgreSQL would leave gaps: what a transaction has drawn from it is gone when that is rolled back. Here the last number is a row that the transaction
// locks, so documents of one kind are written one after another.
//
// That an order has one invoice is the barrier's doing. The table could hold more, so that the balance would show it.
const schema = `
CREATE TABLE IF NOT EXISTS invoicing.numbers (
    kind text PRIMARY KEY,
    last bigint NOT NULL
);
INSERT INTO invoicing.numbers VALUES ('invoice', 0), ('credit note', 0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS invoicing.documents (
    kind     text NOT NULL REFERENCES invoicing.numbers,
    number   bigint NOT NULL CHECK (number > 0),
    order_id text NOT NULL,
    amount   numeric NOT NULL CHECK (amount > 0),
    currency text NOT NULL,
    credits  bigint CHECK ((credits IS NULL) = (kind = 'invoice')),
    at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, number)
);
CREATE INDEX IF NOT EXISTS documents_order_id ON invoicing.documents (order_id);
`

// Currencies are those that the books are kept in.
var Currencies = []string{"CHF", "EUR", "GBP", "USD"}

// The kinds of documents, and how their numbers begin.
const (
	invoice    = "invoice"
	creditNote = "credit note"
)

func number(kind string, n int64) string {
	if kind == creditNote {
		return fmt.Sprintf("CN-%06d", n)
	}
	return fmt.Sprintf("INV-%06d", n)
}

// Service is the service, an http.Handler.
type Service struct{ *effect.Service }

// New makes the service and its tables.
func New(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (*Service, error) {
	s := &Service{effect.New(pool, "invoicing", nil, log)}
	if err := s.Setup(ctx, schema); err != nil {
		return nil, err
	}
	s.Action("POST /invoices", "invoice", s.issue)
	s.Compensation("DELETE /invoices/{order}", "credit", s.credit)
	s.Look("GET /invoices/{order}", `SELECT json_agg(d ORDER BY at)::text FROM (
		SELECT CASE kind WHEN 'invoice' THEN 'INV-' ELSE 'CN-' END || lpad(number::text, 6, '0') AS number, kind, amount::text, currency, at
		FROM invoicing.documents WHERE order_id = $1) d HAVING count(*) > 0`)
	return s, nil
}

// issue writes the invoice of an order.
func (s *Service) issue(r *participant.Request) (in effect.Intent, err error) {
	var want struct {
		Order  string       `json:"order"`
		Amount kernel.Money `json:"amount"`
	}
	if err := r.Decode(&want); err != nil {
		return in, err
	}
	if want.Amount.Sign() <= 0 {
		return in, errors.New("amount: more than nothing is needed")
	}
	in.Order, in.Effect = want.Order, "invoice "+want.Order
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		if !slices.Contains(Currencies, want.Amount.Currency()) {
			return participant.Answer{}, participant.Refuse(http.StatusUnprocessableEntity, "no books are kept in %s, only in %s", want.Amount.Currency(), strings.Join(Currencies, ", "))
		}
		n, err := next(ctx, tx, invoice)
		if err == nil {
			_, err = tx.Exec(ctx, `INSERT INTO invoicing.documents (kind, number, order_id, amount, currency) VALUES ('invoice', $1, $2, $3, $4)`,
				n, want.Order, want.Amount.Amount(), want.Amount.Currency())
		}
		if err != nil {
			return participant.Answer{}, fmt.Errorf("writing the invoice of order %s: %w", want.Order, err)
		}
		return participant.Answer{Status: http.StatusCreated, Body: map[string]string{"number": number(invoice, n)}}, nil
	}
	return in, effect.CheckOrder(want.Order)
}

// credit writes a credit note for the invoice of an order: what has been written is never taken out of the books.
func (s *Service) credit(r *participant.Request) (in effect.Intent, err error) {
	in.Order, err = effect.Order(r)
	in.Effect, in.Nothing = "invoice "+in.Order, &participant.Answer{Body: map[string]any{"order": in.Order, "credited": false}}
	in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		n, err := next(ctx, tx, creditNote)
		if err == nil {
			_, err = tx.Exec(ctx, `INSERT INTO invoicing.documents (kind, number, order_id, amount, currency, credits)
				SELECT 'credit note', $1, order_id, amount, currency, number FROM invoicing.documents WHERE order_id = $2 AND kind = 'invoice'`, n, in.Order)
		}
		if err != nil {
			return participant.Answer{}, fmt.Errorf("writing a credit note for order %s: %w", in.Order, err)
		}
		return participant.Answer{Body: map[string]any{"order": in.Order, "credited": true, "number": number(creditNote, n)}}, nil
	}
	return in, err
}

// next draws a number. Whoever else wants one of this kind waits until the transaction has ended.
func next(ctx context.Context, tx pgx.Tx, kind string) (n int64, err error) {
	err = tx.QueryRow(ctx, `UPDATE invoicing.numbers SET last = last + 1 WHERE kind = $1 RETURNING last`, kind).Scan(&n)
	return n, err
}
