package effect_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vextrus/saga-operator/examples/order-to-cash/internal/effect"
)

func (r *rig) fault(f effect.Faults) {
	r.t.Helper()
	if err := r.SetFaults(f); err != nil {
		r.t.Fatal(err)
	}
}

func TestAnAnswerIsLostAfterTheEffect(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.fault(effect.Faults{Lose: 1, Requests: 1})
	if got, err := send(t.Context(), "POST", r.url+"/act/1", "k", `{}`); err == nil {
		t.Fatalf("%v was answered", got)
	}
	if n := r.net("1"); n != 1 {
		t.Fatalf("it happened %d times", n)
	}
	if got := r.send("POST", "/act/1", "k", `{}`); got != (reply{201, "{\"id\":1}\n"}) {
		t.Errorf("the next attempt was answered with %v", got)
	}
	if diff := cmp.Diff(count{Deliveries: 2, Acted: 1}, r.calls("k")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
}

func TestARequestThatHangsHasNoEffect(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.fault(effect.Faults{Hang: 1, Requests: 1})
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if got, err := send(ctx, "POST", r.url+"/act/1", "k", `{}`); err == nil {
			t.Errorf("%v was answered", got)
		}
	}()
	r.eventually("/admin/faults", func(got reply) bool { return got.Body == "{}\n" }) // the request has drawn the only one
	giveUp()
	<-ended
	if n := r.net("1"); n != 0 {
		t.Errorf("it happened %d times", n)
	}
	if got := r.send("POST", "/act/1", "k", `{}`); got.Status != http.StatusCreated {
		t.Errorf("the next attempt was answered with %v", got)
	}
	if diff := cmp.Diff(count{Deliveries: 2, Acted: 1}, r.calls("k")); diff != "" {
		t.Errorf("the log of calls (-want +got):\n%s", diff)
	}
}

func TestFaultsAreSetLookedAtAndEnd(t *testing.T) {
	t.Parallel()
	r := start(t)
	want := `{"delay":"1ms","error":1,"requests":2}` + "\n"
	if got := r.send("POST", "/admin/faults", "", want); got.Status != http.StatusOK {
		t.Fatalf("%v was answered", got)
	}
	if got := r.send("GET", "/admin/faults", "", ""); got.Body != want {
		t.Errorf("the faults are %s", got.Body)
	}
	for i, want := range []int{500, 500, 201} {
		if got := r.send("POST", "/act/1", "k", `{}`); got.Status != want {
			t.Errorf("request %d was answered with %v, not %d", i, got, want)
		}
	}
	if got := r.send("GET", "/admin/faults", "", ""); got.Body != "{}\n" {
		t.Errorf("the faults are %s", got.Body)
	}
	for _, body := range []string{`{"delay":"61s"}`, `{"delay":"-1s"}`, `{"delay":5}`, `{"lose":1.1}`, `{"hang":-1}`, `{"requests":-1}`, `{"los":1}`} {
		if got := r.send("POST", "/admin/faults", "", body); got.Status != http.StatusBadRequest {
			t.Errorf("%s was answered with %v", body, got)
		}
	}
}
