package ledger_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/ledger"
	"github.com/vextrus/saga-operator/examples/order-to-cash/services"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

// tables returns the services' tables, with one confirmed order 1 and one cancelled order 2 that are as they should be.
func tables(t *testing.T) *pgxpool.Pool {
	t.Helper()
	s, err := services.Start(t.Context(), services.Options{DatabaseURL: throwaway.EmptyDatabase(t), Stock: map[string]int64{"B-1": 10}, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	exec(t, s.Pool(), `
		INSERT INTO orders.orders_rows (generation, id, customer, status, amount, currency, created_at) VALUES (1, '1', 'c', 'confirmed', 129.90, 'EUR', now()), (1, '2', 'c', 'cancelled', 10, 'EUR', now());
		INSERT INTO orders.lines_rows VALUES (1, '1', 'B-1', 2), (1, '2', 'B-1', 3);
		INSERT INTO inventory.reservations (order_id, released_at) VALUES ('1', NULL), ('2', now());
		INSERT INTO inventory.lines VALUES (1, 'B-1', 2), (2, 'B-1', 3);
		UPDATE inventory.stock SET available = 8;
		INSERT INTO payments.charges (order_id, amount, currency) VALUES ('1', 129.90, 'EUR'), ('2', 10, 'EUR');
		INSERT INTO payments.refunds (charge, amount) VALUES (2, 10);
		INSERT INTO shipping.labels (order_id, charge, voided_at) VALUES ('1', 'c', NULL), ('2', 'c', now());`)
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
			{Order: "1", Status: "confirmed", Reserved: 2, Charged: "129.90", Currency: "EUR", Labels: 1},
			{Order: "2", Status: "cancelled", Charged: "0", Currency: "EUR"},
		},
		Stock: []ledger.Stock{{SKU: "B-1", Delivered: 10, Available: 8, Reserved: 2}},
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
	const table = `ORDER   STATUS      RESERVED   CHARGED      LABELS   BALANCE
1       confirmed   2          129.90 EUR   1        ok
2       cancelled   0          0 EUR        0        ok

ARTICLE   DELIVERED   AVAILABLE   RESERVED   BALANCE
B-1       10          8           2          ok
`
	if diff := cmp.Diff(table, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTheLedgerFindsWhatDoesNotBalance(t *testing.T) {
	t.Parallel()
	const tooMuch = "article B-1: available and reserved do not add up to delivered"
	for _, c := range []struct {
		name, sql string
		want      []string
	}{
		{"charged twice", `INSERT INTO payments.charges (order_id, amount, currency) VALUES ('1', 129.90, 'EUR')`, []string{"order 1 (confirmed): charged is not 129.90 EUR"}},
		{"charged in another currency", `UPDATE payments.charges SET currency = 'USD' WHERE id = 1`, []string{"order 1 (confirmed): charged is not 129.90 EUR"}},
		{"never charged", `DELETE FROM payments.charges WHERE id = 1`, []string{"order 1 (confirmed): charged is not 129.90 EUR"}},
		{"shipped twice", `INSERT INTO shipping.labels (order_id, charge) VALUES ('1', 'c')`, []string{"order 1 (confirmed): labels are not 1"}},
		{"never shipped", `UPDATE shipping.labels SET voided_at = now()`, []string{"order 1 (confirmed): labels are not 1"}},
		{"reserved less", `UPDATE inventory.lines SET quantity = 1 WHERE reservation = 1`, []string{"order 1 (confirmed): reserved is not what was ordered", tooMuch}},
		{"reserved twice", `INSERT INTO inventory.reservations (order_id) VALUES ('1'); INSERT INTO inventory.lines VALUES (3, 'B-1', 2)`, []string{"order 1 (confirmed): reserved is not what was ordered", tooMuch}},
		{"refunded twice", `INSERT INTO payments.refunds (charge, amount) VALUES (2, 10)`, []string{"order 2 (cancelled): money is still charged"}},
		{"never refunded", `DELETE FROM payments.refunds`, []string{"order 2 (cancelled): money is still charged"}},
		{"never released", `UPDATE inventory.reservations SET released_at = NULL`, []string{"order 2 (cancelled): stock is still reserved", tooMuch}},
		{"never voided", `UPDATE shipping.labels SET voided_at = NULL`, []string{"order 2 (cancelled): a label is still valid"}},
		{"not finished", `UPDATE orders.orders SET status = 'pending' WHERE id = '1'`, []string{"order 1 (pending): still pending"}},
		{"charged for nothing", `INSERT INTO payments.charges (order_id, amount, currency) VALUES ('3', 1, 'EUR')`, []string{"order 3 (none): money is still charged"}},
		{"released twice", `UPDATE inventory.stock SET available = 10`, []string{tooMuch}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			pool := tables(t)
			exec(t, pool, c.sql)
			if diff := cmp.Diff(c.want, read(t, pool).Problems()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheLogOfCallsFindsWhatMustNotBe(t *testing.T) {
	t.Parallel()
	good := []ledger.Call{
		{Service: "payments", Key: "a", Effect: "charge 1", Deliveries: 3, Acted: 1},
		{Service: "payments", Key: "b", Effect: "refund 1", Deliveries: 1, Nothing: 1},
		{Service: "shipping", Key: "a", Effect: "ship 1", Deliveries: 2},
	}
	if problems := ledger.CheckCalls(good); problems != nil {
		t.Errorf("problems: %q", problems)
	}
	for want, bad := range map[string]ledger.Call{
		"payments: charge 1 came under two keys: a and c":                      {Service: "payments", Key: "c", Effect: "charge 1", Deliveries: 1},
		"payments: the key a stands for two effects: charge 1 and charge 2":    {Service: "payments", Key: "a", Effect: "charge 2", Deliveries: 1},
		"orders: create 1 was decided 2 times under the key k":                 {Service: "orders", Key: "k", Effect: "create 1", Deliveries: 2, Acted: 1, Nothing: 1},
		"orders: create 1 happened under the key k, which was never delivered": {Service: "orders", Key: "k", Effect: "create 1", Acted: 1},
	} {
		if diff := cmp.Diff([]string{want}, ledger.CheckCalls(append(good[:3:3], bad))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}
