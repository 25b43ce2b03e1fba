package payments

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/internal/kernel"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// promise writes down what was authorized, and returns the authorization's id.
func promise(ctx context.Context, tx pgx.Tx, order, card string, amount kernel.Money) (string, error) {
	var id int64
	err := tx.QueryRow(ctx, `INSERT INTO payments.authorizations (order_id, card, amount, currency) VALUES ($1, $2, $3, $4) RETURNING id`,
		order, card, amount.Amount(), amount.Currency()).Scan(&id)
	if err != nil {
		return "", fmt.Errorf("authorizing the payment of order %s: %w", order, err)
	}
	return "authorization-" + strconv.FormatInt(id, 10), nil
}

// letGo voids an order's authorization. It reports false where the money was taken and given back already, and refuses where it was only taken: that is to be refunded.
func letGo(ctx context.Context, tx pgx.Tx, order string) (bool, error) {
	var id int64
	var captured, refunded bool
	// Whoever captures locks it, too.
	err := tx.QueryRow(ctx, `SELECT id FROM payments.authorizations WHERE order_id = $1 AND voided_at IS NULL ORDER BY id DESC LIMIT 1 FOR UPDATE`, order).Scan(&id)
	if err == nil {
		err = tx.QueryRow(ctx, `SELECT count(c.id) > 0, count(c.id) = count(r.id)
			FROM payments.captures c LEFT JOIN payments.refunds r ON r.capture = c.id WHERE c.authorization_id = $1`, id).Scan(&captured, &refunded)
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("voiding the authorization of order %s: %w", order, err)
	case captured && !refunded:
		return false, participant.Refuse(http.StatusConflict, "the money for order %s has been taken: refund it instead", order)
	case captured:
		return false, nil
	}
	if _, err := tx.Exec(ctx, `UPDATE payments.authorizations SET voided_at = now() WHERE id = $1`, id); err != nil {
		return false, fmt.Errorf("voiding the authorization of order %s: %w", order, err)
	}
	return true, nil
}

// collect takes the money that was authorized for an order, or refuses, and returns the capture's id.
func collect(ctx context.Context, tx pgx.Tx, order string) (string, error) {
	var authorized, id int64
	var card string
	var voided bool
	err := tx.QueryRow(ctx, `SELECT id, card, voided_at IS NOT NULL FROM payments.authorizations WHERE order_id = $1 ORDER BY id DESC LIMIT 1 FOR UPDATE`, order).
		Scan(&authorized, &card, &voided)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", participant.Refuse(http.StatusConflict, "nothing is authorized for order %s", order)
	case err != nil:
		return "", fmt.Errorf("capturing the payment of order %s: %w", order, err)
	case voided:
		return "", participant.Refuse(http.StatusConflict, "the authorization of order %s has been voided", order)
	case card == CardFailsLater:
		return "", participant.Refuse(http.StatusPaymentRequired, "the bank declined the capture")
	}
	err = tx.QueryRow(ctx, `INSERT INTO payments.captures (authorization_id, amount) SELECT id, amount FROM payments.authorizations WHERE id = $1 RETURNING id`, authorized).Scan(&id)
	if err != nil {
		return "", fmt.Errorf("capturing the payment of order %s: %w", order, err)
	}
	return "capture-" + strconv.FormatInt(id, 10), nil
}

// giveBack refunds what was captured for an order.
func giveBack(ctx context.Context, tx pgx.Tx, order string) error {
	_, err := tx.Exec(ctx, `INSERT INTO payments.refunds (capture, amount)
		SELECT c.id, c.amount FROM payments.captures c JOIN payments.authorizations a ON a.id = c.authorization_id WHERE a.order_id = $1`, order)
	if err != nil {
		return fmt.Errorf("refunding order %s: %w", order, err)
	}
	return nil
}
