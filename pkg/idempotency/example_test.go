package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// A handler that does something elsewhere, behind the middleware.
func ExampleMiddleware() {
	mails := 0
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mails++
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, "mail %d", mails)
	})
	server := httptest.NewServer(idempotency.Middleware(idempotency.NewMemory(idempotency.Options{}), idempotency.MiddlewareOptions{})(handler))
	defer server.Close()
	for range 2 {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, server.URL+"/mails", strings.NewReader("hello"))
		if err != nil {
			panic(err)
		}
		req.Header.Set("Idempotency-Key", "8e03978e-40d5-43dd-bc93-6894a57f9324")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			panic(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		fmt.Println(resp.StatusCode, string(body), "replayed:", resp.Header.Get("Idempotency-Replayed") == "true")
	}
	// Output:
	// 201 mail 1 replayed: false
	// 201 mail 1 replayed: true
}

// A handler whose effect is in its own database: the effect, the key and the answer are committed together.
func ExampleOnce() {
	ctx := context.Background()
	pool, stop, err := database(ctx)
	if err != nil {
		panic(err)
	}
	defer stop()
	if _, err := pool.Exec(ctx, idempotency.Schema+`CREATE TABLE payments (cents bigint)`); err != nil {
		panic(err)
	}
	body := []byte(`{"cents": 4990}`)
	for range 2 {
		answer, replayed, err := idempotency.Once(ctx, pool, idempotency.Key{Realm: "customer-7", Key: "k-1"}, idempotency.FingerprintOf("POST", "/payments", body),
			func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
				_, err := tx.Exec(ctx, `INSERT INTO payments VALUES (4990)`)
				return idempotency.Response{Status: http.StatusCreated, Body: []byte("paid")}, err
			})
		fmt.Println(answer.Status, string(answer.Body), replayed, err)
	}
	// Output:
	// 201 paid false <nil>
	// 201 paid true <nil>
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
