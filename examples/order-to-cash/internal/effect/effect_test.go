package effect_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
)

func TestADuplicateIsAnsweredByteForByteAndDoesNothing(t *testing.T) {
	t.Parallel()
	r := start(t)
	first := r.send("POST", "/act/1", "k", `{"note": "a"}`)
	if want := (reply{201, "{\"id\":1}\n"}); first != want {
		t.Fatalf("the first answer is %v, not %v", first, want)
	}
	for range 3 {
		if again := r.send("POST", "/act/1", "k", `{"note": "a"}`); again != first {
			t.Errorf("the duplicate was answered with %v, not %v", again, first)
		}
	}
	if n := r.net("1"); n != 1 {
		t.Errorf("it happened %d times", n)
	}
	if diff := cmp.Diff(count{Deliveries: 4, Acted: 1}, r.calls("k")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
}

func TestManyDuplicatesAtOnceHaveOneEffectAndOneAnswer(t *testing.T) {
	t.Parallel()
	r := start(t)
	replies := make([]reply, 24)
	var wg sync.WaitGroup
	for i := range replies {
		wg.Go(func() {
			var err error
			if replies[i], err = send(t.Context(), "POST", r.url+"/act/1", "k", `{}`); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, got := range replies {
		if got != replies[0] || got.Status != http.StatusCreated {
			t.Errorf("%v was answered, and %v", got, replies[0])
		}
	}
	if n := r.net("1"); n != 1 {
		t.Errorf("it happened %d times", n)
	}
}

func TestADuplicateWaitsForTheFirstAndReplaysIt(t *testing.T) {
	t.Parallel()
	r := start(t)
	entered, release := make(chan struct{}), make(chan struct{})
	r.onAct = func(context.Context) error { close(entered); <-release; return nil } // closing twice would panic
	replies := make(chan reply, 2)
	var wg sync.WaitGroup
	defer wg.Wait()
	deliver := func() {
		got, err := send(t.Context(), "POST", r.url+"/act/1", "k", `{}`)
		if err != nil {
			t.Error(err)
		}
		replies <- got
	}
	wg.Go(deliver)
	<-entered
	wg.Go(deliver)
	eventually(t, "the duplicate waits for a lock", func() bool {
		var waiting bool
		err := r.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%rig%effects%')`).Scan(&waiting)
		return err == nil && waiting
	})
	select {
	case got := <-replies:
		t.Errorf("%v was answered before the first had ended", got)
	default:
	}
	close(release)
	if a, b := <-replies, <-replies; a != b || a.Status != http.StatusCreated {
		t.Errorf("the answers are %v and %v", a, b)
	}
}

func TestAKeyIsGoodForOneRequestOnly(t *testing.T) {
	t.Parallel()
	r := start(t)
	first := r.send("POST", "/act/1", "k", `{"note":"a"}`)
	for _, other := range []struct{ method, path, body string }{
		{"POST", "/act/1", `{"note":"b"}`}, {"POST", "/act/2", `{"note":"a"}`}, {"DELETE", "/act/1", `{"note":"a"}`},
	} {
		if got := r.send(other.method, other.path, "k", other.body); got.Status != http.StatusUnprocessableEntity {
			t.Errorf("%v was answered with %v", other, got)
		}
	}
	if again := r.send("POST", "/act/1", "k", `{"note":"a"}`); again != first {
		t.Errorf("the first request was answered with %v, then with %v", first, again)
	}
	if a, b := r.net("1"), r.net("2"); a != 1 || b != 0 {
		t.Errorf("it happened %d and %d times", a, b)
	}
}

func TestWhatIsWrongWithARequestIsSaidAndNotStored(t *testing.T) {
	t.Parallel()
	r := start(t)
	for name, c := range map[string]struct {
		key, path, body string
		status          int
		says            string
	}{
		"no key":        {"", "/act/1", `{}`, 400, "Idempotency-Key is missing"},
		"long key":      {strings.Repeat("k", 256), "/act/1", `{}`, 400, "longer than 255"},
		"no JSON":       {"k", "/act/1", `{`, 400, "not the JSON"},
		"two objects":   {"k", "/act/1", `{}{}`, 400, "behind the JSON"},
		"unknown field": {"k", "/act/1", `{"nose": 1}`, 400, `unknown field \"nose\"`},
		"odd order":     {"k", "/act/a%2Fb", `{}`, 400, "order:"},
		"long body":     {"k", "/act/1", `{"note":"` + strings.Repeat("x", 64<<10) + `"}`, 413, "longer than 65536"},
	} {
		if got := r.send("POST", c.path, c.key, c.body); got.Status != c.status || !strings.Contains(got.Body, c.says) {
			t.Errorf("%s: %v was answered, not %d with %q", name, got, c.status, c.says)
		}
	}
	if got := r.send("POST", "/act/1", "k", `{}`); got.Status != http.StatusCreated {
		t.Errorf("the key is spoilt: %v", got)
	}
}

func TestARefusalIsStoredAndLeavesNothingElse(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.onAct = func(context.Context) error { return effect.Refuse(http.StatusPaymentRequired, "card declined") }
	want := reply{402, "{\"message\":\"card declined\"}\n"}
	if got := r.send("POST", "/act/1", "k", `{}`); got != want {
		t.Fatalf("%v was answered, not %v", got, want)
	}
	r.onAct = nil
	if got := r.send("POST", "/act/1", "k", `{}`); got != want {
		t.Errorf("the duplicate was answered with %v, not %v", got, want)
	}
	if n := r.net("1"); n != 0 {
		t.Errorf("%d was left behind", n)
	}
	if diff := cmp.Diff(count{Deliveries: 2, Refused: 1}, r.calls("k")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
	// The order may come back under another key, with another card.
	if got := r.send("POST", "/act/1", "k2", `{}`); got.Status != http.StatusCreated {
		t.Errorf("another try was answered with %v", got)
	}
}

func TestAfterAnErrorTheSameKeyMayTryAgain(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.onAct = func(context.Context) error { return errors.New("the disk is on fire") }
	got := r.send("POST", "/act/1", "k", `{}`)
	if got.Status != http.StatusInternalServerError || strings.Contains(got.Body, "fire") {
		t.Errorf("the error was answered with %v", got)
	}
	if n := r.net("1"); n != 0 {
		t.Errorf("%d was left behind", n)
	}
	r.onAct = nil
	if got := r.send("POST", "/act/1", "k", `{}`); got.Status != http.StatusCreated {
		t.Errorf("the next try was answered with %v", got)
	}
}

func TestAnEffectIsFinishedAlthoughItsCallerIsGone(t *testing.T) {
	t.Parallel()
	r := start(t)
	ctx, leave := context.WithCancel(t.Context())
	r.onAct = func(ctx context.Context) error { leave(); return ctx.Err() }
	if got, err := send(ctx, "POST", r.url+"/act/1", "k", `{}`); err == nil {
		t.Fatalf("the caller stayed, and got %v", got)
	}
	eventually(t, "the effect commits", func() bool { return r.net("1") == 1 })
	r.onAct = nil
	if got := r.send("POST", "/act/1", "k", `{}`); got != (reply{201, "{\"id\":1}\n"}) {
		t.Errorf("the duplicate was answered with %v", got)
	}
}

func TestWithoutADatabaseCallersAreAskedToComeBack(t *testing.T) {
	t.Parallel()
	r := start(t)
	if got := r.send("GET", "/healthz", "", ""); got.Status != http.StatusOK {
		t.Errorf("healthz says %v", got)
	}
	r.pool.Close()
	if got := r.send("POST", "/act/1", "k", `{}`); got.Status != http.StatusServiceUnavailable {
		t.Errorf("%v was answered", got)
	}
	if got := r.send("GET", "/healthz", "", ""); got.Status != http.StatusServiceUnavailable {
		t.Errorf("healthz says %v", got)
	}
}
