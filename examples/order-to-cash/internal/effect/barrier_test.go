package effect_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"
)

func TestUndoingNothingIsASuccess(t *testing.T) {
	t.Parallel()
	r := start(t)
	want := reply{200, "{\"undone\":false}\n"}
	for _, key := range []string{"c", "c", "another"} {
		if got := r.send("DELETE", "/act/1", key, ""); got != want {
			t.Errorf("%v was answered, not %v", got, want)
		}
	}
	if n := r.net("1"); n != 0 {
		t.Errorf("%d is left", n)
	}
}

func TestAnActionThatArrivesAfterItsCompensationDoesNothing(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.send("DELETE", "/act/1", "c", "")
	for range 2 {
		if got := r.send("POST", "/act/1", "a", `{}`); got.Status != http.StatusConflict {
			t.Errorf("the late action was answered with %v", got)
		}
	}
	if n := r.net("1"); n != 0 {
		t.Errorf("%d is left", n)
	}
}

func TestAnOrderIsActedUponOnceWhateverTheKeys(t *testing.T) {
	t.Parallel()
	r := start(t)
	for i, want := range []int{201, 409, 409} {
		if got := r.send("POST", "/act/1", fmt.Sprint("k", i), `{}`); got.Status != want {
			t.Errorf("key %d was answered with %v, not %d", i, got, want)
		}
	}
	if n := r.net("1"); n != 1 {
		t.Errorf("it happened %d times", n)
	}
}

// TestActionAndCompensationInAnyOrderLeaveZeroOrOne delivers an action and its compensation any number of times, in any order, in part
// at the same time.
func TestActionAndCompensationInAnyOrderLeaveZeroOrOne(t *testing.T) {
	t.Parallel()
	r := start(t)
	var orders atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		order := fmt.Sprint("o", orders.Add(1))
		compensated, acted := false, false
		for _, round := range rapid.SliceOfN(rapid.SliceOfN(rapid.Bool(), 1, 4), 1, 3).Draw(rt, "rounds of deliveries, true is the action") {
			var wg sync.WaitGroup
			for _, action := range round {
				method, key := "DELETE", order+"/compensation"
				if action {
					method, key = "POST", order+"/action"
				}
				acted, compensated = acted || action, compensated || !action
				wg.Go(func() {
					got, err := send(t.Context(), method, r.url+"/act/"+order, key, `{}`)
					if err != nil || got.Status >= 500 || (!action && got.Status != http.StatusOK) {
						t.Errorf("%s was answered with %v, %v", method, got, err)
					}
				})
			}
			wg.Wait()
			want := 0
			if acted && !compensated {
				want = 1
			}
			if n := r.net(order); n != want {
				rt.Fatalf("%d is left, not %d", n, want)
			}
		}
	})
}
