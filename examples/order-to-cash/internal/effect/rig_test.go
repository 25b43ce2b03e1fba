package effect_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/pkg/participant"
)

// patience bounds every wait, and the work for each request: nobody waits that long where all is well.
const patience = 10 * time.Minute

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

// rig is a service whose action adds one to a counter per order, and whose compensation takes one away.
type rig struct {
	*effect.Service
	t    *testing.T
	pool *pgxpool.Pool
	url  string
	// onAct runs within the action, after it has counted.
	onAct func(context.Context) error
}

func start(t *testing.T) *rig {
	t.Helper()
	pool, err := effect.Connect(t.Context(), throwaway.EmptyDatabase(t), "rig", 4, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	r := &rig{Service: effect.New(pool, "rig", nil, slog.New(slog.DiscardHandler)), t: t, pool: pool}
	r.SetTimeout(patience)
	err = r.Setup(t.Context(), `CREATE TABLE IF NOT EXISTS rig.counts (id bigint GENERATED ALWAYS AS IDENTITY, order_id text, n int)`)
	if err != nil {
		t.Fatal(err)
	}
	r.Action("POST /act/{order}", "act", func(req *participant.Request) (in effect.Intent, err error) {
		var body struct {
			Note string `json:"note"`
		}
		in.Order, err = effect.Order(req)
		in.Effect, in.Do = "count "+in.Order, r.act(in.Order)
		return in, errors.Join(err, req.Decode(&body))
	})
	r.Compensation("DELETE /act/{order}", "undo", func(req *participant.Request) (in effect.Intent, err error) {
		in.Order, err = effect.Order(req)
		in.Effect, in.Do = "count "+in.Order, r.undo(in.Order)
		return in, err
	})
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *rig) act(order string) func(context.Context, pgx.Tx) (participant.Answer, error) {
	return func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		var id int64
		err := tx.QueryRow(ctx, `INSERT INTO rig.counts (order_id, n) VALUES ($1, 1) RETURNING id`, order).Scan(&id)
		if err == nil && r.onAct != nil {
			err = r.onAct(ctx)
		}
		return participant.Answer{Status: http.StatusCreated, Body: map[string]int64{"id": id}}, err
	}
}

func (r *rig) undo(order string) func(context.Context, pgx.Tx) (participant.Answer, error) {
	return func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		_, err := tx.Exec(ctx, `INSERT INTO rig.counts (order_id, n) VALUES ($1, -1)`, order)
		return participant.Answer{Body: map[string]bool{"undone": true}}, err
	}
}

type reply struct {
	Status int
	Body   string
}

// send sends a request once. Keep-alive is off, because a transport repeats a request with an Idempotency-Key on its own when a kept
// connection breaks.
func send(ctx context.Context, method, url, key, body string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	req.Close = true
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, string(b)}, err
}

func (r *rig) send(method, path, key, body string) reply {
	r.t.Helper()
	got, err := send(r.t.Context(), method, r.url+path, key, body)
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

// eventually waits until a page shows something: until is told the answer.
func (r *rig) eventually(path string, until func(reply) bool) {
	r.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for {
		got := r.send("GET", path, "", "")
		if until(got) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("%s still shows %v", path, got)
		}
	}
}

func (r *rig) net(order string) (n int) {
	r.t.Helper()
	if err := r.pool.QueryRow(r.t.Context(), `SELECT coalesce(sum(n), 0) FROM rig.counts WHERE order_id = $1`, order).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

type count struct{ Deliveries, Acted, Nothing, Refused int }

func (r *rig) calls(key string) (c count) {
	r.t.Helper()
	err := r.pool.QueryRow(r.t.Context(), `SELECT deliveries, effects, nothing, refused FROM rig.calls_by_key WHERE key = $1`, key).
		Scan(&c.Deliveries, &c.Acted, &c.Nothing, &c.Refused)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}
