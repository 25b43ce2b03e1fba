package participant_test

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
	"github.com/vextrus/saga-operator/pkg/participant"
)

// A service that charges cards. The compensation comes first here, because the action was held up on its way; the late action does nothing.
func Example() {
	ctx := context.Background()
	pool, stop, err := database(ctx)
	if err != nil {
		panic(err)
	}
	defer stop()
	if _, err := pool.Exec(ctx, participant.Schema+`CREATE TABLE charges (order_id text, cents bigint)`); err != nil {
		panic(err)
	}
	s := participant.New(pool, participant.Options{})
	mux := http.NewServeMux()
	mux.Handle("POST /charges/{order}", s.Action(func(r *participant.Request) (participant.Intent, error) {
		var in struct{ Cents int64 }
		if err := r.Decode(&in); err != nil {
			return participant.Intent{}, err
		}
		order := r.PathValue("order")
		return participant.Intent{Effect: "charge " + order, Do: func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
			if in.Cents > 100_000 {
				return participant.Answer{}, participant.Refuse(http.StatusPaymentRequired, "card declined")
			}
			_, err := tx.Exec(ctx, `INSERT INTO charges VALUES ($1, $2)`, order, in.Cents)
			return participant.Answer{Status: http.StatusCreated, Body: map[string]string{"id": "charge-" + order}}, err
		}}, nil
	}))
	mux.Handle("DELETE /charges/{order}", s.Compensation(func(r *participant.Request) (participant.Intent, error) {
		order := r.PathValue("order")
		return participant.Intent{Effect: "charge " + order, Do: func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
			_, err := tx.Exec(ctx, `DELETE FROM charges WHERE order_id = $1`, order)
			return participant.Answer{Body: map[string]bool{"undone": true}}, err
		}}, nil
	}))
	server := httptest.NewServer(mux)
	defer server.Close()

	call(server.URL, "POST", "/charges/1", "u-1/charge/action", `{"cents": 4990}`)
	call(server.URL, "POST", "/charges/1", "u-1/charge/action", `{"cents": 4990}`)
	call(server.URL, "DELETE", "/charges/1", "u-1/charge/compensation", ``)
	call(server.URL, "DELETE", "/charges/2", "u-2/charge/compensation", ``)
	call(server.URL, "POST", "/charges/2", "u-2/charge/action", `{"cents": 10}`)
	// Output:
	// POST /charges/1 201 {"id":"charge-1"}
	// POST /charges/1 201 {"id":"charge-1"}
	// DELETE /charges/1 200 {"undone":true}
	// DELETE /charges/2 200 {"undone":false}
	// POST /charges/2 409 {"message":"charge 2 has been undone already"}
}

// call is what the operator does.
func call(url, method, path, key, body string) {
	req, err := http.NewRequestWithContext(context.Background(), method, url+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	fmt.Println(method, path, resp.StatusCode, strings.TrimSpace(string(answer)))
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
