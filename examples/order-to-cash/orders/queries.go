package orders

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/cqrs"
)

// The queries. They read the read model, which moves with the events, so whoever has placed an order sees it.
type (
	// ListOrders shows the latest orders, at most a thousand.
	ListOrders struct{ cqrs.Answers[json.RawMessage] }
	// GetOrder shows one order.
	GetOrder struct {
		cqrs.Answers[json.RawMessage]
		Order string
	}
	// OrderHistory shows what has happened to an order.
	OrderHistory struct {
		cqrs.Answers[json.RawMessage]
		Order string
	}
)

// ErrNotFound says that there is no such order.
var ErrNotFound = errors.New("there is no such order")

// An order as it is shown.
const shown = `SELECT id AS "order", customer, status, amount::text, currency, card, country, nullif(saga, '') AS saga, nullif(tracking, '') AS tracking,
    (SELECT json_agg(json_build_object('sku', sku, 'quantity', quantity) ORDER BY sku) FROM orders.lines WHERE order_id = id) AS lines
FROM orders.orders`

const (
	listSQL    = `SELECT coalesce(json_agg(o), '[]') FROM (` + shown + ` ORDER BY created_at DESC, id LIMIT 1000) o`
	getSQL     = `SELECT row_to_json(o) FROM (` + shown + ` WHERE id = $1) o`
	historySQL = `SELECT json_agg(json_build_object('version', version, 'type', type, 'at', recorded_at, 'data', data) ORDER BY version)
		FROM event_store WHERE stream = 'order-' || $1::text HAVING count(*) > 0`
)

func newQueries(pool *pgxpool.Pool) (*cqrs.Queries, error) {
	ask := func(ctx context.Context, sql string, args ...any) (found json.RawMessage, err error) {
		err = pool.QueryRow(ctx, sql, args...).Scan(&found)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, ErrNotFound
		}
		if err != nil {
			return nil, fmt.Errorf("looking at orders: %w", err)
		}
		return found, nil
	}
	b := cqrs.NewQueries(cqrs.AlwaysCurrent())
	return b, errors.Join(
		cqrs.HandleQuery(b, func(ctx context.Context, _ ListOrders) (json.RawMessage, error) { return ask(ctx, listSQL) }),
		cqrs.HandleQuery(b, func(ctx context.Context, q GetOrder) (json.RawMessage, error) { return ask(ctx, getSQL, q.Order) }),
		cqrs.HandleQuery(b, func(ctx context.Context, q OrderHistory) (json.RawMessage, error) {
			return ask(ctx, historySQL, q.Order)
		}),
	)
}
