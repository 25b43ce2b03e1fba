// Package ledger looks at all four services at once, and finds what does not add up.
package ledger

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
)

// Ledger is what the orders have left behind, and the stock.
type Ledger struct {
	Orders []Order
	Stock  []Stock
}

// Order is what one order has left behind.
type Order struct {
	Order string
	// Status is pending, confirmed or cancelled, or none when orders does not know it.
	Status string
	// Reserved is in pieces, Charged what was charged less what was refunded, a decimal, Labels the labels that are valid.
	Reserved int64
	Charged  string
	Currency string
	Labels   int64
	// Problem says what is wrong; empty is nothing. A pending order is a problem, too: it is not finished.
	Problem string
}

// Stock is one article.
type Stock struct {
	SKU                            string
	Delivered, Available, Reserved int64
	Problem                        string
}

// Read reads the ledger of every order, in one snapshot.
func Read(ctx context.Context, pool *pgxpool.Pool) (Ledger, error) {
	var l Ledger
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, pool, options, func(tx pgx.Tx) (err error) {
		if l.Orders, err = query[Order](ctx, tx, `SELECT "order", status, reserved::bigint, charged::text, currency, labels, problem FROM (`+ordertocash.LedgerSQL+`) AS ledger`); err != nil {
			return err
		}
		l.Stock, err = query[Stock](ctx, tx, ordertocash.StockSQL)
		return err
	})
	if err != nil {
		return Ledger{}, fmt.Errorf("reading the ledger: %w", err)
	}
	return l, nil
}

func query[T any](ctx context.Context, tx pgx.Tx, sql string) ([]T, error) {
	rows, err := tx.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}

// Problems lists what does not add up; none means that the ledger balances.
func (l Ledger) Problems() []string {
	var all []string
	for _, o := range l.Orders {
		if o.Problem != "" {
			all = append(all, fmt.Sprintf("order %s (%s): %s", o.Order, o.Status, o.Problem))
		}
	}
	for _, s := range l.Stock {
		if s.Problem != "" {
			all = append(all, fmt.Sprintf("article %s: %s", s.SKU, s.Problem))
		}
	}
	return all
}

// Write prints the ledger as tables.
func (l Ledger) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "ORDER\tSTATUS\tRESERVED\tCHARGED\tLABELS\tBALANCE")
	for _, o := range l.Orders {
		charged := o.Charged
		if o.Currency != "" {
			charged += " " + o.Currency
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%s\n", o.Order, o.Status, o.Reserved, charged, o.Labels, verdict(o.Problem))
	}
	fmt.Fprintln(t, "\nARTICLE\tDELIVERED\tAVAILABLE\tRESERVED\tBALANCE")
	for _, s := range l.Stock {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\n", s.SKU, s.Delivered, s.Available, s.Reserved, verdict(s.Problem))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing the ledger: %w", err)
	}
	return nil
}

func verdict(problem string) string {
	if problem == "" {
		return "ok"
	}
	return problem
}
