package participant_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/pkg/participant"
)

func TestMain(m *testing.M) { os.Exit(throwaway.Main(m)) }

// patience bounds what a test waits for; nothing takes that long.
const patience = 10 * time.Minute

// unhurried is a database that the service asks for as long as it takes, and whose transactions are undone likewise. The service's own bounds are for databases that hang, and those of tests may
// be slower than that.
type unhurried struct{ *pgxpool.Pool }

func (u unhurried) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return u.Pool.Exec(context.WithoutCancel(ctx), sql, args...)
}

// patient posts for as long as the service runs: its own bound is for operators that hang.
type patient struct{}

// running is where the context of a Run keeps itself.
type running struct{}

func (patient) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, ok := r.Context().Value(running{}).(context.Context)
	if !ok {
		return nil, errors.New("it is posted by nobody who runs")
	}
	return http.DefaultTransport.RoundTrip(r.WithContext(ctx))
}

// rig is a participant that books things: an action adds 1 to a thing, its compensation takes 1 away. The table has nothing that would hide a second one.
type rig struct {
	t    *testing.T
	ctx  context.Context
	pool *pgxpool.Pool
	*participant.Service
	url string
	// fails is what an action or compensation comes to instead, if not nil.
	mu    sync.Mutex
	fails func(r *participant.Request) error
}

func newRig(t *testing.T, options ...participant.Options) *rig {
	t.Helper()
	ctx := t.Context()
	config, err := pgxpool.ParseConfig(throwaway.EmptyDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 20
	r := &rig{t: t, ctx: ctx}
	if r.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.pool.Close)
	r.exec(participant.Schema)
	r.exec(`CREATE TABLE bookings (thing text, n integer)`)
	var o participant.Options
	if len(options) > 0 {
		o = options[0]
	}
	o.Poll, o.Timeout, o.Client = 5*time.Millisecond, patience, &http.Client{Transport: patient{}}
	r.Service = participant.New(unhurried{r.pool}, o)
	mux := http.NewServeMux()
	mux.Handle("POST /things/{thing}", r.Action(r.book))
	mux.Handle("DELETE /things/{thing}", r.Compensation(r.unbook))
	mux.Handle("POST /later/{thing}", r.Action(r.bookLater))
	mux.Handle("DELETE /later/{thing}", r.Compensation(r.unbook))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	r.url = s.URL
	return r
}

func (r *rig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.pool.Exec(r.ctx, sql, args...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) failing(f func(*participant.Request) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails = f
}

func (r *rig) fault(req *participant.Request) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fails == nil {
		return nil
	}
	return r.fails(req)
}

func add(ctx context.Context, tx pgx.Tx, thing string, n int) error {
	_, err := tx.Exec(ctx, `INSERT INTO bookings VALUES ($1, $2)`, thing, n)
	return err
}

func (r *rig) intent(req *participant.Request, n int) (participant.Intent, error) {
	thing := req.PathValue("thing")
	return participant.Intent{Effect: "book " + thing, Do: func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		if err := add(ctx, tx, thing, n); err != nil {
			return participant.Answer{}, err
		}
		return participant.Answer{Status: http.StatusCreated, Body: map[string]string{"thing": thing}}, r.fault(req)
	}}, nil
}

func (r *rig) book(req *participant.Request) (participant.Intent, error) {
	var in struct {
		Note string `json:"note"`
	}
	if err := req.Decode(&in); err != nil {
		return participant.Intent{}, err
	}
	return r.intent(req, 1)
}

func (r *rig) unbook(req *participant.Request) (participant.Intent, error) { return r.intent(req, -1) }

func (r *rig) bookLater(req *participant.Request) (participant.Intent, error) {
	thing := req.PathValue("thing")
	return participant.Intent{Effect: "book " + thing, Do: func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
		return participant.Later(ctx, tx, map[string]string{"thing": thing})
	}}, nil
}

// work books what was accepted.
func (r *rig) work(ctx context.Context, tx pgx.Tx, w participant.Work) (participant.Outcome, error) {
	var in struct{ Thing string }
	if err := json.Unmarshal(w.Data, &in); err != nil {
		return participant.Outcome{}, err
	}
	return participant.Outcome{Body: map[string]string{"thing": in.Thing}}, add(ctx, tx, in.Thing, 1)
}

// run does accepted work until the test ends, or the function it returns is called.
func (r *rig) run(do func(ctx context.Context, tx pgx.Tx, w participant.Work) (participant.Outcome, error)) func() {
	ctx, cancel := context.WithCancel(r.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(context.WithValue(ctx, running{}, ctx), do); err != nil {
			r.t.Error(err)
		}
	}()
	stop := func() {
		cancel()
		<-done
	}
	r.t.Cleanup(stop)
	return stop
}

// net is what is booked of a thing.
func (r *rig) net(thing string) (n int) {
	r.t.Helper()
	if err := r.pool.QueryRow(r.ctx, `SELECT coalesce(sum(n), 0) FROM bookings WHERE thing = $1`, thing).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (r *rig) is(thing string, want int) {
	r.t.Helper()
	if n := r.net(thing); n != want {
		r.t.Errorf("%d of %s are booked, want %d", n, thing, want)
	}
}

type reply struct {
	status int
	body   string
	header http.Header
}

func (r *rig) send(method, path, key, body string, header ...string) reply {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.ctx, method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Error(err)
		return reply{}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Error(err)
	}
	return reply{resp.StatusCode, string(data), resp.Header}
}

// answers sends a request and checks the status of its answer.
func (r *rig) answers(want int, method, path, key, body string, header ...string) reply {
	r.t.Helper()
	got := r.send(method, path, key, body, header...)
	if got.status != want {
		r.t.Errorf("%s %s under key %s was answered with %d %s, want %d", method, path, key, got.status, got.body, want)
	}
	return got
}

func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	for deadline := time.Now().Add(patience); !is(); <-ticks.C {
		if time.Now().After(deadline) {
			r.t.Fatalf("not in time: %s", what)
		}
	}
}
