package effect_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
	"github.com/vextrus/saga-operator/pkg/participant"
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

func TestWhatIsWrongWithARequestIsSaidAndNotStored(t *testing.T) {
	t.Parallel()
	r := start(t)
	for name, c := range map[string]struct {
		key, path, body string
		status          int
		says            string
	}{
		"no key":        {"", "/act/1", `{}`, 400, "Idempotency-Key is missing"},
		"long key":      {strings.Repeat("k", 256), "/act/1", `{}`, 400, "255"},
		"no JSON":       {"k", "/act/1", `{`, 400, "not the JSON"},
		"two objects":   {"k", "/act/1", `{}{}`, 400, "behind the JSON"},
		"unknown field": {"k", "/act/1", `{"nose": 1}`, 400, `unknown field \"nose\"`},
		"odd order":     {"k", "/act/a%2Fb", `{}`, 400, "order:"},
		"long body":     {"k", "/act/1", `{"note":"` + strings.Repeat("x", 64<<10) + `"}`, 413, "more than 65536"},
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
	r.onAct = func(context.Context) error { return participant.Refuse(http.StatusPaymentRequired, "card declined") }
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

func TestWithoutADatabaseCallersAreAskedToComeBack(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.eventually("/healthz", func(got reply) bool { return got.Status == http.StatusOK })
	r.pool.Close()
	if got := r.send("POST", "/act/1", "k", `{}`); got.Status != http.StatusTooManyRequests {
		t.Errorf("%v was answered", got)
	}
	if got := r.send("GET", "/healthz", "", ""); got.Status != http.StatusServiceUnavailable {
		t.Errorf("healthz says %v", got)
	}
}

func TestUndoingNothingIsNotedAsNothing(t *testing.T) {
	t.Parallel()
	r := start(t)
	for range 2 {
		if got := r.send("DELETE", "/act/1", "c", ""); got != (reply{200, "{\"undone\":false}\n"}) {
			t.Errorf("%v was answered", got)
		}
	}
	if diff := cmp.Diff(count{Deliveries: 2, Nothing: 1}, r.calls("c")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
	if got := r.send("POST", "/act/1", "a", `{}`); got.Status != http.StatusConflict {
		t.Errorf("the late action was answered with %v", got)
	}
	if diff := cmp.Diff(count{Deliveries: 1, Refused: 1}, r.calls("a")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
}

func TestWhatIsAcceptedIsNotedWhenItIsDone(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.Action("POST /later", "later", func(req *participant.Request) (in effect.Intent, err error) {
		in.Order, in.Effect = "1", "later 1"
		in.Do = func(ctx context.Context, tx pgx.Tx) (participant.Answer, error) {
			return participant.Later(ctx, tx, req.Key)
		}
		return in, nil
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/later", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", "k")
	req.Header.Set("Saga-Callback", r.url+"/healthz")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		t.Fatalf("it was answered with %s", res.Status)
	}
	if diff := cmp.Diff(count{Deliveries: 1}, r.calls("k")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
	if err := pgx.BeginFunc(t.Context(), r.pool, func(tx pgx.Tx) error { return r.Acted(t.Context(), tx, "k", "later 1", true) }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(count{Deliveries: 1, Acted: 1}, r.calls("k")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
}
