// Package ledger looks at all services at once, and finds what does not add up.
package ledger

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
)

// Ledger is what the orders have left behind, the stock, and what does not add up.
type Ledger struct {
	Orders []Order
	Stock  []Stock
	// Differences are what the balance finds; none means that all adds up. An order that has not ended is one, too.
	Differences []Difference
}

// Order is what one order has left behind.
type Order struct {
	Order string
	// Status is that of the order, or none when orders does not know it.
	Status string
	// Held and Gone are in pieces.
	Held, Gone int64
	// Promised is what is authorized and neither captured nor voided, Taken what is captured less what was refunded: decimals, in Currency.
	Promised, Taken, Currency string
	// Labels are those that are valid, PickedUp those of them whose parcel was picked up.
	Labels, PickedUp int64
	// Invoiced is less what was credited, a decimal.
	Invoiced string
}

// Stock is one article.
type Stock struct {
	SKU                              string
	Delivered, Available, Held, Gone int64
}

// Difference is one thing that does not add up.
type Difference struct {
	// Kind is stock, money, labels, invoices or orders; Subject the article, the order or the kind of document.
	Kind, Subject, Problem string
}

func (d Difference) String() string { return d.Kind + ": " + d.Subject + ": " + d.Problem }

// Read reads everything, in one snapshot.
func Read(ctx context.Context, pool *pgxpool.Pool) (Ledger, error) {
	var l Ledger
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, pool, options, func(tx pgx.Tx) (err error) {
		if l.Orders, err = query[Order](ctx, tx, ordertocash.LedgerSQL); err != nil {
			return err
		}
		if l.Stock, err = query[Stock](ctx, tx, ordertocash.StockSQL); err != nil {
			return err
		}
		l.Differences, err = query[Difference](ctx, tx, ordertocash.BalanceSQL)
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
	for _, d := range l.Differences {
		all = append(all, d.String())
	}
	return all
}

// Write prints the ledger as tables.
func (l Ledger) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "ORDER\tSTATUS\tHELD\tGONE\tPROMISED\tTAKEN\tINVOICED\tLABEL\tBALANCE")
	for _, o := range l.Orders {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\n",
			o.Order, o.Status, o.Held, o.Gone, money(o.Promised, o.Currency), money(o.Taken, o.Currency), money(o.Invoiced, o.Currency), o.label(), l.verdict(o.Order))
	}
	fmt.Fprintln(t, "\nARTICLE\tDELIVERED\tAVAILABLE\tHELD\tGONE\tBALANCE")
	for _, s := range l.Stock {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\n", s.SKU, s.Delivered, s.Available, s.Held, s.Gone, l.verdict(s.SKU))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing the ledger: %w", err)
	}
	return nil
}

// money leaves nothing out but what is nothing.
func money(amount, currency string) string {
	if strings.Trim(amount, "0.") == "" {
		return "-"
	}
	return amount + " " + currency
}

func (o Order) label() string {
	switch {
	case o.Labels == 0:
		return "-"
	case o.Labels == 1 && o.PickedUp == 1:
		return "picked up"
	case o.Labels == 1:
		return "printed"
	default:
		return fmt.Sprintf("%d, %d picked up", o.Labels, o.PickedUp)
	}
}

func (l Ledger) verdict(subject string) string {
	var problems []string
	for _, d := range l.Differences {
		if d.Subject == subject {
			problems = append(problems, d.Problem)
		}
	}
	if problems == nil {
		return "ok"
	}
	return strings.Join(problems, "; ")
}
