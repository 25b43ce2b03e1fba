package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// measureIdempotency measures what acting once costs a handler that writes one row: behind the middleware, and in its own transaction.
func measureIdempotency(ctx context.Context, s settings) (rows []Row, err error) {
	server, _, pool, err := database(ctx, s.clients)
	if err != nil {
		return nil, err
	}
	defer func() {
		pool.Close()
		err = errors.Join(err, server.Close())
	}()
	if _, err := pool.Exec(ctx, `CREATE TABLE bench_effects (id bigint GENERATED ALWAYS AS IDENTITY, note text)`); err != nil {
		return nil, err
	}
	write := func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
		_, err := tx.Exec(ctx, `INSERT INTO bench_effects (note) VALUES ('written')`)
		return idempotency.Response{Status: http.StatusCreated, Body: []byte(`{"written":true}`)}, err
	}
	bare := answering(func(r *http.Request) (idempotency.Response, error) { return transaction(r.Context(), pool, write) })
	behind := idempotency.Middleware(idempotency.NewPostgres(pool, idempotency.Options{}), idempotency.MiddlewareOptions{})(bare)
	within := answering(func(r *http.Request) (idempotency.Response, error) {
		a, _, err := idempotency.Once(r.Context(), pool, idempotency.Key{Key: r.Header.Get(idempotency.HeaderKey)}, idempotency.Fingerprint{}, write)
		return a, err
	})
	took := make([][]float64, 3)
	for i := range s.samples { // side by side, one after the other
		for n, h := range []http.Handler{bare, behind, within} {
			ms, err := serve(ctx, h, fmt.Sprintf("%d-%d", i, n))
			if err != nil {
				return nil, err
			}
			took[n] = append(took[n], ms)
		}
	}
	const mark = 0.6 // ms
	p50 := median(took[0])
	return []Row{
		row("idempotency.overhead.p50", median(took[1])-p50, "ms", mark, fmt.Sprintf("a request with a key through the middleware, over the bare handler (%.2f ms), median; limit: the mark", p50)),
		row("idempotency.once.p50", median(took[2])-p50, "ms", mark, "the same in the handler's own transaction; limit: the mark"),
	}, nil
}

func transaction(ctx context.Context, pool *pgxpool.Pool, do func(context.Context, pgx.Tx) (idempotency.Response, error)) (a idempotency.Response, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		a, err = do(ctx, tx)
		return err
	})
	return a, err
}

func answering(do func(*http.Request) (idempotency.Response, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, err := do(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(a.Status)
		_, _ = w.Write(a.Body)
	})
}

// serve has a handler serve one request and returns how long it took, in milliseconds.
func serve(ctx context.Context, h http.Handler, key string) (float64, error) {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/effects", strings.NewReader(`{"note":"written"}`))
	r.Header.Set(idempotency.HeaderKey, key)
	w := httptest.NewRecorder()
	began := time.Now()
	h.ServeHTTP(w, r)
	took := time.Since(began)
	if w.Code != http.StatusCreated {
		return 0, fmt.Errorf("a request was answered with %d %s", w.Code, w.Body)
	}
	return float64(took) / float64(time.Millisecond), nil
}
