package ledger_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

// tables returns the services' tables, with a fulfilled order 1, an order 2 that was rolled back after everything had been done but the pick-up, and an order 3 that was refused
// at the first step, all as they should be.
func tables(t *testing.T) *pgxpool.Pool {
	t.Helper()
	s, err := services.Start(t.Context(), services.Options{DatabaseURL: throwaway.EmptyDatabase(t), Stock: map[string]services.Article{"B-1": {Delivered: 10}}, MaxConns: 2, Timeout: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	exec(t, s.Pool(), `
		INSERT INTO orders.orders_rows (generation, id, customer, status, amount, currency, card, country, created_at) VALUES
			(1, '1', 'c', 'fulfilled', 129.90, 'EUR', 'card', 'DE', now()), (1, '2', 'c', 'cancelled', 10, 'EUR', 'card', 'DE', now()), (1, '3', 'c', 'cancelled', 10, 'EUR', 'card', 'DE', now());
		INSERT INTO orders.lines_rows VALUES (1, '1', 'B-1', 2), (1, '2', 'B-1', 3), (1, '3', 'B-1', 3);
		INSERT INTO inventory.reservations (order_id, state, expires_at) VALUES ('1', 'committed', now() + '1h'), ('2', 'returned', now() + '1h');
		INSERT INTO inventory.lines VALUES (1, 'B-1', 2), (2, 'B-1', 3);
		UPDATE inventory.stock SET available = 8;
		INSERT INTO payments.authorizations (order_id, card, amount, currency) VALUES ('1', 'card', 129.90, 'EUR'), ('2', 'card', 10, 'EUR');
		INSERT INTO payments.captures (authorization_id, amount) VALUES (1, 129.90), (2, 10);
		INSERT INTO payments.refunds (capture, amount) VALUES (2, 10);
		INSERT INTO shipping.labels (order_id, country, pieces, picked_up_at, voided_at) VALUES ('1', 'DE', 2, now(), NULL), ('2', 'DE', 3, NULL, now());
		INSERT INTO invoicing.documents (kind, number, order_id, amount, currency, credits) VALUES
			('invoice', 1, '1', 129.90, 'EUR', NULL), ('invoice', 2, '2', 10, 'EUR', NULL), ('credit note', 1, '2', 10, 'EUR', 2);
		UPDATE invoicing.numbers SET last = CASE kind WHEN 'invoice' THEN 2 ELSE 1 END;`)
	return s.Pool()
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, pool *pgxpool.Pool) ledger.Ledger {
	t.Helper()
	l, err := ledger.Read(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTheLedgerOfOrdersThatAreRightBalances(t *testing.T) {
	t.Parallel()
	l := read(t, tables(t))
	want := ledger.Ledger{
		Orders: []ledger.Order{
			{Order: "1", Status: "fulfilled", Gone: 2, Promised: "0", Taken: "129.90", Currency: "EUR", Labels: 1, PickedUp: 1, Invoiced: "129.90"},
			{Order: "2", Status: "cancelled", Promised: "0", Taken: "0", Currency: "EUR", Invoiced: "0"},
			{Order: "3", Status: "cancelled", Promised: "0", Taken: "0", Invoiced: "0"},
		},
		Stock:       []ledger.Stock{{SKU: "B-1", Delivered: 10, Available: 8, Gone: 2}},
		Differences: []ledger.Difference{},
	}
	if diff := cmp.Diff(want, l); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if problems := l.Problems(); problems != nil {
		t.Errorf("problems: %q", problems)
	}
	var out strings.Builder
	if err := l.Write(&out); err != nil {
		t.Fatal(err)
	}
	const table = `ORDER   STATUS      HELD   GONE   PROMISED   TAKEN        INVOICED     LABEL       BALANCE
1       fulfilled   0      2      -          129.90 EUR   129.90 EUR   picked up   ok
2       cancelled   0      0      -          -            -            -           ok
3       cancelled   0      0      -          -            -            -           ok

ARTICLE   DELIVERED   AVAILABLE   HELD   GONE   BALANCE
B-1       10          8           0      2      ok
`
	if diff := cmp.Diff(table, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTheBalanceFindsWhatDoesNotAddUp(t *testing.T) {
	t.Parallel()
	const notTwo = `orders: 1: fulfilled, but what is gone is {"B-1": 1} and not {"B-1": 2}`
	for name, c := range map[string]struct {
		sql  string
		want []string
	}{
		"goods vanished":               {`UPDATE inventory.stock SET available = 7`, []string{"stock: B-1: 10 delivered, but 7 available, 0 held and 2 gone"}},
		"goods out of nowhere":         {`UPDATE inventory.stock SET available = 9`, []string{"stock: B-1: 10 delivered, but 9 available, 0 held and 2 gone"}},
		"sent less than ordered":       {`UPDATE inventory.lines SET quantity = 1 WHERE reservation = 1; UPDATE inventory.stock SET available = 9`, []string{notTwo}},
		"still held for a fulfilled":   {`UPDATE inventory.reservations SET state = 'reserved' WHERE id = 1`, []string{`orders: 1: fulfilled, but 2 pieces are held`, `orders: 1: fulfilled, but what is gone is  and not {"B-1": 2}`}},
		"still held for a cancelled":   {`UPDATE inventory.reservations SET state = 'reserved' WHERE id = 2; UPDATE inventory.stock SET available = 5`, []string{"orders: 2: cancelled, but 3 pieces are held"}},
		"gone for a cancelled":         {`UPDATE inventory.reservations SET state = 'committed' WHERE id = 2; UPDATE inventory.stock SET available = 5`, []string{`orders: 2: cancelled, but {"B-1": 3} are gone`}},
		"captured twice":               {`INSERT INTO payments.captures (authorization_id, amount) VALUES (1, 129.90)`, []string{"money: 1: 259.80 captured of 129.90 authorized", "orders: 1: fulfilled, but 259.80 EUR captured, not 129.90 EUR"}},
		"authorized and captured anew": {`INSERT INTO payments.authorizations (order_id, card, amount, currency) VALUES ('1', 'card', 1, 'EUR')`, []string{"orders: 1: fulfilled, but 1 are still authorized"}},
		"captured in another currency": {`UPDATE payments.authorizations SET currency = 'USD' WHERE id = 1`, []string{"orders: 1: fulfilled, but 129.90 USD captured, not 129.90 EUR"}},
		"never captured":               {`DELETE FROM payments.captures WHERE id = 1`, []string{"orders: 1: fulfilled, but 0 EUR captured, not 129.90 EUR", "orders: 1: fulfilled, but 129.90 are still authorized"}},
		"captured and voided":          {`UPDATE payments.authorizations SET voided_at = now() WHERE id = 1`, []string{"money: 1: 129.90 captured and not refunded, of an authorization that was voided"}},
		"not refunded":                 {`DELETE FROM payments.refunds`, []string{"orders: 2: cancelled, but 10 EUR are captured"}},
		"refunded twice":               {`INSERT INTO payments.refunds (capture, amount) VALUES (2, 10)`, []string{"money: 2: 20 refunded of 10 captured", "orders: 2: cancelled, but -10 EUR are captured"}},
		"still authorized": {`INSERT INTO payments.authorizations (order_id, card, amount, currency) VALUES ('3', 'card', 10, 'EUR')`,
			[]string{"orders: 3: cancelled, but 10 are still authorized"}},
		"shipped twice":             {`INSERT INTO shipping.labels (order_id, country, pieces, picked_up_at) VALUES ('1', 'DE', 2, now())`, []string{"orders: 1: fulfilled, but it has 2 labels, 2 of them picked up"}},
		"never picked up":           {`UPDATE shipping.labels SET picked_up_at = NULL`, []string{"orders: 1: fulfilled, but it has 1 labels, 0 of them picked up"}},
		"a label that stayed":       {`UPDATE shipping.labels SET voided_at = NULL`, []string{"orders: 2: cancelled, but 1 labels are valid"}},
		"voided when under way":     {`UPDATE shipping.labels SET picked_up_at = now()`, []string{"labels: 2: a label was voided whose parcel was picked up"}},
		"never invoiced":            {`UPDATE invoicing.documents SET order_id = '2' WHERE number = 1 AND kind = 'invoice'`, []string{"orders: 1: fulfilled, but 0  invoiced, not 129.90 EUR", "orders: 2: cancelled, but 129.90 EUR are invoiced"}},
		"a gap in the invoices":     {`UPDATE invoicing.documents SET number = 3 WHERE order_id = '1'; UPDATE invoicing.numbers SET last = 3 WHERE kind = 'invoice'`, []string{"invoices: invoice: the last number is 3, there are 2 from 2 to 3"}},
		"an invoice that is gone":   {`DELETE FROM invoicing.documents WHERE kind = 'credit note'`, []string{"invoices: credit note: the last number is 1, there are 0 from  to ", "orders: 2: cancelled, but 10 EUR are invoiced"}},
		"a credit note for nothing": {`UPDATE invoicing.documents SET credits = 1 WHERE kind = 'credit note'`, []string{"invoices: 2: credit note 1 credits no invoice of that order and amount"}},
		"credited twice":            {`INSERT INTO invoicing.documents VALUES ('credit note', 2, '2', 10, 'EUR', 2); UPDATE invoicing.numbers SET last = 2`, []string{"invoices: 2: invoice 2 was credited 2 times", "orders: 2: cancelled, but -10 EUR are invoiced"}},
		"never finished":            {`UPDATE orders.orders_rows SET status = 'accepted' WHERE id = '3'`, []string{"orders: 3: neither fulfilled nor undone: it is accepted"}},
		"something of nobody's":     {`INSERT INTO shipping.labels (order_id, country, pieces) VALUES ('9', 'DE', 1)`, []string{"orders: 9: unknown, but 1 labels are valid"}},
		"a fulfilled that was less": {`UPDATE orders.orders_rows SET amount = 100 WHERE id = '1'`, []string{"orders: 1: fulfilled, but 129.90 EUR captured, not 100 EUR", "orders: 1: fulfilled, but 129.90 EUR invoiced, not 100 EUR"}},
		"a cancelled that went through": {`UPDATE orders.orders_rows SET status = 'cancelled' WHERE id = '1'`,
			[]string{"orders: 1: cancelled, but 1 labels are valid", "orders: 1: cancelled, but 129.90 EUR are captured", "orders: 1: cancelled, but 129.90 EUR are invoiced", `orders: 1: cancelled, but {"B-1": 2} are gone`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := tables(t)
			exec(t, pool, c.sql)
			if diff := cmp.Diff(c.want, read(t, pool).Problems()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCallsThatMustNotBeAreFound(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		calls []ledger.Call
		want  []string
	}{
		"as it should be": {[]ledger.Call{
			{Service: "payments", Key: "a", Effect: "capture 1", Deliveries: 4, Acted: 1}, {Service: "payments", Key: "b", Effect: "refund 1", Deliveries: 1, Nothing: 1},
			{Service: "shipping", Key: "a", Effect: "print 1", Deliveries: 2},
		}, nil},
		"two keys": {[]ledger.Call{{Service: "payments", Key: "a", Effect: "capture 1", Deliveries: 1}, {Service: "payments", Key: "b", Effect: "capture 1", Deliveries: 1}},
			[]string{"payments: capture 1 came under two keys: a and b"}},
		"two effects": {[]ledger.Call{{Service: "payments", Key: "a", Effect: "capture 1", Deliveries: 1}, {Service: "payments", Key: "a", Effect: "capture 2", Deliveries: 1}},
			[]string{"payments: the key a stands for two effects: capture 1 and capture 2"}},
		"decided twice":   {[]ledger.Call{{Service: "payments", Key: "a", Effect: "capture 1", Deliveries: 2, Acted: 1, Refused: 1}}, []string{"payments: capture 1 was decided 2 times under the key a"}},
		"never delivered": {[]ledger.Call{{Service: "payments", Key: "a", Effect: "capture 1", Acted: 1}}, []string{"payments: capture 1 happened under the key a, which was never delivered"}},
	} {
		if diff := cmp.Diff(c.want, ledger.CheckCalls(c.calls)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
