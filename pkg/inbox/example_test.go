package inbox_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/pkg/inbox"
)

// A consumer that writes an invoice for each order, and gets the same message twice.
func ExampleDo() {
	ctx := context.Background()
	pool, stop, err := database(ctx)
	if err != nil {
		panic(err)
	}
	defer stop()
	if _, err := pool.Exec(ctx, inbox.Schema+`CREATE TABLE invoices (order_number text, cents bigint)`); err != nil {
		panic(err)
	}
	for range 2 {
		message := inbox.Key{Consumer: "billing", Source: "/apis/saga.vextrus.io/v1/namespaces/shop/sagas", ID: "019391c5-0000-7000-8000-000000000001"}
		done, err := inbox.Do(ctx, pool, message, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO invoices VALUES ('1042', 4990)`)
			return err
		})
		fmt.Println("done:", done, "error:", err)
	}
	var invoices int
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM invoices`).Scan(&invoices); err != nil {
		panic(err)
	}
	fmt.Println("invoices:", invoices)

	// Once a day or so. No message comes again after a month here.
	swept, err := inbox.Sweep(ctx, pool, 30*24*time.Hour, 0)
	fmt.Println("swept:", swept, err)
	// Output:
	// done: true error: <nil>
	// done: false error: <nil>
	// invoices: 1
	// swept: 0 <nil>
}

// database is one for an example, which has no test to ask for one.
func database(ctx context.Context) (pool *pgxpool.Pool, stop func(), err error) {
	server, err := throwaway.Start(ctx, throwaway.Options{})
	if err != nil {
		return nil, nil, err
	}
	url, drop, err := server.NewEmptyDatabase(ctx)
	if err != nil {
		return nil, nil, err
	}
	if pool, err = pgxpool.New(ctx, url); err != nil {
		return nil, nil, err
	}
	return pool, func() {
		pool.Close()
		drop()
		_ = server.Close() // the example is over
	}, nil
}
