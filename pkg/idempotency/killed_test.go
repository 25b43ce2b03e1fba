package idempotency_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/vextrus/saga-operator/pkg/idempotency"
)

// The environment of a process that is killed in the middle: its database, and in which form it acts.
const (
	childURL  = "IDEMPOTENCY_TEST_CHILD"
	childForm = "IDEMPOTENCY_TEST_FORM"
)

var children = map[string]func(context.Context, *pgxpool.Pool) error{
	"once": func(ctx context.Context, pool *pgxpool.Pool) error {
		_, _, err := idempotency.Once(ctx, pool, keyOf("1"), printOf("a"), func(ctx context.Context, tx pgx.Tx) (idempotency.Response, error) {
			_, err := effect("x")(ctx, tx)
			fmt.Fprintln(os.Stdout, "acted", err)
			select {} // until it is killed
		})
		return err
	},
	"middleware": func(_ context.Context, pool *pgxpool.Pool) error {
		s := httptest.NewServer(leased(pool, shortLease, func(err error) {
			fmt.Fprintln(os.Stdout, "acted", err)
			select {} // until it is killed
		}))
		fmt.Fprintln(os.Stdout, s.URL)
		select {}
	},
}

func child(url string) int {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, url)
	if err == nil {
		err = children[os.Getenv(childForm)](ctx, pool)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// process is a child.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	out *bufio.Reader
}

func (r *rig) start(form string) *process {
	r.t.Helper()
	cmd := exec.CommandContext(r.ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childURL+"="+r.url, childForm+"="+form)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return &process{r.t, cmd, bufio.NewReader(out)}
}

func (p *process) says() string {
	p.t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Errorf("%q, %v", line, err)
	}
	return strings.TrimSpace(line)
}

// kill kills it once it has acted.
func (p *process) kill() {
	p.t.Helper()
	if got := p.says(); got != "acted <nil>" {
		p.t.Errorf("it says %q", got)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.cmd.Wait() // it was killed
}

func TestAProcessThatIsKilledLeavesNeitherEffectNorKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start("once").kill()
	if replayed, err := r.once("1", "a", effect("x")); replayed || err != nil {
		t.Errorf("replayed: %v, %v", replayed, err)
	}
	r.eventually("the killed one's session has ended", func() bool {
		return r.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`) == 0
	})
	if n := r.effects(); n != 1 {
		t.Errorf("there are %d effects", n)
	}
}

// shortLease is that of who is killed, by the database's clock: nobody puts that forward.
const shortLease = 2 * time.Second

// leased is a handler behind the middleware, whose effect is there before its answer is kept.
func leased(pool *pgxpool.Pool, lease time.Duration, then func(error)) http.Handler {
	store := idempotency.NewPostgres(pool, idempotency.Options{Lease: lease})
	return idempotency.Middleware(unhurried{store}, idempotency.MiddlewareOptions{Timeout: patience})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := pool.Exec(r.Context(), `INSERT INTO effects VALUES ('x')`)
		then(err)
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "done")
	}))
}

func TestARetryTakesOverFromAProcessThatWasKilledAndItsLateCompletionIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	killed := r.start("middleware")
	first := &front{t: t, url: killed.says()}
	lost := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(r.ctx, http.MethodPost, first.url+"/orders?x=1", strings.NewReader("a"))
		if err == nil {
			req.Header.Set("Idempotency-Key", "1")
			var resp *http.Response
			if resp, err = (&http.Transport{DisableKeepAlives: true}).RoundTrip(req); err == nil {
				_ = resp.Body.Close()
			}
		}
		lost <- err
	}()
	killed.kill()
	if err := <-lost; err == nil {
		t.Error("there was an answer")
	}
	claim := idempotency.Claim{Key: idempotency.Key{Key: "1"}}
	if err := r.pool.QueryRow(r.ctx, `SELECT fence FROM idempotency_keys WHERE key = '1' AND state = 'started'`).Scan(&claim.Fence); err != nil {
		t.Fatal("its key is not claimed: ", err)
	}

	late := idempotency.NewPostgres(r.pool, idempotency.Options{})
	s := httptest.NewServer(leased(r.pool, idempotency.DefaultLease, func(err error) {
		if err != nil {
			t.Error(err)
		}
		// What the killed one may have sent before, and the network brings now.
		if err := late.Complete(r.ctx, claim, idempotency.Response{Status: 200, Body: []byte("late")}); !errors.Is(err, idempotency.ErrFenced) {
			t.Errorf("its late completion came to %v", err)
		}
		if err := late.Release(r.ctx, claim); !errors.Is(err, idempotency.ErrFenced) {
			t.Errorf("its late release came to %v", err)
		}
	}))
	t.Cleanup(s.Close)
	second := &front{t: t, url: s.URL}
	var got answer
	r.eventually("the lease is over", func() bool {
		got = second.send("POST", "1", "a")
		return got.status != http.StatusConflict
	})
	if got.status != 201 || got.body != "done" || got.header.Get("Idempotency-Replayed") != "" {
		t.Errorf("who took over was answered with %+v", got)
	}
	if n := r.count(`SELECT count(*) FROM idempotency_keys WHERE key = '1' AND state = 'completed' AND fence > $1`, claim.Fence); n != 1 {
		t.Error("the fencing number is not greater")
	}
	if got := second.send("POST", "1", "a"); got.body != "done" || got.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("a repetition is answered with %+v", got)
	}
	if n := r.effects(); n != 2 { // a key that is claimed says nothing of the effect, which has to bear it
		t.Errorf("there are %d effects", n)
	}
}
