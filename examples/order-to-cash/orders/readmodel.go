package orders

import (
	"context"
	"strings"

	"github.com/vextrus/saga-operator/internal/projection"
)

// schema is the read model: what orders look like. It moves with the events themselves, in the same transaction, so that the ledger sees all services at one moment.
const schema = `
CREATE TABLE IF NOT EXISTS orders.orders_rows (
    generation integer NOT NULL,
    id         text NOT NULL,
    customer   text NOT NULL,
    status     text NOT NULL,
    amount     numeric NOT NULL,
    currency   text NOT NULL,
    card       text NOT NULL,
    country    text NOT NULL,
    saga       text NOT NULL DEFAULT '',
    tracking   text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    PRIMARY KEY (generation, id)
);

CREATE TABLE IF NOT EXISTS orders.lines_rows (
    generation integer NOT NULL,
    order_id   text NOT NULL,
    sku        text NOT NULL,
    quantity   bigint NOT NULL,
    PRIMARY KEY (generation, order_id, sku)
);

CREATE OR REPLACE VIEW orders.orders AS SELECT id, customer, status, amount, currency, card, country, saga, tracking, created_at FROM orders.orders_rows
WHERE generation = (SELECT generation FROM projections WHERE name = 'orders' AND status = 'live');

CREATE OR REPLACE VIEW orders.lines AS SELECT order_id, sku, quantity FROM orders.lines_rows
WHERE generation = (SELECT generation FROM projections WHERE name = 'orders' AND status = 'live');
`

// ReadModel is the projection orders.
func ReadModel() *projection.Definition {
	return projection.Define("orders", 2, category).Tables("orders.orders_rows", "orders.lines_rows").
		On("OrderPlaced", projection.For(Events.Decode, placed)).
		On("OrderAccepted", projection.For(Events.Decode, func(ctx context.Context, tx *projection.Tx, e projection.Event[OrderAccepted]) error {
			return tx.Queue(ctx, `UPDATE orders.orders_rows SET status = $3, saga = $4 WHERE generation = $1 AND id = $2`,
				tx.Generation(), idOf(e.Stream), string(Accepted), e.Fact.Saga)
		})).
		On("OrderConfirmed", status[OrderConfirmed](Confirmed)).
		On("OrderCancelled", status[OrderCancelled](Cancelled)).
		On("OrderFulfilled", projection.For(Events.Decode, func(ctx context.Context, tx *projection.Tx, e projection.Event[OrderFulfilled]) error {
			return tx.Queue(ctx, `UPDATE orders.orders_rows SET status = $3, tracking = $4 WHERE generation = $1 AND id = $2`,
				tx.Generation(), idOf(e.Stream), string(Fulfilled), e.Fact.Tracking)
		}))
}

// idOf is the id of the order that a stream is of.
func idOf(stream string) string { return strings.TrimPrefix(stream, category+"-") }

func placed(ctx context.Context, tx *projection.Tx, e projection.Event[OrderPlaced]) error {
	err := tx.Queue(ctx, `INSERT INTO orders.orders_rows (generation, id, customer, status, amount, currency, card, country, saga, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		tx.Generation(), idOf(e.Stream), e.Fact.Customer, string(Pending), e.Fact.Total.Amount(), e.Fact.Total.Currency(), e.Fact.Card, e.Fact.Country, e.Fact.Saga, e.RecordedAt)
	for _, l := range e.Fact.Lines {
		if err != nil {
			break
		}
		err = tx.Queue(ctx, `INSERT INTO orders.lines_rows (generation, order_id, sku, quantity) VALUES ($1, $2, $3, $4)`,
			tx.Generation(), idOf(e.Stream), l.SKU, l.Quantity)
	}
	return err
}

func status[T any](becomes Status) projection.Handler {
	return projection.For(Events.Decode, func(ctx context.Context, tx *projection.Tx, e projection.Event[T]) error {
		return tx.Queue(ctx, `UPDATE orders.orders_rows SET status = $3 WHERE generation = $1 AND id = $2`, tx.Generation(), idOf(e.Stream), string(becomes))
	})
}
